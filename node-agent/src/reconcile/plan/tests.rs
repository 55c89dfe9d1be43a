use crabshack_shared::resources::Bytes;

use super::*;
use crate::{fixtures, reconcile::attempts::Attempts, volume::VolumeUsage};

fn order(desired: Desired) -> InstanceOrder {
    fixtures::order(desired, 5)
}

fn container(run: Run) -> Container {
    Container {
        docker_id: "c".to_owned(),
        finished_at: None,
        generation: Generation { epoch: 1, counter: 5 },
        restarts: 0,
        run,
        limits: LimitsState::Match,
        confined: true,
        pending: false,
    }
}

fn part(member: Member, container: Option<Container>) -> Part {
    Part {
        member,
        wanted: true,
        image: true,
        container,
    }
}

/// An instance of which nothing is there yet.
fn nothing() -> Observed {
    Observed {
        parts: vec![Part {
            image: false,
            ..part(Member::Main, None)
        }],
        ..Observed::default()
    }
}

fn with(container: Container) -> Observed {
    Observed {
        parts: vec![part(Member::Main, Some(container))],
        ..settled(Run::Running)
    }
}

fn settled(run: Run) -> Observed {
    Observed {
        volume: Some(Volume::Plain),
        files: true,
        told: true,
        network: Presence::Matches,
        armed: true,
        parts: vec![part(Member::Main, Some(container(run)))],
        ..Observed::default()
    }
}

fn actions(order: &InstanceOrder, observed: &Observed) -> Vec<Action> {
    plan(order, observed, &Attempts::default(), &[78]).actions
}

#[test]
fn plan__should_close_the_net_before_the_first_start() {
    use Action::*;
    let steps = actions(&order(Desired::Running), &nothing());
    assert_eq!(
        steps,
        [
            CreateVolume,
            WriteFiles,
            CreateNetwork,
            ArmEgress,
            PullImage(Member::Main),
            CreateContainer(Member::Main),
            StartContainer(Member::Main)
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
        [Action::StartContainer(Member::Main)]
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
        [
            StopContainer(Member::Main),
            SaveLog,
            RemoveContainer(Member::Main),
            CreateContainer(Member::Main),
            StartContainer(Member::Main)
        ]
    );
    let mut started = order(Desired::Running);
    started.generation.counter = 6;
    let stopped = settled(Run::Exited {
        code: 0,
        out_of_memory: false,
    });
    assert_eq!(
        actions(&started, &stopped),
        [
            SaveLog,
            RemoveContainer(Member::Main),
            CreateContainer(Member::Main),
            StartContainer(Member::Main)
        ]
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
    attempts.note_exit(Member::Main, "c", "then");
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
    let kept = [
        StopContainer(Member::Main),
        SaveLog,
        RemoveContainer(Member::Main),
        DisarmEgress,
        RemoveNetwork,
    ];
    assert_eq!(actions(&order(Desired::Deleted { purge: false }), &running), kept);
    assert_eq!(actions(&order(Desired::Elsewhere), &running), kept);
    let purged = actions(&order(Desired::Deleted { purge: true }), &running);
    assert_eq!(purged, [&kept[..], &[RemoveVolume]].concat());
}

#[test]
fn plan__should_change_limits_without_a_restart_unless_that_would_kill() {
    use Action::*;
    let limited = |run, limits| {
        with(Container {
            limits,
            ..container(run)
        })
    };
    let running = order(Desired::Running);
    assert_eq!(
        actions(&running, &limited(Run::Running, LimitsState::Differ)),
        [UpdateLimits(Member::Main)]
    );
    assert_eq!(
        actions(&running, &limited(Run::Created, LimitsState::Differ)),
        [UpdateLimits(Member::Main), StartContainer(Member::Main)]
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
        [
            StopContainer(Member::Main),
            SaveLog,
            RemoveContainer(Member::Main),
            CreateContainer(Member::Main),
            StartContainer(Member::Main)
        ]
    );
}

#[test]
fn plan__should_confine_a_container_that_somebody_let_loose() {
    use Action::*;
    let loose = |run| {
        with(Container {
            confined: false,
            ..container(run)
        })
    };
    let running = order(Desired::Running);
    assert_eq!(actions(&running, &loose(Run::Running)), [Confine(Member::Main)]);
    assert_eq!(
        actions(&running, &loose(Run::Created)),
        [Confine(Member::Main), StartContainer(Member::Main)]
    );
    let restart = InstanceOrder { restarts: 1, ..running };
    assert!(
        !actions(&restart, &loose(Run::Running)).contains(&Confine(Member::Main)),
        "the next one is"
    );
}

#[test]
fn plan__should_let_a_paused_container_go_on_also_to_stop_it() {
    use Action::*;
    let paused = settled(Run::Paused);
    assert_eq!(actions(&order(Desired::Running), &paused), [Unpause(Member::Main)]);
    assert_eq!(
        actions(&order(Desired::Stopped), &paused),
        [Unpause(Member::Main), StopContainer(Member::Main)]
    );
    let mut newer = order(Desired::Running);
    newer.generation.counter = 6;
    assert_eq!(
        actions(&newer, &paused),
        [Unpause(Member::Main)],
        "a paused one runs: it is not made again"
    );
}

#[test]
fn plan__should_leave_a_pending_change_to_the_next_container() {
    let pending = |run| {
        with(Container {
            pending: true,
            ..container(run)
        })
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
        [Action::StartContainer(Member::Main)]
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
    assert_eq!(
        steps(&unfinished),
        [Action::CreateVolume, Action::StartContainer(Member::Main)]
    );
}

#[test]
fn plan__should_make_nothing_new_while_the_disk_is_nearly_full() {
    let order = order(Desired::Running);
    for pressure in [Pressure::Creates, Pressure::Pulls] {
        let new = Observed { pressure, ..nothing() };
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
    let unpulled = |pressure| {
        let mut unpulled = Observed {
            pressure,
            ..settled(Run::Running)
        };
        unpulled.parts[0].image = false;
        unpulled
    };
    assert!(actions(&restart, &unpulled(Pressure::Creates)).contains(&Action::PullImage(Member::Main)));
    assert!(
        actions(&restart, &unpulled(Pressure::Pulls)).is_empty(),
        "it must not be stopped for an image that cannot come"
    );
}

#[test]
fn plan__should_make_and_mend_a_sidecar_beside_what_runs() {
    use Action::*;
    let beside = |sidecar: Option<Container>| {
        let mut observed = settled(Run::Running);
        observed.parts.push(part(Member::Ssh, sidecar));
        observed
    };
    let running = order(Desired::Running);
    let made = [CreateContainer(Member::Ssh), StartContainer(Member::Ssh)];
    assert_eq!(actions(&running, &beside(None)), made);
    assert!(actions(&running, &beside(Some(container(Run::Running)))).is_empty());
    let (code, out_of_memory) = (78, false);
    let ended = beside(Some(container(Run::Exited { code, out_of_memory })));
    assert_eq!(
        actions(&running, &ended),
        [StartContainer(Member::Ssh)],
        "code 78 means nothing of it"
    );
    let mut attempts = Attempts::default();
    attempts.note_exit(Member::Ssh, "c", "then");
    let waiting = plan(&running, &ended, &attempts, &[78]);
    assert!(waiting.actions.is_empty() && waiting.look_again.is_some());
    let both = beside(Some(container(Run::Running)));
    let restart = InstanceOrder {
        restarts: 1,
        ..running.clone()
    };
    assert_eq!(
        actions(&restart, &both),
        [
            StopContainer(Member::Main),
            SaveLog,
            RemoveContainer(Member::Main),
            StopContainer(Member::Ssh),
            RemoveContainer(Member::Ssh),
            CreateContainer(Member::Main),
            StartContainer(Member::Main),
            CreateContainer(Member::Ssh),
            StartContainer(Member::Ssh),
        ]
    );
    let mut surplus = both.clone();
    surplus.parts[1].wanted = false;
    assert_eq!(
        actions(&running, &surplus),
        [StopContainer(Member::Ssh), RemoveContainer(Member::Ssh)],
        "an earlier recipe had it"
    );
    assert_eq!(
        actions(&order(Desired::Stopped), &both),
        [StopContainer(Member::Main), StopContainer(Member::Ssh)]
    );
}

/// Whatever is there, applying the plan's steps reaches a state in which there is nothing to do.
#[test]
fn plan__should_converge_from_every_state() {
    for (desired, restarts) in WISHES.into_iter().flat_map(|desired| [(desired, 0), (desired, 1)]) {
        let order = InstanceOrder {
            restarts,
            ..order(desired)
        };
        for surroundings in surroundings() {
            for main in parts(Member::Main) {
                let observed = Observed {
                    parts: vec![main],
                    ..surroundings.clone()
                };
                converge(&order, observed);
            }
        }
        for main in parts(Member::Main) {
            for sidecar in parts(Member::Ssh) {
                let observed = Observed {
                    parts: vec![main.clone(), sidecar],
                    ..settled(Run::Running)
                };
                converge(&order, observed);
            }
        }
    }
}

const WISHES: [Desired; 5] = [
    Desired::Running,
    Desired::Stopped,
    Desired::Elsewhere,
    Desired::Deleted { purge: false },
    Desired::Deleted { purge: true },
];
const BOOLS: [bool; 2] = [false, true];

fn converge(order: &InstanceOrder, mut observed: Observed) {
    for action in actions(order, &observed) {
        happen(&mut observed, action, order);
    }
    assert!(actions(order, &observed).is_empty(), "{:?} {observed:?}", order.desired);
}

/// Everything around the containers, in every state.
fn surroundings() -> Vec<Observed> {
    let mut all = Vec::new();
    for volume in [None, Some(Volume::Unfinished), Some(Volume::Plain)] {
        for network in [Presence::Absent, Presence::Matches, Presence::Differs] {
            for (files, told, armed) in BOOLS
                .into_iter()
                .flat_map(|files| BOOLS.map(|told| (files, told)))
                .flat_map(|(files, told)| BOOLS.map(|armed| (files, told, armed)))
            {
                all.push(Observed {
                    volume: volume.clone(),
                    files,
                    told,
                    network,
                    armed,
                    ..Observed::default()
                });
            }
        }
    }
    all
}

/// A container in every state.
fn parts(member: Member) -> Vec<Part> {
    let ended = Run::Exited {
        code: 1,
        out_of_memory: true,
    };
    let limits = [LimitsState::Match, LimitsState::Differ, LimitsState::TooLow { used: 1 }];
    let mut containers = vec![None];
    for run in [Run::Created, Run::Running, Run::Paused, ended, Run::Broken] {
        for (limits, pending) in limits.into_iter().flat_map(|limits| BOOLS.map(|pending| (limits, pending))) {
            containers.push(Some(Container {
                limits,
                pending,
                ..container(run.clone())
            }));
        }
    }
    let images = containers
        .into_iter()
        .flat_map(|container| BOOLS.map(|image| (image, container.clone())));
    images
        .map(|(image, container)| Part {
            image,
            ..part(member, container)
        })
        .collect()
}

fn happen(observed: &mut Observed, action: Action, order: &InstanceOrder) {
    let made = Container {
        generation: order.generation,
        restarts: order.restarts,
        ..container(Run::Created)
    };
    let ended = Run::Exited {
        code: 143,
        out_of_memory: false,
    };
    let part = |observed: &mut Observed, member: Member, change: &dyn Fn(&mut Part)| {
        let part = observed.parts.iter_mut().find(|part| part.member == member);
        change(part.expect("a step for no container of it"));
    };
    let set = |observed: &mut Observed, member: Member, change: &dyn Fn(&mut Container)| {
        part(observed, member, &|part| {
            change(part.container.as_mut().expect("a step for no container"))
        });
    };
    match action {
        Action::CreateVolume | Action::LimitVolume => observed.volume = Some(Volume::Plain),
        Action::WriteFiles => observed.files = true,
        Action::CreateNetwork => observed.network = Presence::Matches,
        Action::ArmEgress => observed.armed = true,
        Action::PullImage(member) => part(observed, member, &|part| part.image = true),
        Action::CreateContainer(member) => part(observed, member, &|part| part.container = Some(made.clone())),
        Action::UpdateLimits(member) => set(observed, member, &|container| container.limits = LimitsState::Match),
        Action::Confine(member) => set(observed, member, &|container| container.confined = true),
        Action::Unpause(member) => set(observed, member, &|container| container.run = Run::Running),
        Action::StartContainer(member) => {
            set(observed, member, &|container| container.run = Run::Running);
            // It reads its files as it starts.
            observed.told |= member.is_main();
        }
        Action::Reconfigure => observed.told = true,
        Action::SaveLog => {}
        Action::StopContainer(member) => set(observed, member, &|container| container.run = ended.clone()),
        Action::RemoveContainer(member) => part(observed, member, &|part| part.container = None),
        Action::DisarmEgress => observed.armed = false,
        Action::RemoveNetwork => observed.network = Presence::Absent,
        Action::RemoveVolume => observed.volume = None,
    }
}
