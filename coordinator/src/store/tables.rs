//! The tables. Values are JSON with a version, so that a record can be read by whoever repairs a store.

use redb::TableDefinition;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::StoreError;

/// A table of records.
pub(super) type Records = TableDefinition<'static, &'static str, &'static [u8]>;

/// Living instances and those on their way out, by id.
pub(super) const INSTANCES: Records = Records::new("instances");
/// Deleted instances whose disk was kept, by id.
pub(super) const RETIRED: Records = Records::new("retired");
/// What nodes last said of instances, by id.
pub(super) const OBSERVATIONS: Records = Records::new("observations");
/// Nodes by id.
pub(super) const NODES: Records = Records::new("nodes");
/// Unused join tokens, by the SHA-256 of their secret in hex.
pub(super) const JOIN_TOKENS: Records = Records::new("join_tokens");
/// Ids of living instances by name.
pub(super) const NAMES: TableDefinition<&str, &str> = TableDefinition::new("names");
/// Who holds an SSH port: an instance, or `node/instance` for one that is not known here.
pub(super) const PORTS: TableDefinition<u16, &str> = TableDefinition::new("ports");
/// What happened to instances, by instance and place in its history.
pub(super) const EVENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("events");
/// Numbers about the store itself, and up to where the events of a node are kept.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The form of records that this version writes.
pub(super) const RECORD_VERSION: u32 = 1;

/// A record with the version of its form.
#[derive(Serialize, Deserialize)]
pub(super) struct Versioned<R> {
    pub(super) v: u32,
    pub(super) record: R,
}

/// Reads a record.
pub(super) fn decode<R: DeserializeOwned>(table: Records, key: &str, bytes: &[u8]) -> Result<R, StoreError> {
    use redb::TableHandle as _;
    decode_named(name_of(table.name()), key, bytes)
}

/// Reads a record of a table whose name is known to live long enough.
pub(super) fn decode_named<R: DeserializeOwned>(name: &'static str, key: &str, bytes: &[u8]) -> Result<R, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    match serde_json::from_slice::<Versioned<R>>(bytes) {
        Ok(Versioned { v, record }) if v <= RECORD_VERSION => Ok(record),
        Ok(_) => Err(StoreError::NewerRecord {
            table: name,
            key: key.to_owned(),
        }),
        Err(source) => match serde_json::from_slice::<Version>(bytes) {
            Ok(Version { v }) if v > RECORD_VERSION => Err(StoreError::NewerRecord {
                table: name,
                key: key.to_owned(),
            }),
            _ => Err(StoreError::Damaged {
                table: name,
                key: key.to_owned(),
                source,
            }),
        },
    }
}

/// Writes a record down with its version.
pub(super) fn encode<R: Serialize>(record: &R) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Versioned {
        v: RECORD_VERSION,
        record,
    })
    .map_err(StoreError::Encode)
}

/// redb lends the name only as long as the definition; errors live longer.
fn name_of(name: &str) -> &'static str {
    [
        "instances",
        "retired",
        "observations",
        "nodes",
        "join_tokens",
        "images",
        "registries",
    ]
    .into_iter()
    .find(|known| *known == name)
    .unwrap_or("unknown")
}
