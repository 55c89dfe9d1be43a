//! `product-upgrade`: coordinator and node agent are replaced while instances run and a client makes
//! requests. The new node agent would make containers differently; it makes none.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::future;

use super::{Figures, density::starts};
use crate::{
    client::{Answer, Client, stub},
    cluster::{API, Cluster, SECRET, Who},
    image,
    machine::Machine,
    must::{PATIENCE, become_true},
};

/// Callers at once.
const CALLERS: usize = 4;
/// Between two requests of a caller.
const PAUSE: Duration = Duration::from_millis(10);
/// Restarts of both after the upgrade itself.
const ROUNDS: usize = 3;
/// Refusals that are shown.
const SHOWN: usize = 5;

/// With so many instances. Needs [`image::build_changed_agent`].
pub async fn figures(machine: &Machine, instances: usize) -> anyhow::Result<Figures> {
    let mut cluster = Cluster::new(machine)?;
    let result = async {
        cluster.hold_listeners()?;
        cluster.start_all().await?;
        upgrade(&mut cluster, instances).await
    }
    .await;
    let wiped = cluster.wipe().await;
    let figures = result?;
    wiped?;
    Ok(figures)
}

async fn upgrade(cluster: &mut Cluster<'_>, instances: usize) -> anyhow::Result<Figures> {
    let names: Vec<_> = (0..instances).map(|number| format!("kept-{number}")).collect();
    for name in &names {
        cluster.client.create(&stub(name)).await?;
    }
    let before = starts(cluster).await?;
    let over = Cell::new(false);
    let callers = (0..CALLERS).map(|_| traffic(&names, &over));
    let traffic = future::try_join_all(callers);
    let replace = async {
        let result = replace(cluster, &names).await;
        over.set(true);
        result
    };
    let (traffic, replaced) = tokio::join!(traffic, replace);
    replaced?;
    let traffic = traffic?.into_iter().fold(Traffic::default(), Traffic::with);
    let after = starts(cluster).await?;
    let mut figures = Figures::default();
    figures.add("instances", instances);
    figures.add("requests", traffic.requests);
    figures.add("requests_refused", traffic.refused.len());
    figures.add("requests_asked_again", traffic.asked_again);
    figures.add("slowest_request_ms", u64::try_from(traffic.slowest.as_millis())?);
    figures.add(
        "containers_recreated",
        before.iter().filter(|start| !after.contains(start)).count(),
    );
    if !traffic.refused.is_empty() {
        figures.add("refusals", traffic.refused.into_iter().take(SHOWN).collect::<Vec<_>>());
    }
    Ok(figures)
}

/// First the coordinator, with the node one version behind, then the node agent, then both at once.
async fn replace(cluster: &mut Cluster<'_>, names: &[String]) -> anyhow::Result<()> {
    cluster.stop(Who::Coordinator).await?;
    cluster.start(Who::Coordinator)?;
    cluster.ready(Who::Coordinator).await?;
    cluster.replace_program(Who::NodeAgent, &image::changed_agent()?);
    cluster.stop(Who::NodeAgent).await?;
    cluster.start(Who::NodeAgent)?;
    cluster.ready(Who::NodeAgent).await?;
    for name in names {
        // That it is reported shows that it is the other build.
        become_true("its change waits for a restart", PATIENCE, async || {
            let instance = cluster.client.instance(name).await?;
            Ok(instance["pending_change"] == true && instance["status"] == "running")
        })
        .await?;
    }
    for _ in 0..ROUNDS {
        for who in Who::ALL {
            cluster.stop(who).await?;
        }
        for who in Who::ALL {
            cluster.start(who)?;
            cluster.ready(who).await?;
        }
        cluster.node_known().await?;
    }
    Ok(())
}

async fn ask(client: &Client, name: &str) -> anyhow::Result<Answer> {
    let request = client.request(reqwest::Method::GET, &format!("/gateway/{name}/healthz"));
    Answer::read(request.header("connection", "close").send().await?).await
}

#[derive(Debug, Default)]
struct Traffic {
    requests: u64,
    asked_again: u64,
    refused: Vec<String>,
    slowest: Duration,
}

impl Traffic {
    fn with(mut self, other: Self) -> Self {
        self.requests += other.requests;
        self.asked_again += other.asked_again;
        self.refused.extend(other.refused);
        self.slowest = self.slowest.max(other.slowest);
        self
    }
}

/// One request after the other, to each in turn, each on a connection of its own.
async fn traffic(names: &[String], over: &Cell<bool>) -> anyhow::Result<Traffic> {
    let client = Client::new(API, SECRET)?;
    let mut traffic = Traffic::default();
    for name in names.iter().cycle() {
        if over.get() {
            break;
        }
        let began = Instant::now();
        let mut outcome = ask(&client, name).await;
        if outcome.is_err() {
            // As every browser does with a connection that was closed before an answer began.
            traffic.asked_again += 1;
            outcome = ask(&client, name).await;
        }
        traffic.requests += 1;
        traffic.slowest = traffic.slowest.max(began.elapsed());
        match outcome {
            Ok(answer) if answer.status.is_success() => {}
            Ok(answer) => traffic.refused.push(format!("{}: {}", answer.status, answer.text)),
            Err(error) => traffic.refused.push(format!("{error:#}")),
        }
        tokio::time::sleep(PAUSE).await;
    }
    ensure!(traffic.requests > 0, "no request was made");
    Ok(traffic)
}
