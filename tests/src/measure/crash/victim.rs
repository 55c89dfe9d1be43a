//! Who is killed, when, in one run.

use std::{cell::Cell, fs, path::Path, time::Duration};

use anyhow::Context as _;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde_json::Value;
use tokio::time::timeout;

use super::Step;
use crate::{client::Client, cluster::Who, machine::Machine};

/// During these dockerd has something to lose.
const ENGINE_ACTIONS: [&str; 6] = [
    "CreateNetwork",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "RemoveNetwork",
];
/// How long after an action's announcement dockerd is killed: before it has understood, in the middle
/// of it.
const MOMENTS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(40)];
/// Kills of dockerd in a share.
const ENGINE_SHARE: usize = 4;
const LOOK: Duration = Duration::from_millis(2);
const LOOK_AT_REASONS: Duration = Duration::from_millis(200);
/// What the node agent says when Docker keeps a port that no container has.
const ASKED: &str = "systemctl restart docker";
/// How soon an instance is well after a restart that it asked for.
const HELP: Duration = Duration::from_secs(20);

/// What has been done to dockerd in a run.
#[derive(Debug, Default)]
pub(super) struct Blow {
    pub(super) killed: Cell<bool>,
    /// It is down or about to be.
    pub(super) underway: Cell<bool>,
    /// Restarts that an instance asked for.
    pub(super) restarts: Cell<u64>,
}

/// One kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Point {
    /// A process of ours, at a halt point; `twice` kills nobody and repeats everything.
    Process { who: Who, at: String },
    /// dockerd, so long after the announcement.
    Engine { step: Step, after: Duration },
}

impl Point {
    /// It is dockerd that is killed.
    pub(super) fn is_engine(&self) -> bool {
        matches!(self, Self::Engine { .. })
    }

    /// As it is printed and searched for.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Process { who, at } => format!("{who:?} {at}"),
            Self::Engine { step, after } => {
                format!("dockerd during:{}:{} +{} ms", step.action, step.occurrence, after.as_millis())
            }
        }
    }
}

/// All kills around these steps.
pub(super) fn points(steps: &[Step]) -> Vec<Point> {
    let process = |who, at: String| Point::Process { who, at };
    let mut points: Vec<_> = Who::ALL.into_iter().map(|who| process(who, "twice".to_owned())).collect();
    for step in steps {
        for moment in ["before", "after"] {
            points.push(process(step.who, format!("{moment}:{}:{}", step.action, step.occurrence)));
        }
        if ENGINE_ACTIONS.contains(&step.action.as_str()) {
            let step = step.clone();
            points.extend(MOMENTS.map(|after| Point::Engine {
                step: step.clone(),
                after,
            }));
        }
    }
    points
}

/// A few kills of dockerd and a third of the others, in a random order: what CI has time for.
pub(super) fn share(points: Vec<Point>, seed: u64) -> Vec<Point> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut engine, mut process): (Vec<_>, Vec<_>) = points.into_iter().partition(Point::is_engine);
    for list in [&mut engine, &mut process] {
        list.shuffle(&mut random);
    }
    engine.truncate(ENGINE_SHARE);
    process.truncate(process.len().div_ceil(3));
    // Those first, so that a slow machine leaves none of them out.
    [engine, process].concat()
}

/// Waits until the node agent announces the step, then kills dockerd and starts it again. Then does what
/// a person does: restarts Docker when an instance says that nothing else helps. Never ends.
pub(super) async fn kill_engine(
    machine: &Machine,
    log: &Path,
    step: &Step,
    after: Duration,
    client: Client,
    blow: &Blow,
) -> anyhow::Result<()> {
    while announced(log, &step.action) < step.occurrence {
        tokio::time::sleep(LOOK).await;
    }
    blow.underway.set(true);
    tokio::time::sleep(after).await;
    machine.dockerd.kill9().await?;
    blow.killed.set(true);
    machine.dockerd.start_again().await?;
    loop {
        blow.underway.set(false);
        until(async || is_restart_asked(&client).await).await;
        blow.underway.set(true);
        blow.restarts.set(blow.restarts.get() + 1);
        machine.dockerd.restart().await?;
        let helped = timeout(HELP, until(async || !is_restart_asked(&client).await));
        helped.await.context("a restart of Docker, as asked for, does not help")?;
    }
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    while !is_so().await {
        tokio::time::sleep(LOOK_AT_REASONS).await;
    }
}

/// Whether an instance says so, by name.
async fn is_restart_asked(client: &Client) -> bool {
    for instance in client.instances().await.unwrap_or_default() {
        let name = instance["name"].as_str().unwrap_or_default();
        let whole = client.instance(name).await.unwrap_or_default();
        if whole["reason"].as_str().is_some_and(|reason| reason.contains(ASKED)) {
            return true;
        }
    }
    false
}

fn announced(log: &Path, action: &str) -> usize {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(action_of).filter(|found| found == action).count()
}

/// The action that a line of a log announces: `{"fields": {"message": "action", "action": NAME}}`.
pub(super) fn action_of(line: &str) -> Option<String> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let fields = &entry["fields"];
    (fields["message"] == "action").then(|| fields["action"].as_str().map(str::to_owned))?
}
