//! What this node was last told, on its own disk: with it the node boots, repairs and restarts
//! alone. Orders are sealed with the node's key, since they carry the instances' secrets.
//!
//! Fencing lives here: an order with a lower generation than the one already held for an instance
//! is not taken. An order that is missing from what arrives means nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceOrder, Orders},
    generation::Generation,
    ids::InstanceId,
    seal::{SealError, SealKey, Sealed},
};
use redb::{Database, ReadableTable as _, TableDefinition, WriteTransaction};

use crate::link::{Link, Pool, PoolError};

const SCHEMA: u64 = 1;
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const ORDERS: TableDefinition<&str, &str> = TableDefinition::new("orders");
const LINKS: TableDefinition<&str, u32> = TableDefinition::new("links");

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// The file cannot be opened.
    #[error("the ledger {path} cannot be opened")]
    Open {
        path: PathBuf,
        #[source]
        source: redb::DatabaseError,
    },
    /// Written by a newer node agent.
    #[error("the ledger is of schema {found}, this node agent knows {SCHEMA}: install the newer node agent again")]
    Newer { found: u64 },
    /// A read or write failed.
    #[error("the ledger cannot be read or written")]
    Storage(#[from] redb::Error),
    /// What is in it cannot be opened.
    #[error("an order in the ledger cannot be read")]
    Seal(#[from] SealError),
    /// No address left.
    #[error("an instance gets no address")]
    Pool(#[from] PoolError),
}

/// What the node holds of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) order: InstanceOrder,
    pub(crate) link: Link,
}

/// The node's memory. The file is the truth; the map is its copy, since nobody else writes it.
pub(crate) struct Ledger {
    database: Database,
    key: SealKey,
    pool: Pool,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    entries: BTreeMap<InstanceId, Arc<Entry>>,
    links: BTreeMap<InstanceId, u32>,
    highest: Generation,
}

impl Ledger {
    /// Opens or makes the ledger.
    pub(crate) fn open(path: &Path, key: SealKey, pool: Pool) -> Result<Self, LedgerError> {
        let database = Database::create(path).map_err(|source| LedgerError::Open {
            path: path.to_owned(),
            source,
        })?;
        let ledger = Self {
            database,
            key,
            pool,
            state: Mutex::default(),
        };
        let state = ledger.load()?;
        *ledger.lock() = state;
        Ok(ledger)
    }

    /// Everything the node should run.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().entries.values().cloned().collect()
    }

    /// One instance.
    pub(crate) fn entry(&self, id: InstanceId) -> Option<Arc<Entry>> {
        self.lock().entries.get(&id).cloned()
    }

    /// The highest generation seen.
    pub(crate) fn highest_generation(&self) -> Generation {
        self.lock().highest
    }

    /// Takes orders. `gone` are instances of which nothing is left here: when such a one was to be
    /// deleted and is no longer listed, the coordinator has heard of it, and it is forgotten.
    /// Returns the orders that were refused because they are older than what is known.
    pub(crate) fn receive(&self, orders: &Orders, gone: &BTreeSet<InstanceId>) -> Result<Vec<InstanceId>, LedgerError> {
        let mut next = self.lock().clone();
        let mut refused = Vec::new();
        let mut changed: Vec<&InstanceOrder> = Vec::new();
        for order in &orders.instances {
            match next.entries.get(&order.id) {
                Some(entry) if order.generation < entry.order.generation => refused.push(order.id),
                Some(entry) if entry.order == *order => {}
                _ => changed.push(order),
            }
        }
        let listed: BTreeSet<InstanceId> = orders.instances.iter().map(|order| order.id).collect();
        let forgotten: Vec<InstanceId> = next
            .entries
            .values()
            .filter(|entry| matches!(entry.order.desired, Desired::Deleted { .. }))
            .map(|entry| entry.order.id)
            .filter(|id| gone.contains(id) && !listed.contains(id))
            .collect();
        for id in &forgotten {
            next.entries.remove(id);
            next.links.remove(id);
        }
        for order in &changed {
            let index = match next.links.get(&order.id) {
                Some(index) => *index,
                None => free_index(&next.links, self.pool)?,
            };
            let link = self.pool.link(order.id, index)?;
            next.links.insert(order.id, index);
            next.entries.insert(
                order.id,
                Arc::new(Entry {
                    order: (*order).clone(),
                    link,
                }),
            );
            next.highest = next.highest.max(order.generation);
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(ORDERS)?;
            let mut links = transaction.open_table(LINKS)?;
            for id in &forgotten {
                table.remove(id.to_string().as_str())?;
                links.remove(id.to_string().as_str())?;
            }
            for order in &changed {
                let key = order.id.to_string();
                let sealed = self.key.seal(&context(order.id), order)?;
                table.insert(
                    key.as_str(),
                    serde_json::to_string(&sealed).map_err(SealError::Content)?.as_str(),
                )?;
                if let Some(index) = next.links.get(&order.id) {
                    links.insert(key.as_str(), index)?;
                }
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert("highest_epoch", u64::from(next.highest.epoch))?;
            meta.insert("highest_counter", next.highest.counter)?;
            Ok(())
        })?;
        *self.lock() = next;
        Ok(refused)
    }

    /// Keeps the addresses of links that exist already but that no ledger knows (the ledger was
    /// lost): otherwise a running instance would have to be made again under a new address.
    pub(crate) fn adopt_links<'a>(
        &self,
        found: impl Iterator<Item = (InstanceId, &'a ipnet::Ipv4Net)>,
    ) -> Result<(), LedgerError> {
        let mut next = self.lock().clone();
        let mut adopted = Vec::new();
        for (id, subnet) in found {
            let index = (1..=self.pool.links()).find(|index| self.pool.link(id, *index).is_ok_and(|link| link.subnet == *subnet));
            let Some(index) = index else { continue };
            if !next.links.contains_key(&id) && !next.links.values().any(|taken| *taken == index) {
                next.links.insert(id, index);
                adopted.push((id, index));
            }
        }
        if adopted.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut links = transaction.open_table(LINKS)?;
            for (id, index) in &adopted {
                links.insert(id.to_string().as_str(), index)?;
            }
            Ok(())
        })?;
        *self.lock() = next;
        Ok(())
    }

    fn load(&self) -> Result<State, LedgerError> {
        let mut state = State::default();
        self.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            let number = |meta: &redb::Table<'_, &str, u64>, name| -> Result<Option<u64>, LedgerError> {
                Ok(meta.get(name).map_err(redb::Error::from)?.map(|value| value.value()))
            };
            match number(&meta, "schema")? {
                Some(found) if found > SCHEMA => return Err(LedgerError::Newer { found }),
                _ => drop(meta.insert("schema", SCHEMA)?),
            }
            state.highest = Generation {
                epoch: u32::try_from(number(&meta, "highest_epoch")?.unwrap_or_default()).unwrap_or(u32::MAX),
                counter: number(&meta, "highest_counter")?.unwrap_or_default(),
            };
            for row in transaction.open_table(LINKS)?.iter()? {
                let (id, index) = row?;
                if let Ok(id) = id.value().parse() {
                    state.links.insert(id, index.value());
                }
            }
            for row in transaction.open_table(ORDERS)?.iter()? {
                let (id, sealed) = row?;
                let Ok(id) = id.value().parse::<InstanceId>() else { continue };
                let sealed: Sealed = serde_json::from_str(sealed.value()).map_err(SealError::Content)?;
                let order: InstanceOrder = self.key.open(&context(id), &sealed)?;
                let index = state.links.get(&id).copied().unwrap_or_default();
                let link = self.pool.link(id, index)?;
                state.entries.insert(id, Arc::new(Entry { order, link }));
            }
            Ok(())
        })?;
        Ok(state)
    }

    fn write(&self, work: impl FnOnce(&WriteTransaction) -> Result<(), LedgerError>) -> Result<(), LedgerError> {
        let transaction = self.database.begin_write().map_err(redb::Error::from)?;
        work(&transaction)?;
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<redb::TableError> for LedgerError {
    fn from(error: redb::TableError) -> Self {
        Self::Storage(error.into())
    }
}

impl From<redb::StorageError> for LedgerError {
    fn from(error: redb::StorageError) -> Self {
        Self::Storage(error.into())
    }
}

fn context(id: InstanceId) -> String {
    format!("order {id}")
}

fn free_index(links: &BTreeMap<InstanceId, u32>, pool: Pool) -> Result<u32, PoolError> {
    let taken: BTreeSet<u32> = links.values().copied().collect();
    (1..=pool.links())
        .find(|index| !taken.contains(index))
        .ok_or(PoolError::Exhausted(pool.network()))
}

#[cfg(test)]
mod tests;
