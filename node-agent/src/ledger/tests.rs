use crabshack_shared::agent_api::v1::Phase;
use redb::{ReadableDatabase as _, TableDefinition};

use super::*;
use crate::fixtures::{order, report};

pub(super) fn ledger(folder: &Path) -> Ledger {
    let key = SealKey::load_or_create(&folder.join("seal.key"), &folder.join("ledger.redb")).unwrap();
    Ledger::open(
        &folder.join("ledger.redb"),
        key,
        Pool::new("10.201.0.0/24".parse().unwrap()).unwrap(),
    )
    .unwrap()
}

pub(super) fn orders(revision: u64, instances: Vec<InstanceOrder>) -> Orders {
    Orders {
        revision,
        instances,
        images: None,
    }
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
fn ledger__should_take_the_other_orders_when_one_gets_no_address() {
    let folder = tempfile::tempdir().unwrap();
    let key = SealKey::load_or_create(&folder.path().join("seal.key"), &folder.path().join("ledger.redb")).unwrap();
    // Room for one link.
    let pool = Pool::new("10.201.0.0/28".parse().unwrap()).unwrap();
    let ledger = Ledger::open(&folder.path().join("ledger.redb"), key, pool).unwrap();
    let (first, second) = (order(Desired::Running, 1), order(Desired::Running, 2));
    ledger.receive(&orders(1, vec![first.clone()]), &BTreeSet::new()).unwrap();
    let mut deleted = first.clone();
    deleted.desired = Desired::Deleted { purge: true };
    deleted.generation.counter = 3;
    ledger
        .receive(&orders(2, vec![second.clone(), deleted.clone()]), &BTreeSet::new())
        .unwrap();
    assert_eq!(ledger.entry(first.id).unwrap().order, deleted);
    assert!(ledger.entry(second.id).is_none());
    ledger
        .receive(&orders(3, vec![second.clone()]), &BTreeSet::from([first.id]))
        .unwrap();
    assert!(ledger.entry(second.id).is_some(), "its address is free now");
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

/// A ledger as version 1 wrote it: no other tables, and orders without the fields that came later.
fn write_version_1(folder: &Path, order: &InstanceOrder) {
    const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    const ORDERS: TableDefinition<'_, &str, &str> = TableDefinition::new("orders");
    const LINKS: TableDefinition<'_, &str, u32> = TableDefinition::new("links");
    let mut old = serde_json::to_value(order).unwrap();
    for field in ["spec_revision", "on_disconnect"] {
        old.as_object_mut().unwrap().remove(field).unwrap();
    }
    let key = SealKey::load_or_create(&folder.join("seal.key"), &folder.join("ledger.redb")).unwrap();
    let sealed = key.seal(&format!("order {}", order.id), &old).unwrap();
    let database = Database::create(folder.join("ledger.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let id = order.id.to_string();
    transaction.open_table(META).unwrap().insert("schema", 1).unwrap();
    transaction.open_table(META).unwrap().insert("highest_epoch", 3).unwrap();
    transaction.open_table(META).unwrap().insert("highest_counter", 9).unwrap();
    transaction.open_table(LINKS).unwrap().insert(id.as_str(), 5).unwrap();
    let sealed = serde_json::to_string(&sealed).unwrap();
    transaction
        .open_table(ORDERS)
        .unwrap()
        .insert(id.as_str(), sealed.as_str())
        .unwrap();
    transaction.commit().unwrap();
}

fn version(folder: &Path) -> u64 {
    let database = Database::create(folder.join("ledger.redb")).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    meta.get(schema::VERSION).unwrap().unwrap().value()
}

#[test]
fn ledger__should_take_over_version_1_with_everything_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let old = order(Desired::Running, 9);
    write_version_1(folder.path(), &old);
    for _ in 0..2 {
        let ledger = ledger(folder.path());
        let entry = ledger.entry(old.id).unwrap();
        assert_eq!(
            (&entry.order, entry.link.subnet.to_string().as_str()),
            (&old, "10.201.0.40/29")
        );
        assert_eq!(ledger.highest_generation(), Generation { epoch: 3, counter: 9 });
        assert_eq!(ledger.events_waiting(), 0);
    }
    assert_eq!(version(folder.path()), SCHEMA);
    let ledger = ledger(folder.path());
    ledger.note_phases(&[report(old.id, Phase::Ready)]);
    ledger.write_events().unwrap();
    assert_eq!(ledger.events(10)[0].sequence, 1);
}

#[test]
fn ledger__should_refuse_a_newer_version_and_leave_it_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(ledger(folder.path()));
    let database = Database::create(folder.path().join("ledger.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(META)
        .unwrap()
        .insert(schema::VERSION, SCHEMA + 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let key = SealKey::load_or_create(&folder.path().join("seal.key"), &folder.path().join("ledger.redb")).unwrap();
    let pool = Pool::new("10.201.0.0/24".parse().unwrap()).unwrap();
    let Err(error) = Ledger::open(&folder.path().join("ledger.redb"), key, pool) else {
        panic!("a newer ledger was opened");
    };
    assert!(error.to_string().contains("install the newer node agent"), "{error}");
    assert_eq!(version(folder.path()), SCHEMA + 1);
}

#[test]
fn ledger__should_keep_events_and_their_numbers_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let running = order(Desired::Running, 1);
    let phases = |ledger: &Ledger| -> Vec<(u64, Phase)> {
        let events = ledger.events(10).into_iter();
        events.map(|event| (event.sequence, event.phase)).collect()
    };
    {
        let ledger = ledger(folder.path());
        ledger.receive(&orders(1, vec![running.clone()]), &BTreeSet::new()).unwrap();
        ledger.note_phases(&[report(running.id, Phase::Creating)]);
        ledger.note_phases(&[report(running.id, Phase::Ready)]);
        assert!(ledger.events(10).is_empty(), "what is not on the disk must not be sent");
        ledger.write_events().unwrap();
        ledger.acknowledge_events(1);
        ledger.write_events().unwrap();
        // Lost with the process: nobody has seen it, so its number is free.
        ledger.note_phases(&[report(running.id, Phase::Stopping)]);
    }
    let ledger = ledger(folder.path());
    assert_eq!(phases(&ledger), [(2, Phase::Ready)]);
    ledger.note_phases(&[report(running.id, Phase::Starting)]);
    ledger.note_phases(&[report(running.id, Phase::Ready)]);
    ledger.note_phases(&[report(running.id, Phase::Stopped)]);
    ledger.write_events().unwrap();
    assert_eq!(phases(&ledger), [(2, Phase::Ready), (3, Phase::Stopped)]);
    ledger.acknowledge_events(3);
    assert!(ledger.events(10).is_empty());
}

fn leased(seconds: u32) -> InstanceOrder {
    let on_disconnect = OnDisconnect::StopAfter { seconds };
    InstanceOrder {
        on_disconnect,
        ..order(Desired::Running, 1)
    }
}

#[test]
fn ledger__should_let_a_leased_instance_run_only_after_a_fresh_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (leased, kept) = (leased(60), order(Desired::Running, 2));
    let desired = |ledger: &Ledger, id| ledger.entry(id).unwrap().order.desired;
    {
        let ledger = ledger(folder.path());
        ledger
            .receive(&orders(1, vec![leased.clone(), kept.clone()]), &BTreeSet::new())
            .unwrap();
        assert_eq!(desired(&ledger, leased.id), Desired::Stopped, "nobody has answered yet");
        assert!(ledger.entry(leased.id).unwrap().lapsed && ledger.has_lapsed());
        assert_eq!(ledger.entry(leased.id).unwrap().order.generation, leased.generation);
        assert_eq!(desired(&ledger, kept.id), Desired::Running);
        ledger.note_answer(&Moment::now(), Call::Report).unwrap();
        assert_eq!(desired(&ledger, leased.id), Desired::Stopped, "it may be elsewhere by now");
        ledger.note_answer(&Moment::now(), Call::Orders).unwrap();
        assert_eq!(desired(&ledger, leased.id), Desired::Running);
        assert!(ledger.leases_over().is_empty());
    }
    let reopened = ledger(folder.path());
    assert_eq!(desired(&reopened, leased.id), Desired::Running, "a restart ended the lease");
    let same = reopened.entry(leased.id).unwrap();
    assert!(Arc::ptr_eq(&same, &reopened.entry(leased.id).unwrap()));
    // Before a reboot: how long ago that was nobody knows.
    reopened.note_answer(&Moment::at("another boot", 1), Call::Orders).unwrap();
    drop(reopened);
    let rebooted = ledger(folder.path());
    assert_eq!(rebooted.leases_over(), BTreeSet::from([leased.id]));
    assert_eq!(desired(&rebooted, kept.id), Desired::Running);
}

#[test]
fn ledger__should_remember_which_disks_were_kept_on_purpose() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, purged) = (
        order(Desired::Deleted { purge: false }, 1),
        order(Desired::Deleted { purge: true }, 2),
    );
    {
        let ledger = ledger(folder.path());
        ledger
            .receive(&orders(1, vec![kept.clone(), purged.clone()]), &BTreeSet::new())
            .unwrap();
        ledger
            .receive(&orders(2, vec![]), &BTreeSet::from([kept.id, purged.id]))
            .unwrap();
    }
    let ledger = ledger(folder.path());
    assert!(ledger.is_kept(kept.id) && !ledger.is_kept(purged.id));
    let mut undeleted = kept.clone();
    undeleted.desired = Desired::Running;
    undeleted.generation.counter = 5;
    ledger.receive(&orders(3, vec![undeleted]), &BTreeSet::new()).unwrap();
    assert!(!ledger.is_kept(kept.id));
}
