//! Ends a command that nobody listens to any more. Docker has no call for that: the node agent, which is
//! root, hangs up on the command's session as sshd does, and kills what does not go. What made itself a
//! session of its own (`tmux`, `setsid`) runs on.
//!
//! Numbers of processes are used again, so none is signalled by its number: a handle is opened, and what
//! it stands for must be in the instance's container. A wrong guess can only hit what the same tenant
//! runs.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use crabshack_shared::{ids::InstanceId, telemetry::Chain};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::docker::Docker;

/// A command that is just being started is waited for.
const START_LIMIT: Duration = Duration::from_secs(10);
const START_PERIOD: Duration = Duration::from_millis(20);
/// Between hanging up and killing.
const GRACE: Duration = Duration::from_secs(2);
const GRACE_PERIOD: Duration = Duration::from_millis(20);

/// Ends the command of an exec, with its session.
pub(crate) async fn end(docker: &Docker, id: &str) {
    let began = Instant::now();
    let (pid, container) = loop {
        match docker.exec_state(id).await {
            Ok(Some(state)) => match (state.running, state.pid.and_then(Pid::from_raw)) {
                (true, Some(pid)) => break (pid, state.container),
                _ if state.code.is_some() => return,
                _ => {}
            },
            Ok(None) => return,
            Err(error) => warn!("a command cannot be looked at: {}", Chain(&error)),
        }
        if began.elapsed() > START_LIMIT {
            return warn!("a command without a listener did not start in time: it is left alone");
        }
        sleep(START_PERIOD).await;
    };
    let began = Instant::now();
    let mut signal = Signal::HUP;
    loop {
        let container = container.clone();
        let left = tokio::task::spawn_blocking(move || hang_up(pid, &container, signal)).await;
        match left {
            Ok(Ok(0)) => return,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return warn!("a command cannot be ended: {}", Chain(&error)),
            Err(error) => return warn!("a command cannot be ended: {}", Chain(&error)),
        }
        // Asked once; what is stopped must go on to hear it; then told until nobody is left.
        signal = if began.elapsed() < GRACE { Signal::CONT } else { Signal::KILL };
        if began.elapsed() > GRACE * 2 {
            return warn!("a command does not end");
        }
        sleep(GRACE_PERIOD).await;
    }
}

/// Ends what was left behind in an instance by a node agent that was killed.
pub(crate) async fn sweep(docker: &Docker, instance: InstanceId) {
    let Ok(running) = docker.running_execs(instance).await else {
        // Its container is not there, or Docker is not: nothing that could be ended now.
        return;
    };
    for id in running {
        if let Ok(Some(state)) = docker.exec_state(&id).await
            && state.left_behind
            && state.running
        {
            info!(%instance, "ending a command whose listener is gone");
            end(docker, &id).await;
        }
    }
}

/// Signals every process of the session that is in the container; returns how many there were.
fn hang_up(session: Pid, container: &str, signal: Signal) -> io::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let Some(process) = open(pid, session, container) else {
            continue;
        };
        match pidfd_send_signal(&process, signal) {
            Ok(()) => found += 1,
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// A handle on a process that is what it should be. Whatever is read by its number before the handle
/// turns out to be alive is true of the handle.
fn open(pid: Pid, session: Pid, container: &str) -> Option<OwnedFd> {
    let number = pid.as_raw_nonzero().get();
    let stat = || fs::read_to_string(format!("/proc/{number}/stat")).ok();
    // Most are somebody else's: those need no handle.
    if !is_alive_in(&stat()?, number, session) {
        return None;
    }
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let groups = fs::read_to_string(format!("/proc/{number}/cgroup")).ok()?;
    let is_ours = !container.is_empty() && groups.contains(container) && is_alive_in(&stat()?, number, session);
    is_ours.then_some(process)
}

/// Reads the line of `/proc/PID/stat`: true for what runs in the session, or leads it.
fn is_alive_in(stat: &str, number: i32, session: Pid) -> bool {
    // The name is in parentheses and may hold anything, more of them too.
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    let session = session.as_raw_nonzero().get();
    let mut fields = rest.split(' ');
    let is_over = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
    // After the state: parent, group, session.
    let is_member = fields.nth(2).and_then(|field| field.parse().ok()) == Some(session);
    !is_over && (is_member || number == session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member__should_be_told_by_its_session_whatever_its_name_is() {
        let session = Pid::from_raw(70).unwrap();
        for (stat, number, is_member) in [
            ("70 (bash) S 1 70 70 0 -1", 70, true),
            ("71 (sleep) R 70 71 70 0 -1", 71, true),
            ("72 (a) Z 9 9 70 () S 1 72 9 0 -1", 72, false),
            ("73 (sleep) Z 70 71 70 0 -1", 73, false),
            ("74 (sleep) S 70 70 7 0 -1", 74, false),
            ("75 (outside) S 0 0 0 0 -1", 75, false),
            ("damaged", 70, false),
        ] {
            assert_eq!(is_alive_in(stat, number, session), is_member, "{stat}");
        }
    }
}
