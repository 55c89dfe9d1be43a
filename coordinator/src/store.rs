//! What the coordinator persists. redb appears here and nowhere else.
//!
//! Reads are by key or short scans out of the page cache: microseconds, done where they are needed.
//! Writes sync to disk (about a millisecond) and wait for each other, so they run on blocking threads.

mod events;
mod images;
mod instances;
mod join_tokens;
mod meta;
mod migrate;
mod nodes;
mod observations;
mod ports;
mod registries;
mod retired;
mod tables;

use std::{fs, io, os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc};

use crabshack_shared::{
    agent_api::v1::InstanceSecrets,
    seal::{SealError, SealKey, Sealed},
};
use redb::{Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) use events::wished;
pub(crate) use images::ImageRecord;
pub(crate) use instances::{InstanceRecord, NewInstance, NoPlace, Spec};
pub(crate) use join_tokens::TokenRefused;
pub(crate) use nodes::NodeRecord;
pub(crate) use observations::Observation;
pub(crate) use ports::UnknownPorts;
pub(crate) use registries::RegistryRecord;
use tables::Records;

/// Pages kept in memory: the hot part of thousands of instances.
const CACHE_BYTES: usize = 8 << 20;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the data folder {path} cannot be made")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the store cannot be read or written")]
    Database(#[source] Box<redb::Error>),
    #[error("the store has schema {found}, this version knows up to {known}: start the newer version, or restore a dump")]
    Newer { found: u64, known: u64 },
    #[error("record `{key}` of table {table} is damaged")]
    Damaged {
        table: &'static str,
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("record `{key}` of table {table} was written by a newer version")]
    NewerRecord { table: &'static str, key: String },
    #[error("the index says that `{key}` of table {table} exists, but it does not")]
    Missing { table: &'static str, key: String },
    #[error("a record cannot be written down")]
    Encode(#[source] serde_json::Error),
    #[error("a secret cannot be sealed or opened")]
    Seal(#[from] SealError),
    #[error("the task that writes to the store was ended")]
    Ended(#[source] tokio::task::JoinError),
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )+};
}
from_redb!(CommitError, DatabaseError, StorageError, TableError, TransactionError);

/// The store of one coordinator. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
    sealer: Arc<SealKey>,
}

/// One consistent view: of a read, or of a write in progress.
pub(crate) struct Snapshot<T>(T);

/// A view that cannot change anything.
pub(crate) type Reading = Snapshot<ReadTransaction>;

/// A view that can. Dropped without commit it changes nothing.
pub(crate) type Writing = Snapshot<WriteTransaction>;

impl Store {
    /// Opens or makes the store in the data folder. Refuses one of a newer schema, and one that
    /// another process has open.
    pub(crate) fn open(folder: &std::path::Path) -> Result<Self, StoreError> {
        let at = |source| StoreError::Folder {
            path: folder.to_owned(),
            source,
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
        let path = folder.join("coordinator.redb");
        let sealer = SealKey::load_or_create(&folder.join("seal.key"), &path)?;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        let store = Self {
            database: Arc::new(database),
            sealer: Arc::new(sealer),
        };
        store.write_now(|writing| writing.prepare())?;
        Ok(store)
    }

    /// The present state, unaffected by later writes.
    pub(crate) fn reading(&self) -> Result<Reading, StoreError> {
        Ok(Snapshot(self.database.begin_read()?))
    }

    /// Runs a change; it is on disk when this returns `Ok`, and undone when the change fails.
    pub(crate) async fn write<R, E, F>(&self, change: F) -> Result<R, E>
    where
        R: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Writing) -> Result<R, E> + Send + 'static,
    {
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.write_now(change))
            .await
            .map_err(StoreError::Ended)?
    }

    /// The same on this thread.
    pub(crate) fn write_now<R, E: From<StoreError>>(&self, change: impl FnOnce(&Writing) -> Result<R, E>) -> Result<R, E> {
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        let writing = Snapshot(transaction);
        let result = change(&writing)?;
        writing.0.commit().map_err(StoreError::from)?;
        Ok(result)
    }

    /// Seals the secrets of an instance, bound to its id.
    pub(crate) fn seal(&self, id: crabshack_shared::ids::InstanceId, secrets: &InstanceSecrets) -> Result<Sealed, StoreError> {
        Ok(self.sealer.seal(&id.to_string(), secrets)?)
    }

    /// Opens the secrets of an instance.
    pub(crate) fn secrets(&self, record: &InstanceRecord) -> Result<InstanceSecrets, StoreError> {
        Ok(self.sealer.open(&record.id.to_string(), &record.sealed)?)
    }
}

/// Reading by key and in order: the same for both kinds of transaction.
trait Source {
    fn with_bytes<R>(
        &self,
        table: Records,
        key: &str,
        read: impl FnOnce(&[u8]) -> Result<R, StoreError>,
    ) -> Result<Option<R>, StoreError>;

    fn each(&self, table: Records, visit: impl FnMut(&str, &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError>;

    fn id_of_name(&self, name: &str) -> Result<Option<String>, StoreError>;

    fn number(&self, key: &str) -> Result<u64, StoreError>;

    fn each_port(&self, visit: impl FnMut(u16, &str)) -> Result<(), StoreError>;

    /// The events of an instance, oldest first.
    fn each_event(&self, instance: &str, visit: impl FnMut(u64, &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError>;
}

macro_rules! source {
    ($transaction:ty) => {
        impl Source for $transaction {
            fn with_bytes<R>(
                &self,
                table: Records,
                key: &str,
                read: impl FnOnce(&[u8]) -> Result<R, StoreError>,
            ) -> Result<Option<R>, StoreError> {
                let opened = self.open_table(table)?;
                let value = opened.get(key)?;
                value.map(|bytes| read(bytes.value())).transpose()
            }

            fn each(
                &self,
                table: Records,
                mut visit: impl FnMut(&str, &[u8]) -> Result<(), StoreError>,
            ) -> Result<(), StoreError> {
                let opened = self.open_table(table)?;
                for entry in opened.iter()? {
                    let (key, value) = entry?;
                    visit(key.value(), value.value())?;
                }
                Ok(())
            }

            fn id_of_name(&self, name: &str) -> Result<Option<String>, StoreError> {
                let opened = self.open_table(tables::NAMES)?;
                let value = opened.get(name)?;
                Ok(value.map(|id| id.value().to_owned()))
            }

            fn number(&self, key: &str) -> Result<u64, StoreError> {
                let opened = self.open_table(tables::META)?;
                let value = opened.get(key)?;
                Ok(value.map(|number| number.value()).unwrap_or_default())
            }

            fn each_port(&self, mut visit: impl FnMut(u16, &str)) -> Result<(), StoreError> {
                let opened = self.open_table(tables::PORTS)?;
                for entry in opened.iter()? {
                    let (port, holder) = entry?;
                    visit(port.value(), holder.value());
                }
                Ok(())
            }

            fn each_event(
                &self,
                instance: &str,
                mut visit: impl FnMut(u64, &[u8]) -> Result<(), StoreError>,
            ) -> Result<(), StoreError> {
                let opened = self.open_table(tables::EVENTS)?;
                for entry in opened.range((instance, 0)..=(instance, u64::MAX))? {
                    let (key, value) = entry?;
                    visit(key.value().1, value.value())?;
                }
                Ok(())
            }
        }
    };
}
source!(ReadTransaction);
source!(WriteTransaction);

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    fn record<R: DeserializeOwned>(&self, table: Records, key: &str) -> Result<Option<R>, StoreError> {
        self.0.with_bytes(table, key, |bytes| tables::decode(table, key, bytes))
    }

    fn each_record<R: DeserializeOwned>(&self, table: Records, mut visit: impl FnMut(R)) -> Result<(), StoreError> {
        self.0.each(table, |key, bytes| {
            visit(tables::decode(table, key, bytes)?);
            Ok(())
        })
    }
}

impl Writing {
    fn put<R: Serialize>(&self, table: Records, key: &str, record: &R) -> Result<(), StoreError> {
        let bytes = tables::encode(record)?;
        let mut opened = self.0.open_table(table)?;
        opened.insert(key, bytes.as_slice())?;
        Ok(())
    }

    /// False: it was not there.
    fn take_out(&self, table: Records, key: &str) -> Result<bool, StoreError> {
        let mut opened = self.0.open_table(table)?;
        let removed = opened.remove(key)?.is_some();
        Ok(removed)
    }
}

#[cfg(test)]
mod tests;
