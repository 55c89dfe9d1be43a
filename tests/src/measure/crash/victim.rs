//! Who is killed, when, in one run.

use std::{fs, path::Path, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::Step;
use crate::{cluster::Who, machine::Machine};

/// During these dockerd has something to lose.
const ENGINE_ACTIONS: [&str; 4] = ["CreateContainer", "StartContainer", "StopContainer", "RemoveContainer"];
/// How long after an action's announcement dockerd is killed: before it has understood, in the middle
/// of it.
const MOMENTS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(40)];
const LOOK: Duration = Duration::from_millis(2);

/// One kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Point {
    /// A process of ours, at a halt point; `twice` kills nobody and repeats everything.
    Process { who: Who, at: String },
    /// dockerd, so long after the announcement.
    Engine { step: Step, after: Duration },
}

impl Point {
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

/// In a random order.
pub(super) fn shuffle(points: &mut [Point], seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for last in (1..points.len()).rev() {
        points.swap(last, random.random_range(0..=last));
    }
}

/// Waits until the node agent announces the step, then kills dockerd and starts it again. Never ends
/// when the step does not come.
pub(super) async fn kill_engine(
    machine: &Machine,
    log: &Path,
    step: &Step,
    after: Duration,
    killed: &std::cell::Cell<bool>,
) -> anyhow::Result<()> {
    while announced(log, &step.action) < step.occurrence {
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(after).await;
    machine.dockerd.kill9().await?;
    killed.set(true);
    machine.dockerd.start_again().await
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
