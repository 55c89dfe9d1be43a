//! `crash`: every action that a plan can hold, killed before and after it and run twice; dockerd is
//! killed in the middle of what it is asked for. The end state must equal that of a run without a kill.
//!
//! A reference run tells which actions there are: both processes log each by name. The run must lead to
//! all of them (`coverage`), so a new action is in the harness by construction.

mod coverage;
mod scenario;
mod state;
mod victim;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use victim::{Blow, Point};

use super::Figures;
use crate::{
    cluster::{Cluster, Who},
    command,
    machine::Machine,
    process::log_end,
};

/// The variable that tells a process where to die.
const HALT_AT: &str = "CRABSHACK_HALT_AT";

/// Narrows a search for a hole: points whose text, like `NodeAgent after:CreateNetwork:1`, holds this.
const ONLY: &str = "CRABSHACK_TESTS_CRASH_ONLY";
/// Repeats a random choice.
const SEED: &str = "CRABSHACK_TESTS_CRASH_SEED";
const LOOK: Duration = Duration::from_millis(20);
/// Lines of each log that a hole shows.
const LOG_LINES: usize = 25;

/// One run of one action in the reference run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    who: Who,
    action: String,
    occurrence: usize,
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Every kill around every step.
    Whole,
    /// A random third of the kills of our own processes and a few of dockerd's, others each time; none is
    /// begun after so long.
    Third(Duration),
}

/// Kills around every step, or some.
pub async fn figures(machine: &Machine, share: Share) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let _registry = scenario::registry(machine).await?;
    let (reference, steps) = reference(machine).await.context("the reference run")?;
    ensure!(!steps.is_empty(), "the processes log no actions");
    coverage::check(&steps.iter().map(|step| step.action.as_str()).collect())?;
    let mut points = victim::points(&steps);
    let mut figures = Figures::default();
    let mut until = None;
    if let Share::Third(longest) = share {
        let seed = env::var(SEED)
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(rand::random::<u32>);
        say(&format!("a random share of {} kills; {SEED}={seed} repeats it", points.len()));
        figures.add("seed", seed);
        points = victim::share(points, seed.into());
        until = Some(longest);
    }
    if let Ok(only) = env::var(ONLY) {
        points.retain(|point| point.text().contains(&only));
    }
    let mut tally = Tally::default();
    for point in &points {
        if until.is_some_and(|longest| began.elapsed() > longest) {
            break;
        }
        tally.runs += 1;
        if let Some(hole) = tally.count(point, run_halted(machine, point, &reference).await, &reference) {
            say(&format!("hole: {}: {hole}\n{}", point.text(), evidence(machine)));
            if point.is_engine() {
                // What this dockerd still believes, or has forgotten, is not to spoil the next run.
                machine.dockerd.kill9().await?;
                machine.dockerd.start_again().await?;
                for bridge in state::bridges()? {
                    command::run(&format!("ip link delete {bridge}"))?;
                }
            }
        }
    }
    figures.add("steps", steps.len());
    figures.add("chosen", points.len());
    figures.add("runs", tally.runs);
    figures.add("kills", tally.kills);
    figures.add("engine_kills", tally.engine_kills);
    figures.add("missed", tally.missed);
    figures.add("holes", tally.holes);
    figures.add("engine_holes", tally.engine_holes);
    figures.add("engine_restarts", tally.engine_restarts);
    figures.add_rounded("seconds", began.elapsed().as_secs_f64());
    Ok(figures)
}

#[derive(Debug, Default)]
struct Tally {
    runs: u64,
    kills: u64,
    engine_kills: u64,
    missed: u64,
    /// After whatever kill.
    holes: u64,
    /// Those after a kill of dockerd.
    engine_holes: u64,
    /// Restarts of Docker that an instance asked for after one.
    engine_restarts: u64,
}

impl Tally {
    /// What is wrong with a run, if something is.
    fn count(&mut self, point: &Point, outcome: anyhow::Result<Run>, reference: &Value) -> Option<String> {
        let hole = match outcome {
            Ok(Run {
                state,
                killed,
                engine_restarts,
            }) => {
                self.engine_restarts += engine_restarts;
                let wanted = !matches!(point, Point::Process { at, .. } if at == "twice");
                self.kills += u64::from(killed);
                self.engine_kills += u64::from(killed && point.is_engine());
                if wanted && !killed {
                    self.missed += 1;
                    say(&format!("missed: {}", point.text()));
                }
                if point.is_engine() {
                    state::difference(reference, &state::without_more_logs(&state, reference))
                } else {
                    state::difference(reference, &state)
                }
            }
            Err(error) => Some(format!("{error:#}")),
        };
        self.holes += u64::from(hole.is_some());
        self.engine_holes += u64::from(hole.is_some() && point.is_engine());
        hole
    }
}

/// Progress of a long run; a closed standard error is the reader's choice.
fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// The ends of the logs of the run that was just wiped.
fn evidence(machine: &Machine) -> String {
    let names = ["coordinator.previous", "node-agent.previous", "evidence.log", "dockerd.log"];
    names.map(|name| log_end(&machine.logs().join(name), LOG_LINES)).join("\n")
}

/// A run without a kill: the end state, and every step in order.
async fn reference(machine: &Machine) -> anyhow::Result<(Value, Vec<Step>)> {
    let mut result = None;
    Cluster::with_settings(machine, &scenario::SETTINGS, async |cluster| {
        let ids = scenario::play(cluster).await?;
        let state = state::of(cluster, &ids).await?;
        result = Some((state, steps(cluster)?));
        Ok(())
    })
    .await?;
    result.context("no result")
}

/// A run with a kill.
struct Run {
    state: Value,
    /// Somebody was.
    killed: bool,
    /// Restarts of Docker that an instance asked a person for.
    engine_restarts: u64,
}

async fn run_halted(machine: &Machine, point: &Point, reference: &Value) -> anyhow::Result<Run> {
    let mut settings = scenario::SETTINGS.to_vec();
    if let Point::Process { who, at } = point {
        settings.push((*who, HALT_AT, at));
    }
    let mut result = None;
    Cluster::with_settings(machine, &settings, async |cluster| {
        let log = cluster.log(Who::NodeAgent);
        let (mut died, blow) = (false, Blow::default());
        let ids = match point {
            Point::Process { .. } => scenario::play_through(cluster, &mut died).await?,
            Point::Engine { step, after } => {
                let kill = victim::kill_engine(machine, &log, step, *after, cluster.client.clone(), &blow);
                let play = async {
                    let ids = scenario::play_through(cluster, &mut died).await;
                    while blow.underway.get() {
                        tokio::time::sleep(LOOK).await;
                    }
                    ids
                };
                tokio::select! {
                    ended = kill => anyhow::bail!("who kills dockerd stopped: {ended:?}"),
                    ids = play => ids?,
                }
            }
        };
        let state = state::settled(cluster, &ids, reference).await?;
        result = Some(Run {
            state,
            killed: died || blow.killed.get(),
            engine_restarts: blow.restarts.get(),
        });
        Ok(())
    })
    .await?;
    result.context("no result")
}

/// What both processes announced.
fn steps(cluster: &Cluster<'_>) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for who in Who::ALL {
        let mut seen = BTreeMap::<String, usize>::new();
        for action in fs::read_to_string(cluster.log(who))?.lines().filter_map(victim::action_of) {
            let occurrence = seen.entry(action.clone()).or_default();
            *occurrence += 1;
            steps.push(Step {
                who,
                action,
                occurrence: *occurrence,
            });
        }
    }
    Ok(steps)
}
