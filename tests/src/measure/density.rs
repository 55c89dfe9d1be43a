//! `density`: what a node agent costs with many instances that do nothing, and how fast it is back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use super::Figures;
use crate::{
    client::stub,
    cluster::{AGENT_HEALTH, Cluster, Who},
    engine,
    machine::Machine,
    must::{PATIENCE, become_true},
};

/// Created at once.
const AT_ONCE: usize = 4;
/// After this an agent that was just started has probed everything at its slow pace.
const CALM: Duration = Duration::from_secs(15);

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Instances on the node.
    pub instances: usize,
    /// How long its idleness is watched.
    pub idle: Duration,
}

impl Size {
    /// As the issue asks.
    pub const FULL: Self = Self {
        instances: 200,
        idle: Duration::from_secs(60),
    };
    /// For CI.
    pub const SMALL: Self = Self {
        instances: 10,
        idle: Duration::from_secs(10),
    };
}

/// Makes them, kills the node agent, and watches the next one.
pub async fn figures(machine: &Machine, size: Size) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    Cluster::with(machine, async |cluster| {
        let client = cluster.client.clone();
        stream::iter(0..size.instances)
            .map(Ok::<_, anyhow::Error>)
            .try_for_each_concurrent(AT_ONCE, |number| {
                let client = client.clone();
                async move {
                    let mut body = stub(&format!("dense-{number}"));
                    body["cpus"] = "0.05".into();
                    body["storage_size"] = "100m".into();
                    client.create(&body).await.map(drop)
                }
            })
            .await?;
        let before = starts(cluster).await?;
        ensure!(before.len() == size.instances, "{} containers", before.len());

        cluster.kill9(Who::NodeAgent).await?;
        let began = Instant::now();
        cluster.start(Who::NodeAgent)?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        become_true("every instance is seen again", PATIENCE * 2, async || {
            let health: Value = http.get(format!("{AGENT_HEALTH}/health")).send().await?.json().await?;
            Ok(health["adopted"] == true && health["instances"] == size.instances)
        })
        .await?;
        let reconciled = began.elapsed();
        // Every probe has had an answer, and the coordinator knows.
        become_true("every instance is ready", PATIENCE * 2, async || {
            let list = client.instances().await?;
            Ok(list.iter().filter(|instance| instance["status"] == "running").count() == size.instances)
        })
        .await?;
        tokio::time::sleep(CALM).await;

        let agent = cluster.process(Who::NodeAgent)?;
        let (used, began) = (agent.processor_time()?, Instant::now());
        tokio::time::sleep(size.idle).await;
        let used = agent.processor_time()?.saturating_sub(used);
        let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
        let resident = agent.resident_mebibytes()?;
        let after = starts(cluster).await?;
        let restarted = before.iter().filter(|start| !after.contains(start)).count();

        figures.add("instances", size.instances);
        figures.add("reconcile_ms", u64::try_from(reconciled.as_millis())?);
        figures.add_rounded("idle_cpu_percent", share * 100.0);
        figures.add_rounded("agent_rss_mb", resident);
        figures.add("containers_restarted", restarted);
        Ok(())
    })
    .await?;
    Ok(figures)
}

/// Each container and when it was started.
pub(super) async fn starts(cluster: &Cluster<'_>) -> anyhow::Result<Vec<(Option<String>, Option<String>)>> {
    let containers = engine::containers(cluster.machine.dockerd.engine()).await?;
    Ok(containers
        .into_iter()
        .map(|container| (container.id.clone(), engine::started_at(&container)))
        .collect())
}
