use chrono::{TimeDelta, Utc};
use crabshack_shared::{
    agent_api::v1::{Desired, NodeEvent, Phase},
    api::events::{Origin, Wished},
    ids::{InstanceId, NodeId},
};

use super::*;
use crate::{
    store::{InstanceRecord, Store},
    testing::record,
};

const NODE: &str = "node-000000000001";

fn open() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn put(store: &Store) -> InstanceRecord {
    let record = record(Desired::Running, Some(NODE));
    store.write_now(|writing| writing.put_instance(&record)).unwrap();
    record
}

fn seen(sequence: u64, instance: InstanceId, phase: Phase) -> NodeEvent {
    NodeEvent {
        sequence,
        at: Utc::now(),
        instance,
        phase,
        reason: None,
    }
}

fn keep(store: &Store, node: &str, events: Vec<NodeEvent>) -> u64 {
    let node: NodeId = node.parse().unwrap();
    store.write_now(|writing| writing.keep_node_events(&node, events)).unwrap()
}

fn phases(store: &Store, instance: InstanceId) -> Vec<Phase> {
    let events = store.reading().unwrap().events(instance).unwrap();
    events.into_iter().filter_map(|event| event.phase).collect()
}

#[test]
fn events__should_keep_the_last_200_of_each_instance() {
    let (_folder, store) = open();
    let (busy, quiet) = (InstanceId::random(), InstanceId::random());
    let start = |reason: String| wished(Wished::Start, Origin::Api, Generation::default(), Utc::now(), Some(reason));
    store
        .write_now(|writing| {
            writing.note(quiet, &start("quiet".to_owned()))?;
            for count in 0..250 {
                writing.note(busy, &start(count.to_string()))?;
            }
            Ok::<_, StoreError>(())
        })
        .unwrap();
    let reading = store.reading().unwrap();
    let events = reading.events(busy).unwrap();
    let reasons: Vec<_> = events.iter().map(|event| event.reason.clone().unwrap()).collect();
    assert_eq!(reasons.len(), 200);
    assert_eq!((reasons[0].as_str(), reasons[199].as_str()), ("50", "249"));
    assert_eq!(events[0].generation.as_deref(), Some("0.0"));
    assert_eq!(reading.events(quiet).unwrap().len(), 1);
}

#[test]
fn node_events__should_be_kept_once_and_in_their_order() {
    let (_folder, store) = open();
    let id = put(&store).id;
    let (first, second, third) = (
        seen(1, id, Phase::Creating),
        seen(2, id, Phase::Starting),
        seen(3, id, Phase::Ready),
    );
    assert_eq!(keep(&store, NODE, vec![second.clone(), first.clone()]), 2);
    // The answer was lost: all of it comes again, with what is new.
    assert_eq!(keep(&store, NODE, vec![first.clone(), second, third]), 3);
    assert_eq!(keep(&store, NODE, vec![first]), 3);
    assert_eq!(phases(&store, id), [Phase::Creating, Phase::Starting, Phase::Ready]);
}

#[test]
fn node_events__should_leave_clocks_and_other_nodes_alone() {
    let (_folder, store) = open();
    let id = put(&store).id;
    let mut wrong = seen(1, id, Phase::Ready);
    wrong.at = Utc::now() - TimeDelta::days(400);
    wrong.reason = Some("\u{e4}".repeat(5000));
    keep(&store, NODE, vec![wrong.clone()]);
    let kept = store.reading().unwrap().events(id).unwrap().remove(0);
    assert_eq!((kept.at, kept.origin), (wrong.at, Origin::Node));
    assert_eq!(kept.reason.unwrap().chars().count(), 1000);

    // Acknowledged, so that it is not sent for ever; believed it is not.
    let other = "node-000000000002";
    assert_eq!(
        keep(
            &store,
            other,
            vec![seen(7, id, Phase::Failed), seen(8, InstanceId::random(), Phase::Ready)]
        ),
        8
    );
    assert_eq!(phases(&store, id), [Phase::Ready]);
    // What a node said while it had the instance still counts when another one has it.
    let mut moved = store.reading().unwrap().instance(id).unwrap().unwrap();
    moved.left = vec![NODE.parse().unwrap()];
    moved.assignment = Some(other.parse().unwrap());
    store.write_now(|writing| writing.put_instance(&moved)).unwrap();
    keep(&store, NODE, vec![seen(2, id, Phase::Stopped)]);
    assert_eq!(phases(&store, id), [Phase::Ready, Phase::Stopped]);
}

#[test]
fn events__should_go_with_the_instance_and_not_before() {
    let (_folder, store) = open();
    let mut record = put(&store);
    keep(&store, NODE, vec![seen(1, record.id, Phase::Ready)]);
    store
        .write_now(|writing| {
            writing.delete_instance(&mut record, false, Utc::now())?;
            writing.retire_instance(&record)
        })
        .unwrap();
    keep(&store, NODE, vec![seen(2, record.id, Phase::Deleted)]);
    assert_eq!(phases(&store, record.id), [Phase::Ready, Phase::Deleted]);
    store
        .write_now(|writing| {
            writing.purge_instance(&mut record)?;
            writing.forget_instance(&record)
        })
        .unwrap();
    assert!(phases(&store, record.id).is_empty());
    let node = NODE.parse().unwrap();
    assert_eq!(store.reading().unwrap().events_kept(&node).unwrap(), 2);
}
