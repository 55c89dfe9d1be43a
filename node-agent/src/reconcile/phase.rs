//! What to report of one instance: a pure function of the order and of what is there.

use crabshack_shared::agent_api::v1::{Desired, InstanceOrder, Phase};

use super::{
    attempts::Attempts,
    plan::{Action, Container, LimitsState, Observed, Presence, Run, held_back, must_be_made_again},
    probe::Health,
};

/// The phase, and why.
pub(crate) fn phase(
    order: &InstanceOrder,
    observed: &Observed,
    attempts: &Attempts,
    health: Health,
    doing: Option<Action>,
    never_restart: &[i64],
) -> (Phase, Option<String>) {
    let reason = attempts.reason().map(str::to_owned);
    if attempts.needs_person() {
        return (Phase::Failed, reason);
    }
    match order.desired {
        Desired::Running => running(order, observed, attempts, health, doing, never_restart),
        Desired::Stopped => match &observed.container {
            Some(container) if container.run.is_up() => (Phase::Stopping, reason),
            _ => (Phase::Stopped, reason),
        },
        Desired::Elsewhere | Desired::Deleted { .. } => {
            let purge = matches!(order.desired, Desired::Deleted { purge: true });
            let gone = observed.container.is_none() && observed.network == Presence::Absent && !observed.armed;
            if gone && !(purge && observed.volume.is_some()) {
                (Phase::Deleted, reason)
            } else {
                (Phase::Stopping, reason)
            }
        }
    }
}

fn running(
    order: &InstanceOrder,
    observed: &Observed,
    attempts: &Attempts,
    health: Health,
    doing: Option<Action>,
    never_restart: &[i64],
) -> (Phase, Option<String>) {
    let reason = attempts.reason().map(str::to_owned);
    if doing == Some(Action::PullImage) {
        return (Phase::Pulling, reason);
    }
    let container = match &observed.container {
        Some(container) if !must_be_made_again(order, observed) => container,
        _ => {
            return (
                Phase::Creating,
                reason.or_else(|| held_back(order, observed).map(str::to_owned)),
            );
        }
    };
    match &container.run {
        Run::Running => match health {
            Health::Ready => (Phase::Ready, remark(order, container, attempts)),
            Health::Lost => (
                Phase::Unhealthy,
                Some("it does not answer its health check any more".to_owned()),
            ),
            Health::Unknown => (Phase::Starting, reason),
        },
        Run::Paused => (
            Phase::Unhealthy,
            Some("it was paused by somebody and is let go on".to_owned()),
        ),
        Run::Exited { code, out_of_memory } => {
            let ending = if *out_of_memory {
                format!(
                    "it was killed for exceeding its memory limit of {}",
                    order.spec.resources.memory
                )
            } else {
                format!("it exited with code {code}")
            };
            if never_restart.contains(code) {
                (
                    Phase::Failed,
                    Some(format!(
                        "{ending}, which means that it cannot start with its configuration; see its log"
                    )),
                )
            } else if attempts.was_stopped() {
                (Phase::Starting, reason)
            } else if attempts.is_crash_loop() {
                (Phase::Waiting, Some(format!("{ending} again and again; see its log")))
            } else {
                (Phase::Starting, Some(format!("{ending} and is started again")))
            }
        }
        Run::Created | Run::Broken => (Phase::Creating, reason),
    }
}

/// What people should know of an instance that answers.
fn remark(order: &InstanceOrder, container: &Container, attempts: &Attempts) -> Option<String> {
    let memory = order.spec.resources.memory;
    if let LimitsState::TooLow { used } = container.limits {
        return Some(format!(
            "mem_limit {memory} is less than the {}m it uses now, so the old limits stay until it uses less or is restarted",
            used.div_ceil(1 << 20)
        ));
    }
    attempts.has_memory_kill().then(|| {
        format!("a process of it was killed at the memory limit of {memory}; it runs on: raise mem_limit if that comes again")
    })
}

#[cfg(test)]
mod tests {
    use crabshack_shared::generation::Generation;

    use super::*;
    use crate::{fixtures, volume::Volume};

    fn observed(run: Run, restarts: u64) -> Observed {
        let container = Container {
            docker_id: "c".to_owned(),
            generation: Generation { epoch: 1, counter: 1 },
            restarts,
            run,
            limits: LimitsState::Match,
            confined: true,
            pending: false,
        };
        Observed {
            volume: Some(Volume::Plain),
            files: true,
            told: true,
            network: Presence::Matches,
            armed: true,
            image: true,
            container: Some(container),
            ..Observed::default()
        }
    }

    fn of(order: &InstanceOrder, observed: &Observed, health: Health) -> Phase {
        phase(order, observed, &Attempts::default(), health, None, &[78]).0
    }

    #[test]
    fn phase__should_not_call_the_old_container_ready_after_a_restart_was_asked() {
        let mut order = fixtures::order(Desired::Running, 1);
        assert_eq!(of(&order, &observed(Run::Running, 0), Health::Ready), Phase::Ready);
        order.restarts = 1;
        assert_eq!(of(&order, &observed(Run::Running, 0), Health::Ready), Phase::Creating);
    }

    #[test]
    fn phase__should_tell_a_crash_from_a_wish() {
        let order = fixtures::order(Desired::Running, 1);
        let exited = |code| {
            observed(
                Run::Exited {
                    code,
                    out_of_memory: false,
                },
                0,
            )
        };
        assert_eq!(of(&order, &exited(1), Health::Unknown), Phase::Starting);
        assert_eq!(of(&order, &exited(78), Health::Unknown), Phase::Failed);
        assert_eq!(
            of(&fixtures::order(Desired::Stopped, 1), &exited(143), Health::Unknown),
            Phase::Stopped
        );
    }

    #[test]
    fn phase__should_stay_ready_and_say_what_memory_lacks() {
        let order = fixtures::order(Desired::Running, 1);
        let mut attempts = Attempts::default();
        let mut observed = observed(Run::Running, 0);
        let of = |observed: &Observed, attempts: &Attempts| phase(&order, observed, attempts, Health::Ready, None, &[78]);
        assert_eq!(of(&observed, &attempts), (Phase::Ready, None));
        attempts.note_memory_kill();
        let (phase, reason) = of(&observed, &attempts);
        assert!(phase == Phase::Ready && reason.is_some_and(|reason| reason.contains("killed at the memory limit of 2g")));
        observed.container.as_mut().unwrap().limits = LimitsState::TooLow { used: (3 << 30) - 1 };
        let (phase, reason) = of(&observed, &attempts);
        assert!(phase == Phase::Ready && reason.is_some_and(|reason| reason.contains("2g is less than the 3072m")));
    }

    #[test]
    fn phase__should_call_deleted_only_what_is_gone() {
        let purge = fixtures::order(Desired::Deleted { purge: true }, 1);
        assert_eq!(
            of(
                &purge,
                &Observed {
                    volume: Some(Volume::Plain),
                    ..Observed::default()
                },
                Health::Unknown
            ),
            Phase::Stopping
        );
        assert_eq!(of(&purge, &Observed::default(), Health::Unknown), Phase::Deleted);
        let keep = fixtures::order(Desired::Deleted { purge: false }, 1);
        assert_eq!(
            of(
                &keep,
                &Observed {
                    volume: Some(Volume::Plain),
                    ..Observed::default()
                },
                Health::Unknown
            ),
            Phase::Deleted
        );
    }
}
