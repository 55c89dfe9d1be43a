use super::*;
use crate::fixtures::order;

fn ledger(folder: &Path) -> Ledger {
    let key = SealKey::load_or_create(&folder.join("seal.key")).unwrap();
    Ledger::open(
        &folder.join("ledger.redb"),
        key,
        Pool::new("10.201.0.0/24".parse().unwrap()).unwrap(),
    )
    .unwrap()
}

fn orders(revision: u64, instances: Vec<InstanceOrder>) -> Orders {
    Orders { revision, instances }
}

#[test]
fn ledger__should_remember_orders_and_links_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (order(Desired::Running, 1), order(Desired::Running, 2));
    let link = {
        let ledger = ledger(folder.path());
        ledger
            .receive(&orders(7, vec![first.clone(), second.clone()]), &BTreeSet::new())
            .unwrap();
        ledger.entry(second.id).unwrap().link.clone()
    };
    let ledger = ledger(folder.path());
    assert_eq!(ledger.highest_generation().counter, 2);
    assert_eq!(ledger.entry(first.id).unwrap().order, first);
    assert_eq!(ledger.entry(second.id).unwrap().link, link);
    let bytes = std::fs::read(folder.path().join("ledger.redb")).unwrap();
    let secret = first.secrets.token.expose().as_bytes();
    assert!(
        !bytes.windows(secret.len()).any(|window| window == secret),
        "a secret is readable in the ledger"
    );
}

#[test]
fn ledger__should_refuse_an_older_generation() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger(folder.path());
    let running = order(Desired::Running, 5);
    ledger.receive(&orders(1, vec![running.clone()]), &BTreeSet::new()).unwrap();
    let mut old = running.clone();
    old.desired = Desired::Deleted { purge: true };
    old.generation.counter = 4;
    assert_eq!(ledger.receive(&orders(2, vec![old]), &BTreeSet::new()).unwrap(), [running.id]);
    assert_eq!(ledger.entry(running.id).unwrap().order, running);
}

#[test]
fn ledger__should_keep_what_is_not_listed_and_forget_only_what_is_deleted_and_gone() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger(folder.path());
    let kept = order(Desired::Running, 1);
    let deleted = order(Desired::Deleted { purge: true }, 2);
    ledger
        .receive(&orders(1, vec![kept.clone(), deleted.clone()]), &BTreeSet::new())
        .unwrap();
    ledger.receive(&orders(2, vec![]), &BTreeSet::new()).unwrap();
    assert_eq!(ledger.entries().len(), 2);
    ledger
        .receive(&orders(3, vec![]), &BTreeSet::from([kept.id, deleted.id]))
        .unwrap();
    assert!(ledger.entry(kept.id).is_some());
    assert!(ledger.entry(deleted.id).is_none());
}

#[test]
fn ledger__should_keep_the_addresses_of_links_it_finds() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger(folder.path());
    let running = order(Desired::Running, 1);
    ledger
        .adopt_links([(running.id, &"10.201.0.80/29".parse().unwrap())].into_iter())
        .unwrap();
    ledger.receive(&orders(1, vec![running.clone()]), &BTreeSet::new()).unwrap();
    assert_eq!(ledger.entry(running.id).unwrap().link.subnet.to_string(), "10.201.0.80/29");
}
