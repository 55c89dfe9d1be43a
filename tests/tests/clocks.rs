//! Clocks that jump while instances run: the wall clock set back, and a week without the coordinator.

use std::{process::ExitCode, time::Duration};

use anyhow::ensure;
use crabshack_tests::{
    client::stub,
    clock::{self, WallClock},
    cluster::{Cluster, Who},
    machine::Machine,
    must::{PATIENCE, become_true, eventually, stay_true},
    observed::{Told, check_up, create, leased, ready, told, up_since},
    suite,
};
use serde_json::Value;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// The shortest lease that the coordinator gives, in seconds.
const LEASE: u64 = 15;
/// A stop may take so long on a busy machine.
const STOP: Duration = Duration::from_secs(20);
const LEASE_WORDS: &str = "stopped by its lease";

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("clock__should_go_back_an_hour_without_a_change_to_instances", set_back);
        suite.test("coordinator_away__should_cost_a_week_nothing_but_leases", week_away);
        suite.test("certificate__should_be_renewed_though_it_has_expired", months_away);
    })
}

/// Kills an instance's container and waits until its node has started it again.
async fn die(cluster: &Cluster<'_>, id: &str) -> anyhow::Result<()> {
    let since = up_since(cluster.machine, id).await?;
    ensure!(since.is_some(), "it is down");
    cluster
        .machine
        .dockerd
        .engine()
        .kill_container(&format!("cs-{id}"), None)
        .await?;
    become_true("the node starts it again by itself", PATIENCE, async || {
        let now = up_since(cluster.machine, id).await?;
        Ok(now.is_some() && now != since)
    })
    .await
}

/// Waits until the events of an instance have gone on to `ready` after what was known, which stays.
async fn told_more(cluster: &Cluster<'_>, name: &str, before: &[Told], reason: &str) -> anyhow::Result<Vec<Told>> {
    let after = eventually(
        &format!("{name} tells `{reason}` and that it is ready"),
        PATIENCE,
        async || {
            let events = told(cluster, name).await?;
            let mut new = events.iter().skip(before.len()).skip_while(|(.., why)| !why.contains(reason));
            Ok(new.any(|(_, phase, _)| phase == "ready").then_some(events))
        },
    )
    .await?;
    ensure!(after.starts_with(before), "what was known has changed: {before:?} {after:?}");
    Ok(after)
}

/// What the doctor finds about these and cannot put right.
async fn complaints(subjects: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut findings = check_up().await?;
    findings.retain(|finding| finding["repaired"] == false && subjects.iter().any(|subject| finding["subject"] == *subject));
    Ok(findings)
}

async fn set_back(machine: &Machine) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(machine)?;
    let clock = WallClock::inject(&mut cluster)?;
    cluster
        .run(async |cluster| {
            let kept = create(cluster, &stub("kept")).await?;
            let leased = create(cluster, &leased("leased", LEASE)).await?;
            let before = told_more(cluster, "kept", &[], "").await?;
            let since = (up_since(machine, &kept).await?, up_since(machine, &leased).await?);
            check_up().await?;

            clock.set(-HOUR)?;
            eventually("the doctor tells that the clock was set back", PATIENCE, async || {
                let findings = check_up().await?;
                let told =
                    |finding: &&Value| finding["subject"] == "clock" && finding["text"].to_string().contains("set back by 3");
                Ok(findings.iter().any(|finding| told(&finding)).then_some(()))
            })
            .await?;
            stay_true("both run on", Duration::from_secs(LEASE + 5), async || {
                Ok((up_since(machine, &kept).await?, up_since(machine, &leased).await?) == since)
            })
            .await?;
            for name in ["kept", "leased"] {
                ready(cluster, name).await?;
            }
            become_true("nothing is left to complain about", PATIENCE, async || {
                let left = complaints(&["clock", "certificate", "coordinator"]).await?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(true)
            })
            .await?;

            // What happens now is told after what happened before, though its time is earlier.
            die(cluster, &kept).await?;
            let after = told_more(cluster, "kept", &before, "137").await?;
            let earlier = |told: &[Told]| told.last().map(|(at, ..)| at.clone());
            ensure!(
                earlier(&after) < earlier(&before),
                "the clock went back for nobody: {after:?}"
            );
            // Both processes start at this time too.
            cluster.crash_and_restart(Who::NodeAgent).await?;
            cluster.crash_and_restart(Who::Coordinator).await?;
            for name in ["kept", "leased"] {
                ready(cluster, name).await?;
            }
            let since = up_since(machine, &kept).await?;

            // A lease is as long as ever.
            cluster.kill9(Who::Coordinator).await?;
            stay_true("it runs on at first", Duration::from_secs(3), async || {
                Ok(up_since(machine, &leased).await?.is_some())
            })
            .await?;
            become_true("its lease ends", Duration::from_secs(LEASE) + STOP, async || {
                Ok(up_since(machine, &leased).await?.is_none())
            })
            .await?;
            clock.set(0)?;
            cluster.start(Who::Coordinator)?;
            cluster.ready(Who::Coordinator).await?;
            ready(cluster, "leased").await?;
            ensure!(up_since(machine, &kept).await? == since, "the other one was restarted");
            Ok(())
        })
        .await
}

/// Nobody answers for so long: the node agent starts again on a machine whose clocks both say so.
async fn leave(cluster: &mut Cluster<'_>, clock: &WallClock, days: i64) -> anyhow::Result<()> {
    cluster.kill9(Who::Coordinator).await?;
    cluster.kill9(Who::NodeAgent).await?;
    clock.set(days * DAY)?;
    let passed = Duration::from_secs(u64::try_from(days * DAY)?);
    cluster.wrap(Who::NodeAgent, clock::up_longer(passed));
    cluster.start(Who::NodeAgent)?;
    cluster.ready(Who::NodeAgent).await
}

async fn week_away(machine: &Machine) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(machine)?;
    let clock = WallClock::inject(&mut cluster)?;
    cluster
        .run(async |cluster| {
            let kept = create(cluster, &stub("kept")).await?;
            let leased = create(cluster, &leased("leased", 86_400)).await?;
            let before = told_more(cluster, "kept", &[], "").await?;
            told_more(cluster, "leased", &[], "").await?;
            let since = up_since(machine, &kept).await?;

            leave(cluster, &clock, 7).await?;
            become_true("what has a lease of a day is stopped", STOP, async || {
                Ok(up_since(machine, &leased).await?.is_none())
            })
            .await?;
            ensure!(up_since(machine, &kept).await? == since, "the other one was restarted");
            // Life goes on: this ends, and the node agent too.
            die(cluster, &kept).await?;
            cluster.crash_and_restart(Who::NodeAgent).await?;
            die(cluster, &kept).await?;
            stay_true("what has a lease stays down", Duration::from_secs(5), async || {
                Ok(up_since(machine, &leased).await?.is_none())
            })
            .await?;
            let since = up_since(machine, &kept).await?;
            let left = complaints(&["clock", "certificate"]).await?;
            ensure!(left.is_empty(), "{left:?}");

            cluster.start(Who::Coordinator)?;
            cluster.ready(Who::Coordinator).await?;
            let after = told_more(cluster, "kept", &before, "137").await?;
            let events = told_more(cluster, "leased", &[], LEASE_WORDS).await?;
            for events in [&after, &events] {
                ensure!(events.is_sorted_by_key(|(at, ..)| at.clone()), "out of order: {events:?}");
            }
            let ended = after
                .iter()
                .skip(before.len())
                .filter(|(.., why)| why.contains("137"))
                .count();
            ensure!(ended == 2, "{after:?}");
            for name in ["kept", "leased"] {
                ready(cluster, name).await?;
            }
            ensure!(up_since(machine, &kept).await? == since, "its return restarted something");
            let left = complaints(&["clock", "certificate", "coordinator"]).await?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
}

async fn months_away(machine: &Machine) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(machine)?;
    let clock = WallClock::inject(&mut cluster)?;
    cluster
        .run(async |cluster| {
            let kept = create(cluster, &stub("kept")).await?;
            let since = up_since(machine, &kept).await?;
            leave(cluster, &clock, 100).await?;
            let certificate = async || complaints(&["certificate"]).await.map(|found| found.len());
            ensure!(certificate().await? == 1, "a certificate of 90 days counts for 100");
            cluster.start(Who::Coordinator)?;
            cluster.ready(Who::Coordinator).await?;
            become_true("the certificate is renewed", PATIENCE, async || Ok(certificate().await? == 0)).await?;
            ready(cluster, "kept").await?;
            ensure!(up_since(machine, &kept).await? == since, "it was restarted");
            Ok(())
        })
        .await
}
