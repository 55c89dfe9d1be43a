use crabshack_shared::agent_api::v1::Phase;

use super::*;
use crate::{
    store::tests::{create, open},
    testing::observation,
};

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

const ONE: &str = "node-000000000001";
const TWO: &str = "node-000000000002";

#[test]
fn ports__should_not_be_given_out_while_an_unknown_instance_holds_them() {
    let (_folder, store) = open();
    let (one, two) = (node(ONE), node(TWO));
    let hold = |node: &NodeId, reported: &UnknownPorts| {
        store.write_now(|writing| writing.hold_unknown_ports(node, reported)).unwrap();
        assert!(store.reading().unwrap().port_changes(node, reported).unwrap().is_empty());
    };
    let orphan = InstanceId::random();
    // What is no port of ours is nothing to hold.
    let reported = UnknownPorts::from([(19_001, orphan), (19_002, InstanceId::random()), (80, orphan)]);
    hold(&one, &reported);
    hold(&two, &UnknownPorts::new());
    assert_eq!(create(&store, None).unwrap().ssh_port, 19_003);

    // Another one has it now; then nobody.
    hold(&one, &UnknownPorts::from([(19_001, InstanceId::random())]));
    store.write_now(|writing| writing.set_last_port(19_000)).unwrap();
    assert_eq!(create(&store, None).unwrap().ssh_port, 19_002);
    hold(&one, &UnknownPorts::new());
    store.write_now(|writing| writing.set_last_port(19_000)).unwrap();
    assert_eq!(create(&store, None).unwrap().ssh_port, 19_001);
}

#[test]
fn ports__should_be_given_up_by_whoever_could_never_use_them() {
    let (_folder, store) = open();
    let one = node(ONE);
    let (early, elsewhere, running) = (
        create(&store, None).unwrap(),
        create(&store, None).unwrap(),
        create(&store, None).unwrap(),
    );
    store
        .write_now(|writing| -> Result<(), StoreError> {
            for (record, assigned) in [(&elsewhere, TWO), (&running, ONE)] {
                let mut record = record.clone();
                record.assignment = Some(node(assigned));
                writing.put_instance(&record)?;
                if assigned == ONE {
                    writing.put_observation(&observation(&record, Phase::Unhealthy, true))?;
                }
            }
            Ok(())
        })
        .unwrap();
    let reported = [&early, &elsewhere, &running]
        .map(|record| (record.ssh_port, InstanceId::random()))
        .into();
    let moved = store
        .write_now(|writing| writing.hold_unknown_ports(&one, &reported))
        .unwrap();
    assert_eq!(moved.len(), 1);
    assert_eq!((moved[0].id, moved[0].ssh_port), (early.id, 19_004));
    assert!(moved[0].generation > running.generation);
    let reading = store.reading().unwrap();
    assert_eq!(reading.instance(early.id).unwrap().unwrap().ssh_port, 19_004);
    assert!(reading.port_changes(&one, &reported).unwrap().is_empty());
}
