//! What to do next: a pure function of the order and of what is there. Create, repair, restart and
//! delete are this one function.

use std::time::Duration;

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceOrder, Pressure},
    generation::Generation,
};

use super::attempts::Attempts;
use crate::volume::Volume;

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
    PullImage,
    CreateContainer,
    UpdateLimits,
    Confine,
    Unpause,
    StartContainer,
    Reconfigure,
    StopContainer,
    SaveLog,
    RemoveContainer,
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
            Self::PullImage => "PullImage",
            Self::CreateContainer => "CreateContainer",
            Self::UpdateLimits => "UpdateLimits",
            Self::Confine => "Confine",
            Self::Unpause => "Unpause",
            Self::StartContainer => "StartContainer",
            Self::Reconfigure => "Reconfigure",
            Self::StopContainer => "StopContainer",
            Self::SaveLog => "SaveLog",
            Self::RemoveContainer => "RemoveContainer",
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
    /// The image is on the node; only looked up when a container must be made.
    pub(crate) image: bool,
    /// What the node's disks have no room for.
    pub(crate) pressure: Pressure,
    pub(crate) container: Option<Container>,
}

/// Whether something is there, and as it should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    #[default]
    Absent,
    Matches,
    Differs,
}

/// The container, as far as decisions need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) docker_id: String,
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
    /// Docker is removing it, or failed to.
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

/// The container cannot serve the order: it was made for an earlier restart, ended under an earlier
/// order, never ran and would be made differently now, or its network is not the one it was made for.
pub(crate) fn must_be_made_again(order: &InstanceOrder, observed: &Observed) -> bool {
    observed.container.as_ref().is_none_or(|container| {
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
    let pulls = must_be_made_again(order, observed) && !observed.image;
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
            actions: stop(observed),
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
    let again = must_be_made_again(order, observed);
    let mut actions = Vec::new();
    if again && observed.container.is_some() {
        actions.append(&mut stop(observed));
        actions.extend([Action::SaveLog, Action::RemoveContainer]);
    }
    // A frozen one can neither be reconfigured nor answer.
    if !again
        && observed
            .container
            .as_ref()
            .is_some_and(|container| container.run == Run::Paused)
    {
        actions.push(Action::Unpause);
    }
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
    if !again
        && observed
            .container
            .as_ref()
            .is_some_and(|container| container.limits == LimitsState::Differ)
    {
        actions.push(Action::UpdateLimits);
    }
    if !again && observed.container.as_ref().is_some_and(|container| !container.confined) {
        actions.push(Action::Confine);
    }
    let mut look_again = None;
    match observed.container.as_ref().map(|container| &container.run) {
        _ if again => {
            if !observed.image {
                actions.push(Action::PullImage);
            }
            actions.extend([Action::CreateContainer, Action::StartContainer]);
        }
        Some(Run::Created) => actions.push(Action::StartContainer),
        Some(Run::Running | Run::Paused) if !observed.told => actions.push(Action::Reconfigure),
        Some(Run::Exited { code, .. }) if !never_restart.contains(code) => match attempts.wait_after_exit() {
            Some(wait) => look_again = Some(wait),
            None => actions.push(Action::StartContainer),
        },
        _ => {}
    }
    Plan { actions, look_again }
}

fn stop(observed: &Observed) -> Vec<Action> {
    match &observed.container {
        Some(container) if container.run == Run::Paused => vec![Action::Unpause, Action::StopContainer],
        Some(container) if container.run == Run::Running => vec![Action::StopContainer],
        _ => Vec::new(),
    }
}

fn remove(observed: &Observed, purge: bool) -> Vec<Action> {
    let mut actions = stop(observed);
    if observed.container.is_some() {
        actions.extend([Action::SaveLog, Action::RemoveContainer]);
    }
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
