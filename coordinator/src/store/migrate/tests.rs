use std::{fs, path::Path};

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceSecrets, OnDisconnect},
    ids::InstanceId,
    seal::SealKey,
    secret::Secret,
};
use redb::{Database, TableDefinition};
use serde_json::{Value, json};

use super::*;
use crate::store::Store;

/// A row as schema 1 wrote it.
fn instance(id: InstanceId, name: &str, desired: Value, sealed: &Value) -> Value {
    json!({"v": 1, "record": {
        "id": id, "name": name, "owner": "admin",
        "spec": {
            "service_type": "openclaw", "image": "docker.io/owner/stub:1",
            "resources": {"memory": 1_073_741_824_u64, "cpus": 1000, "storage": 10_737_418_240_u64},
            "ssh_pubkey": null, "nearai_api_url": "https://example.com/v1"
        },
        "sealed": sealed, "ssh_port": 19_007, "desired": desired,
        "generation": {"epoch": 1, "counter": 3}, "restarts": 2, "assignment": "node-000000000001",
        "created_at": "2026-11-01T10:00:00Z", "deleted_at": null
    }})
}

/// A store as schema 1 left it: one instance that runs and one of which the disk was kept.
fn old_store(folder: &Path, living: InstanceId, kept: InstanceId, secrets: &InstanceSecrets) {
    fs::create_dir_all(folder).unwrap();
    let key = SealKey::load_or_create(&folder.join("seal.key"), &folder.join("coordinator.redb")).unwrap();
    let sealed = |id: InstanceId| serde_json::to_value(key.seal(&id.to_string(), secrets).unwrap()).unwrap();
    let database = Database::create(folder.join("coordinator.redb")).unwrap();
    let writing = database.begin_write().unwrap();
    {
        let records = |name| TableDefinition::<&str, &[u8]>::new(name);
        for (table, id, row) in [
            (
                "instances",
                living,
                instance(living, "one", json!({"state": "running"}), &sealed(living)),
            ),
            (
                "retired",
                kept,
                instance(kept, "two", json!({"state": "deleted", "purge": false}), &sealed(kept)),
            ),
        ] {
            let mut opened = writing.open_table(records(table)).unwrap();
            let bytes = serde_json::to_vec(&row).unwrap();
            opened.insert(id.to_string().as_str(), bytes.as_slice()).unwrap();
        }
        for table in ["observations", "nodes", "join_tokens"] {
            writing.open_table(records(table)).unwrap();
        }
        let mut names = writing.open_table(TableDefinition::<&str, &str>::new("names")).unwrap();
        names.insert("one", living.to_string().as_str()).unwrap();
        let mut ports = writing.open_table(TableDefinition::<u16, &str>::new("ports")).unwrap();
        ports.insert(19_007, living.to_string().as_str()).unwrap();
        let mut meta = writing.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap();
        for (name, number) in [("schema", 1), ("epoch", 1), ("counter", 3), ("last_ssh_port", 19_007)] {
            meta.insert(name, number).unwrap();
        }
    }
    writing.commit().unwrap();
}

#[test]
fn migration__should_take_a_store_of_schema_1_over_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (living, kept) = (InstanceId::random(), InstanceId::random());
    let secrets = InstanceSecrets {
        token: Secret::random(),
        nearai_api_key: Secret::random(),
        extra_env: Default::default(),
        workload_token: None,
        master_key: None,
    };
    old_store(folder.path(), living, kept, &secrets);
    // Twice: the second time it is of this schema already.
    for _ in 0..2 {
        let store = Store::open(folder.path()).unwrap();
        let reading = store.reading().unwrap();
        assert_eq!(reading.schema().unwrap(), SCHEMA);
        let record = reading.instance_named(&"one".parse().unwrap()).unwrap().unwrap();
        assert_eq!((record.id, record.desired, record.restarts), (living, Desired::Running, 2));
        assert_eq!((record.spec_revision, record.on_disconnect), (0, OnDisconnect::Keep));
        assert_eq!(record.wish_generation, record.generation);
        assert!(!record.protected && !record.disk_only && record.left.is_empty());
        assert_eq!(store.secrets(&record).unwrap(), secrets);
        let retired = reading.retired(kept).unwrap().unwrap();
        assert!(retired.disk_only, "of this one only the disk is left");
        assert_eq!(store.secrets(&retired).unwrap(), secrets);
        assert_eq!(reading.last_generation().unwrap(), Generation { epoch: 1, counter: 3 });
        assert!(reading.events(living).unwrap().is_empty());
        assert!(reading.images().unwrap().is_empty() && reading.registries().unwrap().is_empty());
    }
}

#[test]
fn newer_schema__should_be_refused_in_clear_words() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.write_now(|writing| writing.set_schema(SCHEMA + 1)).unwrap();
    drop(store);
    let Err(refused) = Store::open(folder.path()) else {
        panic!("a newer store was opened")
    };
    assert!(
        refused
            .to_string()
            .contains("the store has schema 4, this version knows up to 3"),
        "{refused}"
    );
}
