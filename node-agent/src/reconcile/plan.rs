//! What to do next: a pure function of the order and of what is there. Create, repair, restart and
//! delete are this one function.

use std::time::Duration;

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceOrder, Pressure},
    generation::Generation,
};

use super::attempts::Attempts;
use crate::{recipe::Member, volume::Volume};

/// How soon to look again whether there is room.
const WHEN_HELD_BACK: Duration = Duration::from_secs(10);

/// One step. Every step may be run again at any time: that is what makes a kill at any moment safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    CreateVolume,
    LimitVolume,
    WriteFiles,
    CreateNetwork,
    ArmEgress,
    PullImage(Member),
    CreateContainer(Member),
    UpdateLimits(Member),
    Confine(Member),
    Unpause(Member),
    StartContainer(Member),
    Reconfigure,
    StopContainer(Member),
    SaveLog,
    RemoveContainer(Member),
    DisarmEgress,
    RemoveNetwork,
    RemoveVolume,
}

impl Action {
    /// Its name in the log and in the crash harness.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CreateVolume => "CreateVolume",
            Self::LimitVolume => "LimitVolume",
            Self::WriteFiles => "WriteFiles",
            Self::CreateNetwork => "CreateNetwork",
            Self::ArmEgress => "ArmEgress",
            Self::PullImage(_) => "PullImage",
            Self::CreateContainer(_) => "CreateContainer",
            Self::UpdateLimits(_) => "UpdateLimits",
            Self::Confine(_) => "Confine",
            Self::Unpause(_) => "Unpause",
            Self::StartContainer(_) => "StartContainer",
            Self::Reconfigure => "Reconfigure",
            Self::StopContainer(_) => "StopContainer",
            Self::SaveLog => "SaveLog",
            Self::RemoveContainer(_) => "RemoveContainer",
            Self::DisarmEgress => "DisarmEgress",
            Self::RemoveNetwork => "RemoveNetwork",
            Self::RemoveVolume => "RemoveVolume",
        }
    }
}

/// What is there of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) volume: Option<Volume>,
    /// The agent's files are there and as the order says.
    pub(crate) files: bool,
    /// A running instance has taken over its managed settings.
    pub(crate) told: bool,
    pub(crate) network: Presence,
    pub(crate) armed: bool,
    /// What the node's disks have no room for.
    pub(crate) pressure: Pressure,
    /// Its containers, the main one first: what its recipe has, and what is there beyond that.
    pub(crate) parts: Vec<Part>,
}

impl Observed {
    /// The main container.
    pub(crate) fn main(&self) -> Option<&Container> {
        let main = self.parts.iter().find(|part| part.member.is_main());
        main.and_then(|part| part.container.as_ref())
    }

    /// Every container that is there.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.parts.iter().filter_map(|part| part.container.as_ref())
    }
}

/// One of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) member: Member,
    /// Its recipe has it.
    pub(crate) wanted: bool,
    /// Its image is on the node; only looked up when the container must be made.
    pub(crate) image: bool,
    pub(crate) container: Option<Container>,
}

impl Part {
    fn is(&self, run: &Run) -> bool {
        self.container.as_ref().is_some_and(|container| container.run == *run)
    }
}

/// Whether something is there, and as it should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    #[default]
    Absent,
    Matches,
    Differs,
}

/// A container, as far as decisions need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) docker_id: String,
    /// When it ended, in Docker's words: tells one ending from the next.
    pub(crate) finished_at: Option<String>,
    /// Generation of the order it was made for.
    pub(crate) generation: Generation,
    pub(crate) restarts: u64,
    pub(crate) run: Run,
    pub(crate) limits: LimitsState,
    /// Nobody put it into another network or has Docker start it.
    pub(crate) confined: bool,
    /// The next one would be made differently: from a later specification or another recipe.
    pub(crate) pending: bool,
}

/// Whether the container may use what the order says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitsState {
    Match,
    Differ,
    /// They differ, and the ordered memory is less than what it uses now: giving it that would kill it.
    TooLow {
        /// Bytes.
        used: u64,
    },
}

/// What the container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Run {
    /// Made, never started.
    Created,
    Running,
    /// Frozen by somebody.
    Paused,
    Exited {
        code: i64,
        out_of_memory: bool,
    },
    /// Docker is removing it, failed to, or can never start it again.
    Broken,
}

impl Run {
    /// It has processes.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// The steps now, and when to look again if nothing else happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    pub(crate) look_again: Option<Duration>,
}

/// The main container cannot serve the order.
pub(crate) fn must_be_made_again(order: &InstanceOrder, observed: &Observed) -> bool {
    is_stale(order, observed, observed.main())
}

/// A container cannot serve the order: it was made for an earlier restart, ended under an earlier
/// order, never ran and would be made differently now, or its network is not the one it was made for.
pub(crate) fn is_stale(order: &InstanceOrder, observed: &Observed, container: Option<&Container>) -> bool {
    container.is_none_or(|container| {
        container.restarts < order.restarts
            || (!container.run.is_up() && container.generation < order.generation)
            || (container.run == Run::Created && container.pending)
            || container.run == Run::Broken
            || observed.network != Presence::Matches
    })
}

/// Why nothing is made now although it is ordered: the disks are nearly full. It is made by itself
/// when there is room.
pub(crate) fn held_back(order: &InstanceOrder, observed: &Observed) -> Option<&'static str> {
    let mut wanted = observed.parts.iter().filter(|part| part.wanted);
    let pulls = wanted.any(|part| !part.image && is_stale(order, observed, part.container.as_ref()));
    match observed.pressure {
        Pressure::Creates | Pressure::Pulls if observed.volume.is_none() => {
            Some("the node's disk is nearly full: the instance is made when there is room again")
        }
        Pressure::Pulls if pulls => Some("the node's disk is nearly full: the image is pulled when there is room again"),
        _ => None,
    }
}

/// Decides. `never_restart` are exit codes that mean "a person is needed".
pub(crate) fn plan(order: &InstanceOrder, observed: &Observed, attempts: &Attempts, never_restart: &[i64]) -> Plan {
    if let Some(wait) = attempts.wait_after_failure() {
        return Plan {
            actions: Vec::new(),
            look_again: Some(wait),
        };
    }
    match order.desired {
        Desired::Running => run(order, observed, attempts, never_restart),
        Desired::Stopped => Plan {
            actions: observed.parts.iter().flat_map(stop).collect(),
            look_again: None,
        },
        Desired::Elsewhere => Plan {
            actions: remove(observed, false),
            look_again: None,
        },
        Desired::Deleted { purge } => Plan {
            actions: remove(observed, purge),
            look_again: None,
        },
    }
}

fn run(order: &InstanceOrder, observed: &Observed, attempts: &Attempts, never_restart: &[i64]) -> Plan {
    if held_back(order, observed).is_some() {
        return Plan {
            actions: Vec::new(),
            look_again: Some(WHEN_HELD_BACK),
        };
    }
    let (stale, fresh): (Vec<&Part>, Vec<&Part>) = observed
        .parts
        .iter()
        .partition(|part| !part.wanted || is_stale(order, observed, part.container.as_ref()));
    let mut actions: Vec<Action> = stale.into_iter().flat_map(take_away).collect();
    // A frozen one can neither be reconfigured nor answer.
    let frozen = fresh.into_iter().filter(|part| part.is(&Run::Paused));
    actions.extend(frozen.map(|part| Action::Unpause(part.member)));
    match &observed.volume {
        None | Some(Volume::Unfinished) => actions.push(Action::CreateVolume),
        Some(volume) if volume.wants_limit(order.spec.resources.storage) => actions.push(Action::LimitVolume),
        Some(_) => {}
    }
    if !observed.files {
        actions.push(Action::WriteFiles);
    }
    if observed.network == Presence::Differs {
        actions.push(Action::RemoveNetwork);
    }
    if observed.network != Presence::Matches {
        actions.push(Action::CreateNetwork);
    }
    if !observed.armed {
        actions.push(Action::ArmEgress);
    }
    let mut look_again: Option<Duration> = None;
    for part in observed.parts.iter().filter(|part| part.wanted) {
        match part.container.as_ref() {
            Some(container) if !is_stale(order, observed, Some(container)) => {
                let wait = bring_up(part.member, container, observed.told, attempts, never_restart, &mut actions);
                look_again = look_again.into_iter().chain(wait).min();
            }
            _ => {
                if !part.image {
                    actions.push(Action::PullImage(part.member));
                }
                actions.extend([Action::CreateContainer(part.member), Action::StartContainer(part.member)]);
            }
        }
    }
    Plan { actions, look_again }
}

/// What a container that serves the order needs; returns when to look again, if it must be waited for.
fn bring_up(
    member: Member,
    container: &Container,
    told: bool,
    attempts: &Attempts,
    never_restart: &[i64],
    actions: &mut Vec<Action>,
) -> Option<Duration> {
    if container.limits == LimitsState::Differ {
        actions.push(Action::UpdateLimits(member));
    }
    if !container.confined {
        actions.push(Action::Confine(member));
    }
    match container.run {
        Run::Created => actions.push(Action::StartContainer(member)),
        Run::Running | Run::Paused if member.is_main() && !told => actions.push(Action::Reconfigure),
        Run::Exited { code, .. } if !member.is_main() || !never_restart.contains(&code) => {
            let wait = attempts.wait_after_exit(member);
            if wait.is_none() {
                actions.push(Action::StartContainer(member));
            }
            return wait;
        }
        _ => {}
    }
    None
}

fn stop(part: &Part) -> Vec<Action> {
    let member = part.member;
    if part.is(&Run::Paused) {
        vec![Action::Unpause(member), Action::StopContainer(member)]
    } else if part.is(&Run::Running) {
        vec![Action::StopContainer(member)]
    } else {
        Vec::new()
    }
}

/// Stops and removes a container; what the agent printed last is saved.
fn take_away(part: &Part) -> Vec<Action> {
    let mut actions = stop(part);
    if part.container.is_some() {
        actions.extend(part.member.is_main().then_some(Action::SaveLog));
        actions.push(Action::RemoveContainer(part.member));
    }
    actions
}

fn remove(observed: &Observed, purge: bool) -> Vec<Action> {
    let mut actions: Vec<Action> = observed.parts.iter().flat_map(take_away).collect();
    if observed.armed {
        actions.push(Action::DisarmEgress);
    }
    if observed.network != Presence::Absent {
        actions.push(Action::RemoveNetwork);
    }
    if purge && observed.volume.is_some() {
        actions.push(Action::RemoveVolume);
    }
    actions
}

#[cfg(test)]
mod tests;
