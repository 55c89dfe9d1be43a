//! What a node does by itself: without the coordinator, without Docker, and after a reboot.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use crabshack_shared::ids::InstanceId;
use crabshack_tests::{
    client::stub,
    cluster::{AGENT_HEALTH, Cluster, Who},
    command, engine,
    machine::Machine,
    must::{PATIENCE, become_true, eventually, stay_true},
    observed::{create, leased, ready, told, up_since},
    suite,
};

/// The shortest lease that the coordinator gives, in seconds.
const LEASE: u64 = 15;
/// A stop may take so long on a busy machine.
const STOP: Duration = Duration::from_secs(20);
const LEASE_WORDS: &str = "stopped by its lease";
/// In a node's warnings while it has no Docker.
const AWAY: &str = "Docker does not answer";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("coordinator_away__should_cost_no_event_and_no_order_of_events", replay);
        suite.test("lease__should_stop_its_instance_in_time_and_let_it_return", lease);
        suite.test("docker_away__should_end_nothing_and_lose_nothing", docker_away);
        suite.test("reboot__should_bring_back_what_may_run_without_the_coordinator", reboot);
    })
}

async fn coordinator_returns(cluster: &mut Cluster<'_>) -> anyhow::Result<()> {
    cluster.start(Who::Coordinator)?;
    cluster.ready(Who::Coordinator).await
}

async fn replay(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, &stub("witness")).await?;
        eventually("its node has told that it is ready", PATIENCE, async || {
            let events = told(cluster, "witness").await?;
            Ok(events.last().filter(|event| event.1 == "ready").map(|_| events.len()))
        })
        .await?;
        let before = told(cluster, "witness").await?;
        cluster.kill9(Who::Coordinator).await?;
        // Once under the same node agent, once under the next one.
        for round in 0..2 {
            let since = up_since(machine, &id).await?;
            machine.dockerd.engine().kill_container(&format!("cs-{id}"), None).await?;
            become_true("the node starts it again by itself", PATIENCE, async || {
                let now = up_since(machine, &id).await?;
                Ok(now.is_some() && now != since)
            })
            .await?;
            become_true("it is ready again", PATIENCE, async || {
                let metrics = reqwest::get(format!("{AGENT_HEALTH}/metrics")).await?.text().await?;
                Ok(metrics.contains(r#"node_instances{phase="ready"} 1"#))
            })
            .await?;
            if round == 0 {
                cluster.stop(Who::NodeAgent).await?;
                cluster.start(Who::NodeAgent)?;
                cluster.ready(Who::NodeAgent).await?;
            }
        }
        coordinator_returns(cluster).await?;
        let after = eventually("the events arrive", PATIENCE, async || {
            let events = told(cluster, "witness").await?;
            let returns = events.iter().skip(before.len()).filter(|event| event.1 == "ready").count();
            Ok((returns >= 2).then_some(events))
        })
        .await?;
        ensure!(after.starts_with(&before), "what was known has changed: {before:?} {after:?}");
        let new: Vec<(&str, bool)> = after[before.len()..]
            .iter()
            .map(|(_, phase, reason)| (phase.as_str(), reason.contains("137")))
            .collect();
        let ended = new.iter().filter(|(_, killed)| *killed).count();
        ensure!(ended == 2 && new.last() == Some(&("ready", false)), "{new:?}");
        ensure!(after.is_sorted_by_key(|(at, ..)| at.clone()), "out of order: {after:?}");
        stay_true("nothing is told twice", Duration::from_secs(12), async || {
            Ok(told(cluster, "witness").await? == after)
        })
        .await
    })
    .await
}

async fn lease(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let leased_id = create(cluster, &leased("leased", LEASE)).await?;
        let kept_id = create(cluster, &stub("kept")).await?;
        let kept = up_since(machine, &kept_id).await?;
        stay_true(
            "it runs while the coordinator answers",
            Duration::from_secs(LEASE + 5),
            async || Ok(up_since(machine, &leased_id).await?.is_some()),
        )
        .await?;
        cluster.kill9(Who::Coordinator).await?;
        let gone = Instant::now();
        stay_true("it runs on at first", Duration::from_secs(3), async || {
            Ok(up_since(machine, &leased_id).await?.is_some())
        })
        .await?;
        // The next node agent goes on counting where this one was.
        cluster.crash_and_restart(Who::NodeAgent).await?;
        let stopped = || async { Ok(up_since(machine, &leased_id).await?.is_none()) };
        become_true("its lease ends", Duration::from_secs(LEASE) + STOP, stopped).await?;
        // The last answer was some seconds old when the coordinator went.
        let lasted = gone.elapsed();
        ensure!(lasted > Duration::from_secs(LEASE / 2), "stopped after {lasted:?}");
        cluster.crash_and_restart(Who::NodeAgent).await?;
        stay_true("it stays down", Duration::from_secs(5), stopped).await?;
        ensure!(
            up_since(machine, &kept_id).await? == kept,
            "one without a lease was restarted"
        );

        coordinator_returns(cluster).await?;
        ready(cluster, "leased").await?;
        ready(cluster, "kept").await?;
        become_true("the node tells why it was down", PATIENCE, async || {
            let events = told(cluster, "leased").await?;
            let mut phases = events.iter().skip_while(|(.., reason)| !reason.contains(LEASE_WORDS));
            Ok(phases.any(|(_, phase, _)| phase == "ready"))
        })
        .await?;
        let events = told(cluster, "leased").await?;
        ensure!(!events.iter().any(|(.., reason)| reason.contains("exited")), "{events:?}");
        ensure!(
            up_since(machine, &kept_id).await? == kept,
            "one without a lease was restarted"
        );
        Ok(())
    })
    .await
}

async fn docker_away(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, &stub("steady")).await?;
        let dying = create(cluster, &stub("dying")).await?;
        let since = up_since(machine, &id).await?;
        let container = engine::container(machine.dockerd.engine(), &dying).await?;
        let process = container.state.and_then(|state| state.pid).context("no process id")?;
        machine.dockerd.kill9().await?;
        become_true("the node tells that Docker is away", PATIENCE * 2, async || {
            let nodes = cluster.client.get("/nodes").await?.success()?;
            Ok(nodes[0]["warnings"].to_string().contains(AWAY))
        })
        .await?;
        // Nobody sees it end.
        command::run(&format!("kill -9 {process}"))?;
        stay_true("what was known stands", Duration::from_secs(15), async || {
            let steady = cluster.client.instance("steady").await?;
            ensure!(steady["status"] == "running" && steady["phase"] == "ready", "{steady}");
            let agent = cluster.client.get("/nodes").await?.success()?;
            ensure!(agent[0]["unknown_instances"].as_array().is_none_or(Vec::is_empty), "{agent}");
            Ok(reqwest::get(format!("{AGENT_HEALTH}/ready")).await?.status().is_success())
        })
        .await?;
        ready(cluster, "steady").await?;
        // A node agent that starts meanwhile waits.
        cluster.kill9(Who::NodeAgent).await?;
        cluster.start(Who::NodeAgent)?;
        waits_for_docker(cluster).await?;

        machine.dockerd.start_again().await?;
        cluster.ready(Who::NodeAgent).await?;
        become_true("what ended unseen is started again", PATIENCE, async || {
            Ok(up_since(machine, &dying).await?.is_some())
        })
        .await?;
        ready(cluster, "dying").await?;
        ensure!(up_since(machine, &id).await? == since, "the other one was restarted");
        become_true("the warning goes", PATIENCE * 2, async || {
            let nodes = cluster.client.get("/nodes").await?.success()?;
            Ok(!nodes[0]["warnings"].to_string().contains(AWAY))
        })
        .await
    })
    .await
}

/// It is alive, says so, and is not ready.
async fn waits_for_docker(cluster: &mut Cluster<'_>) -> anyhow::Result<()> {
    let log = cluster.log(Who::NodeAgent);
    become_true("the node agent waits for Docker", PATIENCE, async || {
        let health = reqwest::get(format!("{AGENT_HEALTH}/health")).await?;
        ensure!(health.status().is_success(), "{}", health.status());
        Ok(fs::read_to_string(&log)?.contains("waiting for Docker"))
    })
    .await?;
    stay_true("it goes on waiting", Duration::from_secs(3), async || {
        Ok(!reqwest::get(format!("{AGENT_HEALTH}/ready")).await?.status().is_success())
    })
    .await?;
    ensure!(cluster.process(Who::NodeAgent)?.ended()?.is_none(), "the node agent ended");
    Ok(())
}

/// Whether an instance's bridge is in the ruleset.
fn is_armed(bridge: &str) -> bool {
    command::run("nft list table inet crabshack").is_ok_and(|table| table.contains(bridge))
}

/// The kernel gives another name to this boot, as far as our processes can see.
struct NewBoot;

impl NewBoot {
    fn begin(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join("boot_id");
        fs::write(&file, "5d0c3f1e-0000-4000-8000-000000000001\n")?;
        command::run(&format!("mount --bind {} {BOOT_ID}", file.display()))?;
        Ok(Self)
    }
}

impl Drop for NewBoot {
    fn drop(&mut self) {
        // The mount namespace ends with the suite in any case.
        drop(command::run(&format!("umount {BOOT_ID}")));
    }
}

async fn reboot(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let kept = create(cluster, &stub("kept")).await?;
        let leased = create(cluster, &leased("leased", 86_400)).await?;
        let home = cluster.data(Who::NodeAgent).join("instances").join(&kept).join("home");
        fs::write(home.join("work"), "of a week")?;
        let bridge = |id: &str| Ok::<_, anyhow::Error>(format!("cs-{}", id.parse::<InstanceId>()?.short()));
        let (kept_bridge, leased_bridge) = (bridge(&kept)?, bridge(&leased)?);
        ensure!(is_armed(&kept_bridge) && is_armed(&leased_bridge), "they are not armed");

        cluster.kill9(Who::Coordinator).await?;
        cluster.kill9(Who::NodeAgent).await?;
        machine.lose_power().await?;
        ensure!(!is_armed(&kept_bridge), "the ruleset outlived the reboot");
        let _boot = NewBoot::begin(machine.folder())?;
        // It comes up before Docker does, and nobody is there to ask.
        cluster.start(Who::NodeAgent)?;
        waits_for_docker(cluster).await?;
        machine.dockerd.start_again().await?;
        cluster.ready(Who::NodeAgent).await?;
        become_true("what may run alone runs", PATIENCE, async || {
            Ok(up_since(machine, &kept).await?.is_some())
        })
        .await?;
        ensure!(fs::read_to_string(home.join("work"))? == "of a week", "its disk has changed");
        ensure!(is_armed(&kept_bridge), "it is not armed");
        let user = command::run("iptables -S DOCKER-USER")?;
        ensure!(
            user.contains("-i cs-+ -j ACCEPT") && user.contains("-o cs-+ -j ACCEPT"),
            "{user}"
        );
        // Nobody knows how long the node was off, so somebody else may have it.
        stay_true("what has a lease waits", Duration::from_secs(5), async || {
            Ok(up_since(machine, &leased).await?.is_none() && !is_armed(&leased_bridge))
        })
        .await?;
        let since = up_since(machine, &kept).await?;

        coordinator_returns(cluster).await?;
        ready(cluster, "leased").await?;
        ready(cluster, "kept").await?;
        ensure!(
            up_since(machine, &kept).await? == since,
            "the coordinator's return restarted it"
        );
        Ok(())
    })
    .await
}
