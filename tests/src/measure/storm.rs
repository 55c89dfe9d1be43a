//! `storm`: many instances created, stopped, started and deleted at once, while the coordinator,
//! the node agent or both are killed with -9 at random moments.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bollard::{Docker, query_parameters::EventsOptions};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reqwest::Method;

use super::Figures;
use crate::{
    client::{Client, stub},
    cluster::{AGENT_HEALTH, API, Cluster, Who},
    engine, leftovers,
    machine::Machine,
    must::{self, PATIENCE},
};

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Instances in all.
    pub instances: usize,
    /// Instances in the works at once.
    pub at_once: usize,
    /// Seed of the random moments.
    pub seed: u64,
}

impl Size {
    /// As the issue asks.
    pub const FULL: Self = Self {
        instances: 100,
        at_once: 16,
        seed: 1,
    };
    /// For CI.
    pub const SMALL: Self = Self {
        instances: 12,
        at_once: 6,
        seed: 1,
    };
}

/// One wish after another; what must be true in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Create,
    Stop,
    Start,
    Purge,
}

const FATES: [&[Wish]; 5] = [
    &[Wish::Create],
    &[Wish::Create, Wish::Stop],
    &[Wish::Create, Wish::Stop, Wish::Start],
    &[Wish::Create, Wish::Purge],
    &[Wish::Create, Wish::Stop, Wish::Start, Wish::Purge],
];
/// Between two wishes of one kind the storm may take long, but not for ever.
const LIMIT: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_secs(10);

impl Wish {
    /// The status afterwards; none: gone.
    fn status(self) -> Option<&'static str> {
        match self {
            Self::Create | Self::Start => Some("running"),
            Self::Stop => Some("stopped"),
            Self::Purge => None,
        }
    }

    fn request(self, client: &Client, name: &str) -> reqwest::RequestBuilder {
        match self {
            Self::Create => client.request(Method::POST, "/instances").body(stub(name).to_string()),
            Self::Stop => client.request(Method::POST, &format!("/instances/{name}/stop")),
            Self::Start => client.request(Method::POST, &format!("/instances/{name}/start")),
            Self::Purge => client.request(Method::DELETE, &format!("/instances/{name}?purge=true")),
        }
    }
}

/// How often a container may have died on purpose.
fn wanted_deaths(fate: &[Wish]) -> usize {
    let stops = fate.iter().filter(|wish| **wish == Wish::Stop).count();
    // A purge ends what runs.
    stops + usize::from(fate.ends_with(&[Wish::Purge]))
}

/// Runs it.
pub async fn figures(machine: &Machine, size: &Size) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    Cluster::with(machine, async |cluster| {
        let deaths = Deaths::watch(machine.dockerd.engine());
        let ids = Ids::default();
        let (over, client) = (Cell::new(false), cluster.client.clone());
        let driver = async {
            let result = drive(client, *size, Arc::clone(&ids)).await;
            over.set(true);
            result
        };
        let mut toll = Toll::default();
        let killer = async {
            let mut random = StdRng::seed_from_u64(size.seed);
            while !over.get() {
                tokio::time::sleep(Duration::from_millis(random.random_range(300..2000))).await;
                kill(cluster, random.random_range(0..3), &mut toll).await?;
            }
            Ok(())
        };
        tokio::try_join!(driver, killer)?;
        figures.add("instances", size.instances);
        figures.add("kills", toll.kills);
        figures.add("agent_answer_ms", whole(toll.answer));
        figures.add("adopted_ms", whole(toll.adopted));
        figures.add("wrong_state", wrong_states(cluster, size.instances).await?);
        figures.add("containers_stopped_by_kill", deaths.unwanted(&ids));
        for instance in cluster.client.instances().await? {
            cluster.client.delete(must::text(&instance, "name")?, true).await?;
        }
        figures.add("leftovers", left(cluster).await?);
        Ok(())
    })
    .await?;
    Ok(figures)
}

fn whole(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Instance ids by number, as the storm learns them.
type Ids = Arc<Mutex<BTreeMap<usize, String>>>;

fn name(number: usize) -> String {
    format!("storm-{number}")
}

async fn drive(client: Client, size: Size, ids: Ids) -> anyhow::Result<()> {
    stream::iter(0..size.instances)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(size.at_once, |number| live(client.clone(), number, Arc::clone(&ids)))
        .await
}

async fn live(client: Client, number: usize, ids: Ids) -> anyhow::Result<()> {
    let name = name(number);
    for &wish in FATES[number % FATES.len()] {
        insist(&client, &name, wish)
            .await
            .with_context(|| format!("{wish:?} of {name}"))?;
        if wish == Wish::Create {
            let id = must::eventually("its id is known", PATIENCE, async || {
                Ok(Some(must::text(&client.instance(&name).await?, "instance_id")?.to_owned()))
            })
            .await?;
            ids.lock().unwrap_or_else(PoisonError::into_inner).insert(number, id);
        }
    }
    Ok(())
}

/// Sends the wish until it was heard, and again when it seems forgotten; done when it is true.
async fn insist(client: &Client, name: &str, wish: Wish) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut sent: Option<Instant> = None;
    while began.elapsed() < LIMIT {
        if sent.is_none_or(|at| at.elapsed() > RETRY) && wish.request(client, name).send().await.is_ok() {
            sent = Some(Instant::now());
        }
        if let Ok(status) = client.status(name).await
            && sent.is_some()
            && status.as_deref() == wish.status()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("not within {} s", LIMIT.as_secs())
}

/// How often something was killed, and the slowest return of the node agent, from its start.
#[derive(Debug, Default)]
struct Toll {
    kills: usize,
    /// Until it answered at all.
    answer: Duration,
    /// Until it had seen everything on its node.
    adopted: Duration,
}

/// Kills one or both and starts them again.
async fn kill(cluster: &mut Cluster<'_>, which: u32, toll: &mut Toll) -> anyhow::Result<()> {
    let victims: &[Who] = match which {
        0 => &[Who::Coordinator],
        1 => &[Who::NodeAgent],
        _ => &[Who::NodeAgent, Who::Coordinator],
    };
    for &who in victims {
        cluster.kill9(who).await?;
    }
    let began = Instant::now();
    for &who in victims {
        cluster.start(who)?;
    }
    toll.kills += 1;
    if victims.contains(&Who::NodeAgent) {
        toll.answer = toll.answer.max(since(began, &format!("{AGENT_HEALTH}/health")).await?);
        toll.adopted = toll.adopted.max(since(began, &format!("{AGENT_HEALTH}/ready")).await?);
    }
    since(began, &format!("{API}/health")).await.map(drop)
}

async fn since(began: Instant, url: &str) -> anyhow::Result<Duration> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    must::become_true(url, PATIENCE, async || Ok(http.get(url).send().await?.status().is_success())).await?;
    Ok(began.elapsed())
}

/// Instances whose API status or container is not what their fate says, after some patience.
async fn wrong_states(cluster: &Cluster<'_>, instances: usize) -> anyhow::Result<usize> {
    let wrong = async || {
        let listed = cluster.client.instances().await?;
        let containers = engine::containers(cluster.machine.dockerd.engine()).await?;
        let mut wrong = 0;
        for number in 0..instances {
            let name = name(number);
            let expected = FATES[number % FATES.len()].last().and_then(|wish| wish.status());
            let record = listed.iter().find(|instance| instance["name"] == name.as_str());
            let id = record.and_then(|record| record["instance_id"].as_str());
            let container = id.and_then(|id| {
                containers
                    .iter()
                    .find(|container| container.name == Some(format!("/cs-{id}")))
            });
            let runs = container.is_some_and(engine::is_running);
            let status = record.and_then(|record| record["status"].as_str());
            wrong += usize::from(status != expected || runs != (expected == Some("running")));
        }
        Ok::<_, anyhow::Error>(wrong)
    };
    settled(wrong).await
}

async fn left(cluster: &Cluster<'_>) -> anyhow::Result<usize> {
    settled(async || Ok(leftovers::find(cluster).await?.len())).await
}

/// The number once it is 0, or after some patience.
async fn settled(count: impl AsyncFn() -> anyhow::Result<usize>) -> anyhow::Result<usize> {
    let none = must::become_true("none", PATIENCE, async || Ok(count().await? == 0)).await;
    if none.is_ok() { Ok(0) } else { count().await }
}

/// Every death of a container of ours, by instance id.
#[derive(Debug)]
struct Deaths(Arc<Mutex<BTreeMap<String, usize>>>);

impl Deaths {
    fn watch(docker: &Docker) -> Self {
        let deaths = Arc::new(Mutex::new(BTreeMap::new()));
        let (seen, docker) = (Arc::clone(&deaths), docker.clone());
        let filters = [("type", "container"), ("event", "die")].map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        tokio::spawn(async move {
            let options = EventsOptions {
                filters: Some(filters.into()),
                ..EventsOptions::default()
            };
            let mut events = docker.events(Some(options));
            while let Some(Ok(event)) = events.next().await {
                let attributes = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
                if let Some(id) = attributes.get(engine::LABEL) {
                    *seen
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .entry(id.clone())
                        .or_default() += 1;
                }
            }
        });
        Self(deaths)
    }

    /// Deaths beyond those that were asked for.
    fn unwanted(&self, ids: &Ids) -> usize {
        let deaths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = ids.lock().unwrap_or_else(PoisonError::into_inner);
        let extra = ids.iter().map(|(number, id)| {
            let died = deaths.get(id).copied().unwrap_or_default();
            died.saturating_sub(wanted_deaths(FATES[number % FATES.len()]))
        });
        extra.sum()
    }
}
