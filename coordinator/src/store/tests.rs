use chrono::{TimeDelta, Utc};
use crabshack_shared::{
    agent_api::v1::{Desired, InstanceSecrets},
    generation::Generation,
    ids::{InstanceId, UserId},
    resources::{Bytes, Resources},
    secret::Secret,
};

use super::*;

pub(super) fn open() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("data")).unwrap();
    (folder, store)
}

fn new_instance(store: &Store, name: Option<&str>) -> NewInstance {
    let id = InstanceId::random();
    let secrets = InstanceSecrets {
        token: Secret::random(),
        nearai_api_key: Secret::random(),
        extra_env: Default::default(),
        workload_token: None,
        master_key: None,
    };
    NewInstance {
        id,
        name: name.map(|name| name.parse().unwrap()),
        owner: UserId::admin(),
        spec: Spec {
            service_type: crabshack_shared::instance::ServiceType::new("openclaw"),
            image: "stub:1".parse().unwrap(),
            resources: Resources {
                memory: Bytes::gibibytes(1),
                cpus: "1".parse().unwrap(),
                storage: Bytes::gibibytes(10),
            },
            ssh_pubkey: None,
            nearai_api_url: "https://example.com/v1".to_owned(),
            profile: Default::default(),
        },
        sealed: store.seal(id, &secrets).unwrap(),
        protected: false,
        on_disconnect: Default::default(),
    }
}

pub(super) fn create(store: &Store, name: Option<&str>) -> Result<InstanceRecord, NoPlace> {
    let new = new_instance(store, name);
    store.write_now(|writing| writing.create_instance(new, Utc::now())).unwrap()
}

#[test]
fn store__should_keep_names_unique_among_the_living() {
    let (_folder, store) = open();
    let mut first = create(&store, Some("one")).unwrap();
    assert_eq!(create(&store, Some("one")).unwrap_err(), NoPlace::NameTaken);
    store
        .write_now(|writing| writing.delete_instance(&mut first, false, Utc::now()))
        .unwrap();
    let second = create(&store, Some("one")).unwrap();
    assert_ne!(first.id, second.id);
    let reading = store.reading().unwrap();
    assert_eq!(reading.instance_named(&first.name).unwrap().unwrap().id, second.id);
    assert_eq!(
        reading.instance(first.id).unwrap().unwrap().desired,
        Desired::Deleted { purge: false }
    );
    assert!(first.generation < second.generation);
}

#[test]
fn store__should_change_nothing_when_a_name_is_taken() {
    let (_folder, store) = open();
    create(&store, Some("one")).unwrap();
    let before = store.reading().unwrap().last_generation().unwrap();
    let new = new_instance(&store, Some("one"));
    let refused: Result<(), StoreError> = store.write_now(|writing| {
        assert!(writing.create_instance(new, Utc::now())?.is_err());
        Err(StoreError::Newer { found: 0, known: 0 })
    });
    assert!(refused.is_err());
    let reading = store.reading().unwrap();
    assert_eq!(reading.instances().unwrap().len(), 1);
    assert_eq!(reading.last_generation().unwrap(), before);
}

#[test]
fn store__should_give_each_instance_its_own_port_until_it_is_gone() {
    let (_folder, store) = open();
    let mut first = create(&store, None).unwrap();
    assert_eq!(first.ssh_port, 19_001);
    store
        .write_now(|writing| writing.delete_instance(&mut first, false, Utc::now()))
        .unwrap();
    assert_eq!(create(&store, None).unwrap().ssh_port, 19_002);
    store.write_now(|writing| writing.retire_instance(&first)).unwrap();
    // The freed port rests until the range is through.
    assert_eq!(create(&store, None).unwrap().ssh_port, 19_003);
    store.write_now(|writing| writing.set_last_port(29_999)).unwrap();
    assert_eq!(create(&store, None).unwrap().ssh_port, 19_001);
    let reading = store.reading().unwrap();
    assert!(reading.retired(first.id).unwrap().unwrap().disk_only);
    assert!(reading.instance(first.id).unwrap().is_none());
}

#[test]
fn store__should_use_a_join_token_once() {
    let (_folder, store) = open();
    let now = Utc::now();
    let (good, late) = (Secret::random(), Secret::random());
    store
        .write_now(|writing| {
            writing.put_join_token(&good, now + TimeDelta::hours(1), now)?;
            writing.put_join_token(&late, now + TimeDelta::seconds(1), now)
        })
        .unwrap();
    let spend = |secret: &Secret| {
        store
            .write_now(|writing| writing.use_join_token(secret, now + TimeDelta::minutes(1)))
            .unwrap()
    };
    assert_eq!(spend(&late), Err(TokenRefused::Expired));
    assert_eq!(spend(&good), Ok(()));
    assert_eq!(spend(&good), Err(TokenRefused::Unknown));
    assert_eq!(spend(&Secret::random()), Err(TokenRefused::Unknown));
}

#[test]
fn store__should_refuse_a_newer_schema_and_keep_everything_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let record = create(&store, Some("kept")).unwrap();
    let token = store.secrets(&record).unwrap().token;
    drop(store);

    let store = Store::open(folder.path()).unwrap();
    let again = store.reading().unwrap().instance_named(&record.name).unwrap().unwrap();
    assert_eq!(store.secrets(&again).unwrap().token, token);
}

#[test]
fn store__should_give_a_deleted_instance_back_with_what_is_still_free() {
    let (_folder, store) = open();
    let mut first = create(&store, Some("one")).unwrap();
    let deleted = |record: &mut InstanceRecord| {
        store
            .write_now(|writing| {
                writing.delete_instance(record, false, Utc::now())?;
                writing.retire_instance(record)
            })
            .unwrap();
    };
    let undelete = |id, name: Option<&str>| {
        let name = name.map(|name| name.parse().unwrap());
        store
            .write_now(|writing| -> Result<_, StoreError> {
                let mut record = writing.deleted_instance(id)?.unwrap();
                Ok(writing.undelete_instance(&mut record, name)?.map(|()| record))
            })
            .unwrap()
    };
    deleted(&mut first);
    let again = undelete(first.id, None).unwrap();
    assert_eq!(
        (again.ssh_port, &again.name, again.desired),
        (first.ssh_port, &first.name, Desired::Running)
    );
    assert!(again.generation > first.generation && again.deleted_at.is_none() && !again.disk_only);
    assert_eq!(again.sealed, first.sealed);

    deleted(&mut first);
    store.write_now(|writing| writing.set_last_port(29_999)).unwrap();
    let thief = create(&store, Some("one")).unwrap();
    assert_eq!(thief.ssh_port, first.ssh_port);
    assert_eq!(undelete(first.id, None).unwrap_err(), NoPlace::NameTaken);
    let renamed = undelete(first.id, Some("two")).unwrap();
    assert_eq!((renamed.name.as_str(), renamed.ssh_port), ("two", 19_002));
    let reading = store.reading().unwrap();
    assert!(reading.retired(first.id).unwrap().is_none());
    assert_eq!(reading.instance_named(&renamed.name).unwrap().unwrap().id, first.id);
}

#[test]
fn store__should_not_free_a_port_that_somebody_else_holds() {
    let (_folder, store) = open();
    let mut first = create(&store, Some("one")).unwrap();
    store
        .write_now(|writing| {
            writing.delete_instance(&mut first, false, Utc::now())?;
            writing.retire_instance(&first)?;
            writing.set_last_port(29_999)
        })
        .unwrap();
    assert_eq!(create(&store, Some("one")).unwrap().ssh_port, first.ssh_port);
    store
        .write_now(|writing| {
            writing.purge_instance(&mut first)?;
            writing.forget_instance(&first)?;
            writing.set_last_port(29_999)
        })
        .unwrap();
    assert_eq!(create(&store, Some("two")).unwrap().ssh_port, first.ssh_port + 1);
}

#[test]
fn store__should_outrank_what_a_node_has_seen() {
    let (_folder, store) = open();
    let seen = Generation { epoch: 4, counter: 17 };
    let raise = || store.write_now(|writing| writing.raise_epoch_above(seen)).unwrap();
    assert!(raise().unwrap() > seen);
    assert_eq!(raise(), None);
    assert!(create(&store, None).unwrap().generation > seen);
    let recovered = store.write_now(|writing| writing.raise_epoch()).unwrap();
    assert_eq!(recovered.epoch, 6);
}
