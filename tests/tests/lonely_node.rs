//! A node lives on when the coordinator is gone, forgetful, or comes back with an older memory.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::stub,
    cluster::{Cluster, Who},
    command, engine,
    machine::Machine,
    must::{self, PATIENCE, become_true, stay_true},
    suite,
};

/// Longer than a report's and a reconciler's period.
const WATCH: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("dead_coordinator__should_cost_the_node_nothing", dead_coordinator);
        suite.test("empty_store__should_stop_nothing", empty_store);
        suite.test("older_dump__should_stop_nothing_and_be_outranked", older_dump);
        suite.test("dead_node_agent__should_catch_up_with_what_was_wished_meanwhile", dead_agent);
        suite.test("graceful_stop__should_leave_instances_running", graceful_stop);
    })
}

/// Id and start of an instance's container; a restart changes the second.
async fn mark(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<(String, Option<String>)> {
    let id = must::text(&cluster.client.instance(name).await?, "instance_id")?.to_owned();
    let started = started(cluster, &id).await?;
    Ok((id, started))
}

async fn started(cluster: &Cluster<'_>, id: &str) -> anyhow::Result<Option<String>> {
    let container = engine::container(cluster.machine.dockerd.engine(), id).await?;
    ensure!(engine::is_running(&container), "{id} does not run");
    Ok(engine::started_at(&container))
}

async fn dead_coordinator(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("hermit")).await?;
        let (id, before) = mark(cluster, "hermit").await?;
        cluster.kill9(Who::Coordinator).await?;
        stay_true("it runs on", Duration::from_secs(3), async || {
            Ok(started(cluster, &id).await? == before)
        })
        .await?;
        machine.dockerd.engine().kill_container(&format!("cs-{id}"), None).await?;
        let restarted = async || Ok(started(cluster, &id).await? != before);
        become_true("the node agent starts it again by itself", PATIENCE, restarted).await?;
        // The agent too is restarted, with nobody to ask.
        cluster.crash_and_restart(Who::NodeAgent).await?;
        let lonely = started(cluster, &id).await?;
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        become_true("it answers through the coordinator", PATIENCE, async || {
            Ok(cluster.client.get("/gateway/hermit/healthz").await?.status.is_success())
        })
        .await?;
        ensure!(
            started(cluster, &id).await? == lonely,
            "the coordinator's return restarted it"
        );
        Ok(())
    })
    .await
}

/// Empties the coordinator's memory; its authority and keys stay.
fn forget(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "redb") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

async fn empty_store(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("orphan")).await?;
        let (id, before) = mark(cluster, "orphan").await?;
        cluster.kill9(Who::Coordinator).await?;
        forget(&cluster.data(Who::Coordinator))?;
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        ensure!(cluster.client.instances().await?.is_empty(), "the store is not empty");
        become_true("the node reports what nobody ordered", PATIENCE, async || {
            let nodes = cluster.client.get("/nodes").await?.success()?;
            Ok(nodes[0]["unknown_instances"] == serde_json::json!([id]))
        })
        .await?;
        stay_true("it runs on", WATCH, async || Ok(started(cluster, &id).await? == before)).await?;
        let folder = cluster.data(Who::NodeAgent).join("instances").join(&id).join("home");
        ensure!(folder.exists(), "its disk is gone");
        // New work goes on beside it.
        cluster.client.create(&stub("newcomer")).await?;
        ensure!(started(cluster, &id).await? == before);
        Ok(())
    })
    .await
}

async fn older_dump(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("early")).await?;
        cluster.client.act("early", "stop").await?;
        cluster.stop(Who::Coordinator).await?;
        let data = cluster.data(Who::Coordinator);
        let dump = data.with_extension("dump");
        command::run(&format!("cp -a {} {}", data.display(), dump.display()))?;
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        cluster.client.act("early", "start").await?;
        cluster.client.create(&stub("late")).await?;
        let (early, late) = (mark(cluster, "early").await?, mark(cluster, "late").await?);
        cluster.kill9(Who::Coordinator).await?;
        fs::remove_dir_all(&data)?;
        fs::rename(&dump, &data)?;
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        // The dump says that `early` is stopped and knows no `late`.
        stay_true("both run on", WATCH, async || {
            Ok(started(cluster, &early.0).await? == early.1 && started(cluster, &late.0).await? == late.1)
        })
        .await?;
        // What is said from now on counts.
        cluster.client.act("early", "start").await?;
        cluster.client.act("early", "stop").await?;
        let container = engine::container(machine.dockerd.engine(), &early.0).await;
        ensure!(
            container.is_err() || !engine::is_running(&container?),
            "a stop after the dump did nothing"
        );
        Ok(())
    })
    .await
}

async fn dead_agent(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        for name in ["stays", "leaves", "rests"] {
            cluster.client.create(&stub(name)).await?;
        }
        let (stays, before) = mark(cluster, "stays").await?;
        let leaves = mark(cluster, "leaves").await?.0;
        cluster.kill9(Who::NodeAgent).await?;
        // Headers come at once; the work waits for the node.
        drop(
            cluster
                .client
                .request(reqwest::Method::DELETE, "/instances/leaves?purge=true")
                .send()
                .await?,
        );
        drop(
            cluster
                .client
                .events("/instances/rests/stop", &serde_json::Value::Null)
                .await?,
        );
        ensure!(
            cluster.client.status("leaves").await?.is_none(),
            "a deleted instance is still shown"
        );
        ensure!(started(cluster, &stays).await? == before);
        cluster.start(Who::NodeAgent)?;
        cluster.ready(Who::NodeAgent).await?;
        become_true("the stop has come true", PATIENCE, async || {
            Ok(cluster.client.status("rests").await?.as_deref() == Some("stopped"))
        })
        .await?;
        become_true("the deletion has come true", PATIENCE, async || {
            Ok(!cluster.data(Who::NodeAgent).join("instances").join(&leaves).exists())
        })
        .await?;
        ensure!(started(cluster, &stays).await? == before, "it was restarted");
        Ok(())
    })
    .await
}

async fn graceful_stop(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("calm")).await?;
        let (id, before) = mark(cluster, "calm").await?;
        for who in [Who::NodeAgent, Who::Coordinator] {
            cluster.stop(who).await.context("a stop must be clean and in time")?;
            ensure!(
                started(cluster, &id).await? == before,
                "stopping the {who:?} stopped the instance"
            );
        }
        for who in [Who::Coordinator, Who::NodeAgent] {
            cluster.start(who)?;
            cluster.ready(who).await?;
        }
        ensure!(
            started(cluster, &id).await? == before,
            "starting again restarted the instance"
        );
        Ok(())
    })
    .await
}
