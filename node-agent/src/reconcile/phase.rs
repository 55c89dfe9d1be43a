//! What to report of one instance: a pure function of the order and of what is there.

use crabshack_shared::agent_api::v1::{Desired, InstanceOrder, Phase};

use super::{
    attempts::Attempts,
    plan::{Action, Container, LimitsState, Observed, Presence, Run, held_back, is_stale, must_be_made_again},
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
        Desired::Stopped if observed.containers().any(|container| container.run.is_up()) => (Phase::Stopping, reason),
        Desired::Stopped => (Phase::Stopped, reason),
        Desired::Elsewhere | Desired::Deleted { .. } => {
            let purge = matches!(order.desired, Desired::Deleted { purge: true });
            let gone = observed.containers().next().is_none() && observed.network == Presence::Absent && !observed.armed;
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
    if matches!(doing, Some(Action::PullImage(_))) {
        return (Phase::Pulling, reason);
    }
    let container = match observed.main() {
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
            Health::Ready => match sidecars(order, observed) {
                Sidecars::Run => (Phase::Ready, remark(order, container, attempts)),
                Sidecars::Made => (Phase::Starting, reason),
                Sidecars::Ended(remark) => (Phase::Ready, Some(remark)),
            },
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

/// How the containers beside the main one are.
enum Sidecars {
    /// All that there are.
    Run,
    /// One of them is still being made.
    Made,
    /// One of them ended, and is started again; the instance answers all the same.
    Ended(String),
}

fn sidecars(order: &InstanceOrder, observed: &Observed) -> Sidecars {
    let mut ended = None;
    for part in observed.parts.iter().filter(|part| part.wanted && !part.member.is_main()) {
        let name = part.member.name();
        match part.container.as_ref() {
            Some(container) if !is_stale(order, observed, Some(container)) => match &container.run {
                Run::Exited { code, .. } => {
                    ended = Some(format!("its container `{name}` exited with code {code} and is started again"));
                }
                Run::Paused => ended = Some(format!("its container `{name}` was paused by somebody and is let go on")),
                Run::Running => {}
                Run::Created | Run::Broken => return Sidecars::Made,
            },
            _ => return Sidecars::Made,
        }
    }
    ended.map_or(Sidecars::Run, Sidecars::Ended)
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
    use crate::{fixtures, recipe::Member, reconcile::plan::Part, volume::Volume};

    fn observed(run: Run, restarts: u64) -> Observed {
        let container = Container {
            docker_id: "c".to_owned(),
            finished_at: None,
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
            parts: vec![Part {
                member: Member::Main,
                wanted: true,
                image: true,
                container: Some(container),
            }],
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
        observed.parts[0].container.as_mut().unwrap().limits = LimitsState::TooLow { used: (3 << 30) - 1 };
        let (phase, reason) = of(&observed, &attempts);
        assert!(phase == Phase::Ready && reason.is_some_and(|reason| reason.contains("2g is less than the 3072m")));
    }

    #[test]
    fn phase__should_wait_for_a_sidecar_once_and_go_on_without_it() {
        let order = fixtures::order(Desired::Running, 1);
        let with = |run: Option<Run>| {
            let mut observed = observed(Run::Running, 0);
            let mut sidecar = observed.parts[0].clone();
            sidecar.member = Member::Ssh;
            sidecar.container = run.map(|run| Container {
                run,
                ..sidecar.container.unwrap()
            });
            observed.parts.push(sidecar);
            phase(&order, &observed, &Attempts::default(), Health::Ready, None, &[])
        };
        let (code, out_of_memory) = (255, false);
        assert_eq!(with(None).0, Phase::Starting);
        assert_eq!(with(Some(Run::Created)).0, Phase::Starting);
        assert_eq!(with(Some(Run::Running)), (Phase::Ready, None));
        let (phase, reason) = with(Some(Run::Exited { code, out_of_memory }));
        assert!(phase == Phase::Ready && reason.is_some_and(|reason| reason.contains("`ssh` exited with code 255")));
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
