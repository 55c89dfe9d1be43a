//! `crash`: every action that a plan can hold, killed before and after it and run twice. The end
//! state must equal that of a run without a kill.
//!
//! A reference run tells which actions there are: both processes log each by name. So a new action
//! is in the harness by construction.

mod scenario;
mod state;

use std::{collections::BTreeMap, env, fs, io::Write as _};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::Figures;
use crate::{
    cluster::{Cluster, Who},
    machine::Machine,
    process::log_end,
};

/// The variable that tells a process where to die.
const HALT_AT: &str = "CRABSHACK_HALT_AT";

/// Narrows a search for a hole: points whose text, like `NodeAgent after:CreateNetwork:1`, holds this.
const ONLY: &str = "CRABSHACK_TESTS_CRASH_ONLY";
/// Lines of each log that a hole shows.
const LOG_LINES: usize = 25;

/// One run of one action in the reference run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    who: Who,
    action: String,
    occurrence: usize,
}

/// Kills at every `every`-th step.
pub async fn figures(machine: &Machine, every: usize) -> anyhow::Result<Figures> {
    let (reference, steps) = run(machine, &[]).await.context("the reference run")?;
    ensure!(!steps.is_empty(), "the processes log no actions");
    let mut points = vec![(Who::Coordinator, "twice".to_owned()), (Who::NodeAgent, "twice".to_owned())];
    for step in steps.iter().step_by(every) {
        points.extend(["before", "after"].map(|moment| (step.who, format!("{moment}:{}:{}", step.action, step.occurrence))));
    }
    if let Ok(only) = env::var(ONLY) {
        points.retain(|(who, point)| format!("{who:?} {point}").contains(&only));
    }
    let (mut kills, mut missed, mut holes) = (0, 0, 0);
    for (who, point) in points {
        let outcome = run_halted(machine, who, &point).await;
        let hole = match outcome {
            Ok((state, killed)) => {
                kills += u64::from(killed);
                missed += u64::from(!killed && point != "twice");
                state::difference(&reference, &state)
            }
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(hole) = hole {
            holes += 1;
            drop(writeln!(
                std::io::stderr(),
                "hole: {who:?} {point}: {hole}\n{}",
                evidence(machine)
            ));
        }
    }
    let mut figures = Figures::default();
    figures.add("steps", steps.len());
    figures.add("kills", kills);
    figures.add("missed", missed);
    figures.add("holes", holes);
    Ok(figures)
}

/// The ends of the logs of the run that was just wiped.
fn evidence(machine: &Machine) -> String {
    let names = ["coordinator.previous", "node-agent.previous", "evidence.log"];
    names.map(|name| log_end(&machine.logs().join(name), LOG_LINES)).join("\n")
}

/// A run without a kill: the end state, and every step in order.
async fn run(machine: &Machine, settings: &[(Who, &str, &str)]) -> anyhow::Result<(Value, Vec<Step>)> {
    let mut result = None;
    Cluster::with_settings(machine, settings, async |cluster| {
        let ids = scenario::play(cluster).await?;
        let state = state::of(cluster, &ids).await?;
        result = Some((state, steps(cluster)?));
        Ok(())
    })
    .await?;
    result.context("no result")
}

/// A run with a halt point, and whether it was reached.
async fn run_halted(machine: &Machine, who: Who, point: &str) -> anyhow::Result<(Value, bool)> {
    let mut result = None;
    Cluster::with_settings(machine, &[(who, HALT_AT, point)], async |cluster| {
        let mut killed = false;
        let ids = scenario::play_through(cluster, &mut killed).await?;
        result = Some((state::of(cluster, &ids).await?, killed));
        Ok(())
    })
    .await?;
    result.context("no result")
}

/// What both processes logged: `{"fields": {"message": "action", "action": NAME}}`.
fn steps(cluster: &Cluster<'_>) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for who in Who::ALL {
        let mut seen = BTreeMap::<String, usize>::new();
        for line in fs::read_to_string(cluster.log(who))?.lines() {
            let Ok(entry) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let (message, action) = (&entry["fields"]["message"], &entry["fields"]["action"]);
            let (Some("action"), Some(action)) = (message.as_str(), action.as_str()) else {
                continue;
            };
            let occurrence = seen.entry(action.to_owned()).or_default();
            *occurrence += 1;
            steps.push(Step {
                who,
                action: action.to_owned(),
                occurrence: *occurrence,
            });
        }
    }
    Ok(steps)
}
