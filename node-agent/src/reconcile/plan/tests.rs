use crabshack_shared::resources::Bytes;

use super::*;
use crate::{fixtures, reconcile::attempts::Attempts, volume::VolumeUsage};

fn order(desired: Desired) -> InstanceOrder {
    fixtures::order(desired, 5)
}

fn container(run: Run) -> Container {
    Container {
        docker_id: "c".to_owned(),
        generation: Generation { epoch: 1, counter: 5 },
        restarts: 0,
        run,
        limits: LimitsState::Match,
        confined: true,
        pending: false,
    }
}

fn settled(run: Run) -> Observed {
    Observed {
        volume: Some(Volume::Plain),
        files: true,
        told: true,
        network: Presence::Matches,
        armed: true,
        image: true,
        container: Some(container(run)),
        ..Observed::default()
    }
}

fn actions(order: &InstanceOrder, observed: &Observed) -> Vec<Action> {
    plan(order, observed, &Attempts::default(), &[78]).actions
}

#[test]
fn plan__should_close_the_net_before_the_first_start() {
    use Action::*;
    let steps = actions(&order(Desired::Running), &Observed::default());
    assert_eq!(
        steps,
        [
            CreateVolume,
            WriteFiles,
            CreateNetwork,
            ArmEgress,
            PullImage,
            CreateContainer,
            StartContainer
        ]
    );
}

#[test]
fn plan__should_do_nothing_when_all_is_as_ordered() {
    assert!(actions(&order(Desired::Running), &settled(Run::Running)).is_empty());
    assert!(
        actions(
            &order(Desired::Stopped),
            &settled(Run::Exited {
                code: 0,
                out_of_memory: false
            })
        )
        .is_empty()
    );
    assert!(actions(&order(Desired::Deleted { purge: true }), &Observed::default()).is_empty());
    assert!(actions(&order(Desired::Stopped), &Observed::default()).is_empty());
}

#[test]
fn plan__should_repair_only_what_is_missing() {
    let disarmed = Observed {
        armed: false,
        ..settled(Run::Running)
    };
    assert_eq!(actions(&order(Desired::Running), &disarmed), [Action::ArmEgress]);
    let new_key = Observed {
        files: false,
        ..settled(Run::Running)
    };
    assert_eq!(
        actions(&order(Desired::Running), &new_key),
        [Action::WriteFiles],
        "read anew each time: nobody is told"
    );
    let untold = Observed {
        told: false,
        ..settled(Run::Running)
    };
    assert_eq!(actions(&order(Desired::Running), &untold), [Action::Reconfigure]);
    let stale_files = Observed {
        files: false,
        told: false,
        ..settled(Run::Running)
    };
    assert_eq!(
        actions(&order(Desired::Running), &stale_files),
        [Action::WriteFiles, Action::Reconfigure]
    );
    assert_eq!(
        actions(&order(Desired::Running), &settled(Run::Created)),
        [Action::StartContainer]
    );
}

#[test]
fn plan__should_make_a_container_again_for_a_restart_and_for_a_start_after_a_stop() {
    use Action::*;
    let restart = InstanceOrder {
        restarts: 1,
        ..order(Desired::Running)
    };
    assert_eq!(
        actions(&restart, &settled(Run::Running)),
        [StopContainer, SaveLog, RemoveContainer, CreateContainer, StartContainer]
    );
    let mut started = order(Desired::Running);
    started.generation.counter = 6;
    let stopped = settled(Run::Exited {
        code: 0,
        out_of_memory: false,
    });
    assert_eq!(
        actions(&started, &stopped),
        [SaveLog, RemoveContainer, CreateContainer, StartContainer]
    );
    assert!(
        actions(&started, &settled(Run::Running)).is_empty(),
        "a start of a running instance touched it"
    );
}

#[test]
fn plan__should_start_again_what_ended_by_itself_after_a_wait_unless_it_asks_for_a_person() {
    let ended = settled(Run::Exited {
        code: 1,
        out_of_memory: false,
    });
    let mut attempts = Attempts::default();
    attempts.note_exit("c", "then");
    let waiting = plan(&order(Desired::Running), &ended, &attempts, &[78]);
    assert!(waiting.actions.is_empty() && waiting.look_again.is_some());
    let refused = settled(Run::Exited {
        code: 78,
        out_of_memory: false,
    });
    assert_eq!(
        plan(&order(Desired::Running), &refused, &Attempts::default(), &[78]),
        Plan::default()
    );
}

#[test]
fn plan__should_keep_the_disk_unless_purge_is_asked() {
    use Action::*;
    let running = settled(Run::Running);
    let kept = [StopContainer, SaveLog, RemoveContainer, DisarmEgress, RemoveNetwork];
    assert_eq!(actions(&order(Desired::Deleted { purge: false }), &running), kept);
    assert_eq!(actions(&order(Desired::Elsewhere), &running), kept);
    let purged = actions(&order(Desired::Deleted { purge: true }), &running);
    assert_eq!(purged, [&kept[..], &[RemoveVolume]].concat());
}

#[test]
fn plan__should_change_limits_without_a_restart_unless_that_would_kill() {
    use Action::*;
    let limited = |run, limits| {
        let container = Container {
            limits,
            ..container(run)
        };
        Observed {
            container: Some(container),
            ..settled(Run::Running)
        }
    };
    let running = order(Desired::Running);
    assert_eq!(actions(&running, &limited(Run::Running, LimitsState::Differ)), [UpdateLimits]);
    assert_eq!(
        actions(&running, &limited(Run::Created, LimitsState::Differ)),
        [UpdateLimits, StartContainer]
    );
    assert!(actions(&running, &limited(Run::Running, LimitsState::TooLow { used: 1 })).is_empty());
    assert!(
        actions(
            &order(Desired::Stopped),
            &limited(
                Run::Exited {
                    code: 0,
                    out_of_memory: false
                },
                LimitsState::Differ
            )
        )
        .is_empty()
    );
    let restart = InstanceOrder { restarts: 1, ..running };
    let again = actions(&restart, &limited(Run::Running, LimitsState::Differ));
    assert_eq!(
        again,
        [StopContainer, SaveLog, RemoveContainer, CreateContainer, StartContainer]
    );
}

#[test]
fn plan__should_confine_a_container_that_somebody_let_loose() {
    use Action::*;
    let loose = |run| {
        let container = Container {
            confined: false,
            ..container(run)
        };
        Observed {
            container: Some(container),
            ..settled(Run::Running)
        }
    };
    let running = order(Desired::Running);
    assert_eq!(actions(&running, &loose(Run::Running)), [Confine]);
    assert_eq!(actions(&running, &loose(Run::Created)), [Confine, StartContainer]);
    let restart = InstanceOrder { restarts: 1, ..running };
    assert!(!actions(&restart, &loose(Run::Running)).contains(&Confine), "the next one is");
}

#[test]
fn plan__should_let_a_paused_container_go_on_also_to_stop_it() {
    use Action::*;
    let paused = settled(Run::Paused);
    assert_eq!(actions(&order(Desired::Running), &paused), [Unpause]);
    assert_eq!(actions(&order(Desired::Stopped), &paused), [Unpause, StopContainer]);
    let mut newer = order(Desired::Running);
    newer.generation.counter = 6;
    assert_eq!(actions(&newer, &paused), [Unpause], "a paused one runs: it is not made again");
}

#[test]
fn plan__should_leave_a_pending_change_to_the_next_container() {
    let pending = |run| {
        let container = Container {
            pending: true,
            ..container(run)
        };
        Observed {
            container: Some(container),
            ..settled(Run::Running)
        }
    };
    let order = order(Desired::Running);
    assert!(actions(&order, &pending(Run::Running)).is_empty());
    // It ended by itself: repair takes the same container again.
    assert_eq!(
        actions(
            &order,
            &pending(Run::Exited {
                code: 1,
                out_of_memory: false
            })
        ),
        [Action::StartContainer]
    );
    assert!(
        must_be_made_again(&order, &pending(Run::Created)),
        "one that never ran holds nothing"
    );
}

#[test]
fn plan__should_limit_a_volume_only_when_its_limit_can_become_the_ordered_one() {
    let volume = |used, limit| {
        let usage = VolumeUsage {
            used,
            limit,
            largest: Bytes::gibibytes(20),
            ..VolumeUsage::default()
        };
        Observed {
            volume: Some(Volume::Quota(usage)),
            ..settled(Run::Running)
        }
    };
    let order = order(Desired::Running);
    let ordered = order.spec.resources.storage;
    let steps = |observed: &Observed| actions(&order, observed);
    assert!(steps(&volume(Bytes::gibibytes(1), Some(ordered))).is_empty());
    assert_eq!(steps(&volume(Bytes::gibibytes(1), None)), [Action::LimitVolume]);
    assert_eq!(
        steps(&volume(Bytes::gibibytes(1), Some(Bytes::gibibytes(2)))),
        [Action::LimitVolume]
    );
    assert_eq!(
        steps(&volume(Bytes::gibibytes(1), Some(Bytes::gibibytes(20)))),
        [Action::LimitVolume]
    );
    assert!(
        steps(&volume(Bytes::gibibytes(11), Some(Bytes::gibibytes(20)))).is_empty(),
        "it holds more than is ordered"
    );
    assert!(steps(&settled(Run::Running)).is_empty(), "nothing bounds a plain folder");
    let unfinished = Observed {
        volume: Some(Volume::Unfinished),
        ..settled(Run::Created)
    };
    assert_eq!(steps(&unfinished), [Action::CreateVolume, Action::StartContainer]);
}

#[test]
fn plan__should_make_nothing_new_while_the_disk_is_nearly_full() {
    let order = order(Desired::Running);
    for pressure in [Pressure::Creates, Pressure::Pulls] {
        let new = Observed {
            pressure,
            ..Observed::default()
        };
        assert!(actions(&order, &new).is_empty() && held_back(&order, &new).is_some());
        let running = Observed {
            pressure,
            armed: false,
            ..settled(Run::Running)
        };
        assert_eq!(actions(&order, &running), [Action::ArmEgress], "what is here is repaired");
        assert_eq!(held_back(&order, &running), None);
    }
    let restart = InstanceOrder { restarts: 1, ..order };
    let unpulled = |pressure| Observed {
        pressure,
        image: false,
        ..settled(Run::Running)
    };
    assert!(actions(&restart, &unpulled(Pressure::Creates)).contains(&Action::PullImage));
    assert!(
        actions(&restart, &unpulled(Pressure::Pulls)).is_empty(),
        "it must not be stopped for an image that cannot come"
    );
}

/// Whatever is there, applying the plan's steps reaches a state in which there is nothing to do.
#[test]
fn plan__should_converge_from_every_state() {
    let bools = [false, true];
    let runs = [
        None,
        Some(Run::Created),
        Some(Run::Running),
        Some(Run::Paused),
        Some(Run::Exited {
            code: 1,
            out_of_memory: true,
        }),
        Some(Run::Broken),
    ];
    let limits = [LimitsState::Match, LimitsState::Differ, LimitsState::TooLow { used: 1 }];
    let wishes = [
        Desired::Running,
        Desired::Stopped,
        Desired::Elsewhere,
        Desired::Deleted { purge: false },
        Desired::Deleted { purge: true },
    ];
    for (desired, restarts) in wishes.into_iter().flat_map(|desired| [(desired, 0), (desired, 1)]) {
        for volume in [None, Some(Volume::Unfinished), Some(Volume::Plain)] {
            for files in bools {
                for armed in bools {
                    for image in bools {
                        for network in [Presence::Absent, Presence::Matches, Presence::Differs] {
                            for run in &runs {
                                for (told, pending, limits) in combinations(&limits) {
                                    let container = run.clone().map(|run| Container {
                                        limits,
                                        pending,
                                        ..container(run)
                                    });
                                    let mut observed = Observed {
                                        volume: volume.clone(),
                                        files,
                                        told,
                                        network,
                                        armed,
                                        image,
                                        container,
                                        ..Observed::default()
                                    };
                                    let order = InstanceOrder {
                                        restarts,
                                        ..order(desired)
                                    };
                                    for action in actions(&order, &observed) {
                                        happen(&mut observed, action, &order);
                                    }
                                    assert!(actions(&order, &observed).is_empty(), "{desired:?} {observed:?}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn combinations(limits: &[LimitsState]) -> Vec<(bool, bool, LimitsState)> {
    let flags = [(false, false), (false, true), (true, false), (true, true)];
    flags
        .iter()
        .flat_map(|(told, pending)| limits.iter().map(|limits| (*told, *pending, *limits)))
        .collect()
}

fn happen(observed: &mut Observed, action: Action, order: &InstanceOrder) {
    let made = Container {
        generation: order.generation,
        restarts: order.restarts,
        ..container(Run::Created)
    };
    let set = |observed: &mut Observed, run| {
        if let Some(container) = &mut observed.container {
            container.run = run;
        }
    };
    match action {
        Action::CreateVolume | Action::LimitVolume => observed.volume = Some(Volume::Plain),
        Action::WriteFiles => observed.files = true,
        Action::CreateNetwork => observed.network = Presence::Matches,
        Action::ArmEgress => observed.armed = true,
        Action::PullImage => observed.image = true,
        Action::CreateContainer => observed.container = Some(made),
        Action::UpdateLimits => observed
            .container
            .iter_mut()
            .for_each(|container| container.limits = LimitsState::Match),
        Action::Confine => observed.container.iter_mut().for_each(|container| container.confined = true),
        Action::Unpause => set(observed, Run::Running),
        // It reads its files as it starts.
        Action::StartContainer => {
            set(observed, Run::Running);
            observed.told = true;
        }
        Action::Reconfigure => observed.told = true,
        Action::SaveLog => {}
        Action::StopContainer => set(
            observed,
            Run::Exited {
                code: 143,
                out_of_memory: false,
            },
        ),
        Action::RemoveContainer => observed.container = None,
        Action::DisarmEgress => observed.armed = false,
        Action::RemoveNetwork => observed.network = Presence::Absent,
        Action::RemoveVolume => observed.volume = None,
    }
}
