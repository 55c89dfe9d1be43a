//! What the API says of an instance: a function of what is wanted and what was observed.

use crabshack_shared::{
    agent_api::v1::{Desired, Phase},
    instance::InstanceStatus,
};

use crate::store::{InstanceRecord, Observation};

/// The state of a living instance in the API's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) word: InstanceStatus,
    /// Where it is on its way.
    pub(crate) phase: &'static str,
    /// Why, for people.
    pub(crate) reason: Option<String>,
    /// True while it is wanted and answers.
    pub(crate) ready: bool,
    /// True while its container may have its address.
    pub(crate) up: bool,
}

/// The word for a phase, as nodes report it.
pub(crate) fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Creating => "creating",
        Phase::Pulling => "pulling",
        Phase::Starting => "starting",
        Phase::Ready => "ready",
        Phase::Unhealthy => "unhealthy",
        Phase::Waiting => "waiting",
        Phase::Failed => "failed",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Deleted => "deleted",
        Phase::Unknown => "unknown",
    }
}

/// True when an observation answers the last wish, and not an earlier one.
pub(crate) fn answers(record: &InstanceRecord, observation: &Observation) -> bool {
    observation
        .report
        .generation
        .is_some_and(|generation| generation >= record.generation)
}

/// True when an observation answers the last wish about the instance's state.
fn answers_its_state(record: &InstanceRecord, observation: &Observation) -> bool {
    observation
        .report
        .generation
        .is_some_and(|generation| generation >= record.wish_generation)
}

/// True when the node follows a later wish than is recorded: the store is from an older dump.
pub(crate) fn is_outranked(record: &InstanceRecord, observation: &Observation) -> bool {
    observation
        .report
        .generation
        .is_some_and(|generation| generation > record.generation)
}

/// True while something that was changed waits for the next restart: its node says so, or has not
/// seen the change yet.
pub(crate) fn pending_change(record: &InstanceRecord, observation: Option<&Observation>) -> bool {
    let seen = observation.and_then(|observation| observation.report.generation);
    let unseen = record.spec_revision > 0 && seen.is_none_or(|seen| seen < record.spec_generation);
    observation.is_some_and(|observation| observation.report.pending_change) || (record.assignment.is_some() && unseen)
}

/// What the API says. `alive`: its node, if it has one, reports.
pub(crate) fn of(record: &InstanceRecord, observation: Option<&Observation>, alive: bool) -> Status {
    let mut status = match observation {
        Some(observation) if is_outranked(record, observation) => outranked(observation),
        _ => on_its_way(record, observation),
    };
    if !alive {
        status.reason = Some("its node does not report".to_owned());
    }
    status
}

/// What is true is all that can be said; it becomes ours again with the next wish.
fn outranked(observation: &Observation) -> Status {
    let phase = observation.report.phase;
    let word = match phase {
        Phase::Stopped => InstanceStatus::Stopped,
        Phase::Failed | Phase::Waiting | Phase::Deleted => InstanceStatus::Error,
        _ => InstanceStatus::Running,
    };
    Status {
        word,
        phase: phase_word(phase),
        reason: Some("its node follows a later wish than is recorded here: start or stop it to take over".to_owned()),
        ready: phase == Phase::Ready,
        up: is_up(phase),
    }
}

fn on_its_way(record: &InstanceRecord, observation: Option<&Observation>) -> Status {
    let current = observation.filter(|observation| answers(record, observation));
    let phase = observation.map(|observation| observation.report.phase);
    let wanted = record.desired == Desired::Running;
    // What is stopped stays so while something of it is changed.
    let answered = if wanted {
        current
    } else {
        observation.filter(|observation| answers_its_state(record, observation))
    };
    let word = match (wanted, answered.map(|answered| answered.report.phase)) {
        (false, Some(Phase::Stopped)) => InstanceStatus::Stopped,
        (false, _) if record.assignment.is_none() => InstanceStatus::Stopped,
        (false, Some(Phase::Failed)) => InstanceStatus::Error,
        (false, _) => InstanceStatus::Running,
        (true, Some(Phase::Failed | Phase::Waiting)) => InstanceStatus::Error,
        (true, _) if observation.is_some_and(|observation| observation.ready_once) => InstanceStatus::Running,
        (true, _) => InstanceStatus::Creating,
    };
    let phase_now = match (word, phase) {
        (InstanceStatus::Stopped, _) => "stopped",
        (_, None) if record.assignment.is_none() => "scheduling",
        (InstanceStatus::Error, Some(phase)) => phase_word(phase),
        _ if !wanted => "stopping",
        (_, None) => "creating",
        // The node has not acted on the new wish yet.
        (_, Some(Phase::Stopped | Phase::Failed | Phase::Waiting)) => "starting",
        // What answers is what a restart is about to end.
        (_, Some(Phase::Ready)) if !observation.is_some_and(|observation| answers_its_state(record, observation)) => "starting",
        (_, Some(phase)) => phase_word(phase),
    };
    let reason = if record.assignment.is_none() && wanted {
        Some("no node has room for it yet".to_owned())
    } else {
        answered.and_then(|answered| answered.report.reason.clone())
    };
    Status {
        word,
        phase: phase_now,
        reason,
        ready: wanted && phase == Some(Phase::Ready),
        up: phase.is_some_and(is_up),
    }
}

fn is_up(phase: Phase) -> bool {
    matches!(phase, Phase::Starting | Phase::Ready | Phase::Unhealthy | Phase::Stopping)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{observation, record};
    use InstanceStatus::{Creating, Error, Running, Stopped};

    const STOPPED: Desired = Desired::Stopped;
    const RUNNING: Desired = Desired::Running;

    #[test]
    fn status__should_follow_the_table() {
        // desired, phase, of the last wish, ready before -> status, phase
        let table = [
            (RUNNING, None, true, false, Creating, "creating"),
            (RUNNING, Some(Phase::Pulling), true, false, Creating, "pulling"),
            (RUNNING, Some(Phase::Starting), true, false, Creating, "starting"),
            (RUNNING, Some(Phase::Ready), true, true, Running, "ready"),
            (RUNNING, Some(Phase::Starting), true, true, Running, "starting"),
            (RUNNING, Some(Phase::Unhealthy), true, true, Running, "unhealthy"),
            (RUNNING, Some(Phase::Waiting), true, true, Error, "waiting"),
            (RUNNING, Some(Phase::Failed), true, false, Error, "failed"),
            (RUNNING, Some(Phase::Failed), false, true, Running, "starting"),
            (RUNNING, Some(Phase::Stopped), false, true, Running, "starting"),
            (RUNNING, Some(Phase::Stopped), true, true, Running, "starting"),
            (RUNNING, Some(Phase::Ready), false, true, Running, "starting"),
            (STOPPED, Some(Phase::Ready), false, true, Running, "stopping"),
            (STOPPED, Some(Phase::Stopping), true, true, Running, "stopping"),
            (STOPPED, Some(Phase::Stopped), false, true, Running, "stopping"),
            (STOPPED, Some(Phase::Stopped), true, true, Stopped, "stopped"),
            (STOPPED, Some(Phase::Failed), true, true, Error, "failed"),
        ];
        for (desired, phase, answers, ready_once, word, phase_now) in table {
            let record = record(desired, Some("node-000000000001"));
            let seen = phase.map(|phase| {
                let mut seen = observation(&record, phase, ready_once);
                if !answers {
                    seen.report.generation = None;
                }
                seen
            });
            let status = of(&record, seen.as_ref(), true);
            assert_eq!(
                (status.word, status.phase),
                (word, phase_now),
                "{desired:?} {phase:?} {answers}"
            );
        }
    }

    #[test]
    fn pending_change__should_last_until_the_node_has_seen_it_and_says_no() {
        let mut record = record(RUNNING, Some("node-000000000001"));
        let mut seen = observation(&record, Phase::Ready, true);
        assert!(!pending_change(&record, Some(&seen)));
        record.generation = record.generation.next();
        assert!(!pending_change(&record, Some(&seen)), "a wish that changes nothing of it");
        (record.spec_revision, record.spec_generation) = (1, record.generation);
        assert!(pending_change(&record, Some(&seen)) && pending_change(&record, None));
        seen.report.generation = Some(record.generation);
        assert!(!pending_change(&record, Some(&seen)));
        seen.report.pending_change = true;
        assert!(pending_change(&record, Some(&seen)));
        record.assignment = None;
        assert!(!pending_change(&record, None));
    }

    #[test]
    fn status__should_say_why_nothing_happens() {
        let waiting = of(&record(RUNNING, None), None, true);
        assert_eq!((waiting.word, waiting.phase), (Creating, "scheduling"));
        assert!(waiting.reason.unwrap().contains("room"));
        let silent = of(&record(RUNNING, Some("node-000000000001")), None, false);
        assert!(silent.reason.unwrap().contains("does not report"));
        assert_eq!(of(&record(STOPPED, None), None, true).word, Stopped);
    }

    #[test]
    fn status__should_tell_the_truth_when_the_store_is_older_than_the_node() {
        for (desired, phase, word) in [
            (RUNNING, Phase::Stopped, Stopped),
            (STOPPED, Phase::Ready, Running),
            (RUNNING, Phase::Deleted, Error),
        ] {
            let record = record(desired, Some("node-000000000001"));
            let mut seen = observation(&record, phase, true);
            seen.report.generation = Some(record.generation.next_epoch());
            let status = of(&record, Some(&seen), true);
            assert_eq!(status.word, word, "{phase:?}");
            assert_eq!(status.ready, phase == Phase::Ready);
            assert!(status.reason.unwrap().contains("take over"));
        }
    }

    #[test]
    fn status__should_not_change_with_what_is_changed_of_it() {
        for (desired, phase, word) in [(STOPPED, Phase::Stopped, Stopped), (RUNNING, Phase::Ready, Running)] {
            let mut record = record(desired, Some("node-000000000001"));
            let seen = observation(&record, phase, true);
            record.generation = record.generation.next();
            let status = of(&record, Some(&seen), true);
            assert_eq!((status.word, status.phase), (word, phase_word(phase)), "{desired:?}");
        }
    }

    #[test]
    fn status__should_be_ready_only_while_it_is_wanted() {
        let mut record = record(RUNNING, Some("node-000000000001"));
        let seen = observation(&record, Phase::Ready, true);
        assert!(of(&record, Some(&seen), true).ready);
        record.desired = STOPPED;
        assert!(!of(&record, Some(&seen), true).ready);
    }
}
