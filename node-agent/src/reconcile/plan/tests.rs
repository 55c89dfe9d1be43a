use super::*;
use crate::{fixtures, reconcile::attempts::Attempts};

fn order(desired: Desired) -> InstanceOrder {
    fixtures::order(desired, 5)
}

fn container(run: Run) -> Container {
    Container { docker_id: "c".to_owned(), generation: Generation { epoch: 1, counter: 5 }, restarts: 0, run }
}

fn settled(run: Run) -> Observed {
    Observed { volume: true, files: true, network: Presence::Matches, armed: true, image: true, container: Some(container(run)) }
}

fn actions(order: &InstanceOrder, observed: &Observed) -> Vec<Action> {
    plan(order, observed, &Attempts::default(), &[78]).actions
}

#[test]
fn plan__should_close_the_net_before_the_first_start() {
    use Action::*;
    let steps = actions(&order(Desired::Running), &Observed::default());
    assert_eq!(steps, [CreateVolume, WriteFiles, CreateNetwork, ArmEgress, PullImage, CreateContainer, StartContainer]);
}

#[test]
fn plan__should_do_nothing_when_all_is_as_ordered() {
    assert!(actions(&order(Desired::Running), &settled(Run::Running)).is_empty());
    assert!(actions(&order(Desired::Stopped), &settled(Run::Exited { code: 0, out_of_memory: false })).is_empty());
    assert!(actions(&order(Desired::Deleted { purge: true }), &Observed::default()).is_empty());
    assert!(actions(&order(Desired::Stopped), &Observed::default()).is_empty());
}

#[test]
fn plan__should_repair_only_what_is_missing() {
    let disarmed = Observed { armed: false, ..settled(Run::Running) };
    assert_eq!(actions(&order(Desired::Running), &disarmed), [Action::ArmEgress]);
    let stale_files = Observed { files: false, ..settled(Run::Running) };
    assert_eq!(actions(&order(Desired::Running), &stale_files), [Action::WriteFiles, Action::Reconfigure]);
    assert_eq!(actions(&order(Desired::Running), &settled(Run::Created)), [Action::StartContainer]);
}

#[test]
fn plan__should_make_a_container_again_for_a_restart_and_for_a_start_after_a_stop() {
    use Action::*;
    let restart = InstanceOrder { restarts: 1, ..order(Desired::Running) };
    assert_eq!(actions(&restart, &settled(Run::Running)), [StopContainer, RemoveContainer, CreateContainer, StartContainer]);
    let mut started = order(Desired::Running);
    started.generation.counter = 6;
    let stopped = settled(Run::Exited { code: 0, out_of_memory: false });
    assert_eq!(actions(&started, &stopped), [RemoveContainer, CreateContainer, StartContainer]);
    assert!(actions(&started, &settled(Run::Running)).is_empty(), "a start of a running instance touched it");
}

#[test]
fn plan__should_start_again_what_ended_by_itself_after_a_wait_unless_it_asks_for_a_person() {
    let ended = settled(Run::Exited { code: 1, out_of_memory: false });
    let mut attempts = Attempts::default();
    attempts.note_exit("c", "then");
    let waiting = plan(&order(Desired::Running), &ended, &attempts, &[78]);
    assert!(waiting.actions.is_empty() && waiting.look_again.is_some());
    let refused = settled(Run::Exited { code: 78, out_of_memory: false });
    assert_eq!(plan(&order(Desired::Running), &refused, &Attempts::default(), &[78]), Plan::default());
}

#[test]
fn plan__should_keep_the_disk_unless_purge_is_asked() {
    use Action::*;
    let running = settled(Run::Running);
    let kept = [StopContainer, RemoveContainer, DisarmEgress, RemoveNetwork];
    assert_eq!(actions(&order(Desired::Deleted { purge: false }), &running), kept);
    assert_eq!(actions(&order(Desired::Elsewhere), &running), kept);
    let purged = actions(&order(Desired::Deleted { purge: true }), &running);
    assert_eq!(purged, [&kept[..], &[RemoveVolume]].concat());
}

/// Whatever is there, applying the plan's steps reaches a state in which there is nothing to do.
#[test]
fn plan__should_converge_from_every_state() {
    let bools = [false, true];
    let runs = [None, Some(Run::Created), Some(Run::Running), Some(Run::Exited { code: 1, out_of_memory: true }), Some(Run::Broken)];
    let wishes = [
        Desired::Running,
        Desired::Stopped,
        Desired::Elsewhere,
        Desired::Deleted { purge: false },
        Desired::Deleted { purge: true },
    ];
    for desired in wishes {
        for volume in bools {
            for files in bools {
                for armed in bools {
                    for image in bools {
                        for network in [Presence::Absent, Presence::Matches, Presence::Differs] {
                            for run in &runs {
                                let container = run.clone().map(container);
                                let mut observed = Observed { volume, files, network, armed, image, container };
                                let order = InstanceOrder { restarts: 1, ..order(desired) };
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

fn happen(observed: &mut Observed, action: Action, order: &InstanceOrder) {
    let made = Container { generation: order.generation, restarts: order.restarts, ..container(Run::Created) };
    let set = |observed: &mut Observed, run| {
        if let Some(container) = &mut observed.container {
            container.run = run;
        }
    };
    match action {
        Action::CreateVolume => observed.volume = true,
        Action::WriteFiles => observed.files = true,
        Action::CreateNetwork => observed.network = Presence::Matches,
        Action::ArmEgress => observed.armed = true,
        Action::PullImage => observed.image = true,
        Action::CreateContainer => observed.container = Some(made),
        Action::StartContainer => set(observed, Run::Running),
        Action::Reconfigure => {}
        Action::StopContainer => set(observed, Run::Exited { code: 143, out_of_memory: false }),
        Action::RemoveContainer => observed.container = None,
        Action::DisarmEgress => observed.armed = false,
        Action::RemoveNetwork => observed.network = Presence::Absent,
        Action::RemoveVolume => observed.volume = false,
    }
}
