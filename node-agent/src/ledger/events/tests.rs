use super::*;
use crate::fixtures;

fn report(id: InstanceId, phase: Phase, reason: Option<&str>) -> InstanceReport {
    InstanceReport {
        reason: reason.map(str::to_owned),
        ..fixtures::report(id, phase)
    }
}

impl Queue {
    fn see(&mut self, id: InstanceId, phase: Phase, reason: Option<&str>) {
        self.note(&[report(id, phase, reason)], DateTime::UNIX_EPOCH);
    }

    fn told(&self) -> Vec<(u64, Phase, Option<&str>)> {
        let events = self.events.values();
        events
            .map(|event| (event.sequence, event.phase, event.reason.as_deref()))
            .collect()
    }

    fn store(&mut self) {
        if let Some(batch) = self.batch() {
            self.note_written(&batch);
        }
    }
}

#[test]
fn queue__should_tell_each_change_once_and_a_reason_only_when_there_is_one() {
    let (mut queue, id) = (Queue::default(), InstanceId::random());
    queue.see(id, Phase::Creating, None);
    queue.see(id, Phase::Creating, None);
    queue.see(id, Phase::Ready, None);
    queue.see(id, Phase::Starting, Some("it exited with code 1"));
    queue.see(id, Phase::Starting, None);
    queue.see(id, Phase::Starting, Some("it exited with code 1"));
    queue.see(id, Phase::Unknown, None);
    let exited = Some("it exited with code 1");
    let expected = [
        (1, Phase::Creating, None),
        (2, Phase::Ready, None),
        (3, Phase::Starting, exited),
        (4, Phase::Starting, exited),
    ];
    assert_eq!(queue.told(), expected);
}

#[test]
fn queue__should_not_call_a_restart_of_the_node_agent_an_event() {
    let (mut queue, id) = (Queue::default(), InstanceId::random());
    let ready = Told {
        phase: Phase::Ready,
        reason: None,
    };
    queue.told.insert(id, ready);
    queue.adopting.insert(id);
    queue.see(id, Phase::Starting, None);
    queue.see(id, Phase::Ready, None);
    assert!(queue.told().is_empty());
    queue.see(id, Phase::Starting, Some("it exited with code 1"));
    queue.see(id, Phase::Ready, None);
    assert_eq!(queue.told().len(), 2);

    let crashed = InstanceId::random();
    queue.told.insert(crashed, queue.told[&id].clone());
    queue.adopting.insert(crashed);
    queue.see(crashed, Phase::Starting, Some("it exited with code 1"));
    queue.see(crashed, Phase::Starting, None);
    queue.see(crashed, Phase::Ready, None);
    assert_eq!(queue.told().len(), 4);
}

#[test]
fn queue__should_drop_the_oldest_of_who_has_most_and_of_all() {
    let (mut queue, noisy, quiet) = (Queue::default(), InstanceId::random(), InstanceId::random());
    queue.see(quiet, Phase::Ready, None);
    for number in 0..500 {
        queue.see(noisy, Phase::Waiting, Some(&number.to_string()));
    }
    assert_eq!(queue.events.len(), 1 + MOST_PER_INSTANCE);
    assert_eq!(queue.told()[0], (1, Phase::Ready, None));
    assert_eq!(queue.told()[1].0, 302);
    for _ in 0..MOST {
        queue.see(InstanceId::random(), Phase::Ready, None);
    }
    assert_eq!(queue.events.len(), MOST);
    assert_eq!(queue.last, 501 + MOST as u64);
}

#[test]
fn queue__should_write_what_is_new_and_take_away_what_was_acknowledged_or_dropped() {
    let (mut queue, id) = (Queue::default(), InstanceId::random());
    assert!(queue.batch().is_none());
    queue.see(id, Phase::Creating, None);
    queue.see(id, Phase::Ready, None);
    let batch = queue.batch().unwrap();
    assert_eq!((batch.events.len(), batch.last, batch.told.len()), (2, 2, 1));
    // Meanwhile: one more, and the first is acknowledged although it is not known to be written.
    queue.see(id, Phase::Unhealthy, Some("no answer"));
    queue.acknowledge(1);
    queue.note_written(&batch);
    let next = queue.batch().unwrap();
    assert_eq!(next.removed, BTreeSet::from([1]));
    assert_eq!(next.events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [3]);
    assert_eq!(next.told.len(), 1);
    queue.note_written(&next);
    assert!(queue.batch().is_none());
    queue.acknowledge(3);
    assert_eq!(queue.batch().unwrap().removed, BTreeSet::from([2, 3]));
    queue.store();
    assert!(queue.batch().is_none() && queue.numbers.is_empty());
    queue.forget(&[id]);
    assert_eq!(queue.batch().unwrap().told, [(id, None)]);
}

#[test]
fn queue__should_number_after_what_the_coordinator_has_from_an_earlier_ledger() {
    let (mut queue, id) = (Queue::default(), InstanceId::random());
    queue.see(id, Phase::Creating, None);
    queue.see(id, Phase::Ready, None);
    queue.store();
    queue.acknowledge(70);
    assert_eq!(queue.told(), [(71, Phase::Creating, None), (72, Phase::Ready, None)]);
    let batch = queue.batch().unwrap();
    assert_eq!(
        (batch.removed, batch.events.len(), batch.last),
        (BTreeSet::from([1, 2]), 2, 72)
    );
}
