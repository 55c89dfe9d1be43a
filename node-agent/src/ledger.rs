//! What this node was last told, on its own disk: with it the node boots, repairs and restarts
//! alone. Orders are sealed with the node's key, since they carry the instances' secrets.
//!
//! Fencing lives here: an order with a lower generation than the one already held for an instance
//! is not taken. An order that is missing from what arrives means nothing.

mod contact;
mod events;
mod images;
mod schema;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceOrder, OnDisconnect, Orders},
    generation::Generation,
    ids::InstanceId,
    seal::{SealError, SealKey, Sealed},
    telemetry::Chain,
};
use redb::{Database, ReadableTable as _, WriteTransaction};

pub(crate) use self::contact::Call;
use self::{
    contact::Contact,
    events::Journal,
    schema::{ANSWERED, KEPT, LINKS, META, ORDERS, RECORDS, SCHEMA},
};
use crate::{
    lease::{self, Moment},
    link::{Link, Pool, PoolError},
    recipe::{self, Member},
};

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
    /// What is to be reached now: as ordered, or stopped because the lease is over.
    pub(crate) order: InstanceOrder,
    pub(crate) link: Link,
    /// The lease is over; the order is to run.
    pub(crate) lapsed: bool,
}

/// An entry as ordered, and as it is once its lease is over. Both are made once, so that who compares
/// pointers sees when something changes.
#[derive(Debug, Clone)]
struct Held {
    entry: Arc<Entry>,
    lapsed: Option<Arc<Entry>>,
}

impl Held {
    fn new(order: InstanceOrder, link: Link) -> Self {
        let leased = matches!(order.on_disconnect, OnDisconnect::StopAfter { .. });
        let lapsed = leased.then(|| {
            let order = InstanceOrder {
                desired: lease::effective(&order, None),
                ..order.clone()
            };
            Arc::new(Entry {
                order,
                link: link.clone(),
                lapsed: true,
            })
        });
        let entry = Arc::new(Entry {
            order,
            link,
            lapsed: false,
        });
        Self { entry, lapsed }
    }

    fn at(&self, silence: lease::Silence) -> &Arc<Entry> {
        match &self.lapsed {
            Some(lapsed) if lease::is_over(&self.entry.order, silence) => lapsed,
            _ => &self.entry,
        }
    }
}

/// The node's memory. The file is the truth; the map is its copy, since nobody else writes it.
pub(crate) struct Ledger {
    database: Database,
    key: SealKey,
    pool: Pool,
    state: Mutex<State>,
    contact: Contact,
    journal: Journal,
    images: images::Images,
}

#[derive(Debug, Clone, Default)]
struct State {
    entries: BTreeMap<InstanceId, Held>,
    links: BTreeMap<InstanceId, u32>,
    /// Deleted instances whose disk was to be kept.
    kept: BTreeSet<InstanceId>,
    highest: Generation,
}

impl Ledger {
    /// Opens or makes the ledger.
    pub(crate) fn open(path: &Path, key: SealKey, pool: Pool) -> Result<Self, LedgerError> {
        let database = Database::create(path).map_err(|source| LedgerError::Open {
            path: path.to_owned(),
            source,
        })?;
        let mut ledger = Self {
            database,
            key,
            pool,
            state: Mutex::default(),
            contact: Contact::default(),
            journal: Journal::default(),
            images: images::Images::default(),
        };
        let (state, answered) = ledger.load()?;
        ledger.journal = ledger.load_journal(&state.entries.keys().copied().collect())?;
        ledger.contact = Contact::of(answered);
        ledger.images = ledger.load_images()?;
        *ledger.lock() = state;
        Ok(ledger)
    }

    /// Everything the node should do now: as ordered, but stopped where a lease is over.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        let silence = self.silence();
        self.lock()
            .entries
            .values()
            .map(|held| Arc::clone(held.at(silence)))
            .collect()
    }

    /// The same of one instance.
    pub(crate) fn entry(&self, id: InstanceId) -> Option<Arc<Entry>> {
        let silence = self.silence();
        self.lock().entries.get(&id).map(|held| Arc::clone(held.at(silence)))
    }

    /// Whether the disk of an instance that is in no order was kept on purpose.
    pub(crate) fn is_kept(&self, id: InstanceId) -> bool {
        self.lock().kept.contains(&id)
    }

    /// The highest generation seen.
    pub(crate) fn highest_generation(&self) -> Generation {
        self.lock().highest
    }

    /// Takes orders. `gone` are instances of which nothing is left here: when such a one was to be
    /// deleted and is no longer listed, the coordinator has heard of it, and it is forgotten.
    /// Returns the orders that were refused because they are older than what is known.
    pub(crate) fn receive(&self, orders: &Orders, gone: &BTreeSet<InstanceId>) -> Result<Vec<InstanceId>, LedgerError> {
        if let Some(images) = &orders.images {
            self.receive_images(images)?;
        }
        let mut next = self.lock().clone();
        let mut refused = Vec::new();
        let mut changed: Vec<&InstanceOrder> = Vec::new();
        for order in &orders.instances {
            match next.entries.get(&order.id).map(|held| &held.entry) {
                Some(entry) if order.generation < entry.order.generation => refused.push(order.id),
                Some(entry) if entry.order == *order => {}
                _ => changed.push(order),
            }
        }
        let listed: BTreeSet<InstanceId> = orders.instances.iter().map(|order| order.id).collect();
        let forgotten: Vec<InstanceId> = next
            .entries
            .values()
            .map(|held| &held.entry)
            .filter(|entry| matches!(entry.order.desired, Desired::Deleted { .. }))
            .map(|entry| entry.order.id)
            .filter(|id| gone.contains(id) && !listed.contains(id))
            .collect();
        for id in &forgotten {
            let held = next.entries.remove(id);
            if held.is_some_and(|held| held.entry.order.desired == (Desired::Deleted { purge: false })) {
                next.kept.insert(*id);
            }
            next.links.remove(id);
        }
        // One that gets no address must not keep the others, a deletion that frees one among them.
        let wanted = std::mem::take(&mut changed);
        for order in wanted {
            let known = next.links.get(&order.id).copied();
            let index = match known.map_or_else(|| free_index(&next.links, self.pool), Ok) {
                Ok(index) => index,
                Err(error) => {
                    tracing::error!(instance = %order.id, error = %Chain(&error), "an order is not taken");
                    continue;
                }
            };
            let link = self.link(order, index)?;
            changed.push(order);
            next.links.insert(order.id, index);
            next.entries.insert(order.id, Held::new(order.clone(), link));
            next.kept.remove(&order.id);
            next.highest = next.highest.max(order.generation);
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(ORDERS)?;
            let mut links = transaction.open_table(LINKS)?;
            let mut kept = transaction.open_table(KEPT)?;
            for id in &forgotten {
                let key = id.to_string();
                table.remove(key.as_str())?;
                links.remove(key.as_str())?;
                if next.kept.contains(id) {
                    kept.insert(key.as_str(), ())?;
                }
            }
            for order in &changed {
                let key = order.id.to_string();
                kept.remove(key.as_str())?;
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
        self.journal.forget(&forgotten);
        self.contact.look_again();
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

    fn link(&self, order: &InstanceOrder, index: u32) -> Result<Link, PoolError> {
        let link = self.pool.link(order.id, index)?;
        Ok(link.shared_by(recipe::members(&order.spec).into_iter().map(Member::position)))
    }

    fn load(&self) -> Result<(State, Option<Moment>), LedgerError> {
        let mut state = State::default();
        let mut answered = None;
        self.write(|transaction| {
            schema::migrate(transaction)?;
            let meta = transaction.open_table(META)?;
            let number = |meta: &redb::Table<'_, &str, u64>, name| -> Result<Option<u64>, LedgerError> {
                Ok(meta.get(name).map_err(redb::Error::from)?.map(|value| value.value()))
            };
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
                let link = self.link(&order, index)?;
                state.entries.insert(id, Held::new(order, link));
            }
            for row in transaction.open_table(KEPT)?.iter()? {
                state.kept.extend(row?.0.value().parse::<InstanceId>());
            }
            // One that cannot be read counts as none: then leases are over until the coordinator answers.
            let records = transaction.open_table(RECORDS)?;
            answered = records
                .get(ANSWERED)?
                .and_then(|text| serde_json::from_str(text.value()).ok());
            Ok(())
        })?;
        Ok((state, answered))
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
