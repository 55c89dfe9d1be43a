//! Moves the process into namespaces of its own, by running itself again inside them.
//!
//! With the process namespace everything ends when the suite ends, however it ends; with the mount
//! namespace mounts vanish by themselves; with the network namespace every port, rule and address
//! is free, and no packet can leave the machine.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, bail, ensure};

use crate::{command, internet, must};

const ISOLATED: &str = "CRABSHACK_TESTS_ISOLATED";

/// Call first in `main`. Returns only inside the namespaces (or never, when this process is the
/// make-believe internet). `before` runs once, outside, where cargo and the host's files are.
pub fn enter(before: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if env::var_os(internet::ROLE).is_some() {
        internet::world::run()?;
        bail!("the internet has ended");
    }
    if env::var_os(ISOLATED).is_some() {
        return furnish();
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "these suites make network namespaces and run a dockerd: run them as root (for example `sudo -E cargo test`)"
    );
    before()?;
    let itself = env::current_exe()?;
    let reaper = must::program(&["docker-init", "tini"]).context("install docker.io or tini: a process must reap orphans")?;
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(reaper)
        .args(["-s", "--"])
        .arg(itself)
        .args(env::args_os().skip(1))
        .env(ISOLATED, "1")
        .exec();
    Err(error).context("`unshare` (package util-linux) cannot be run")
}

/// What a fresh set of namespaces lacks. A /run of our own also hides the host's Docker socket.
fn furnish() -> anyhow::Result<()> {
    command::run("mount -t tmpfs -o mode=755 tmpfs /run")?;
    command::run("ip link set lo up")?;
    Ok(())
}
