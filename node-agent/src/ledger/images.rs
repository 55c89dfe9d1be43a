//! What the node must remember of images: what the coordinator said of them, which ones it pulled
//! itself, and with which each instance was last well.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use crabshack_shared::{
    agent_api::v1::{ImageOrders, InstanceReport, Phase},
    ids::InstanceId,
    image::ImageReference,
    seal::{SealError, Sealed},
};
use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{Ledger, LedgerError, schema::RECORDS};
use crate::images::Pulled;

/// In [`RECORDS`], sealed: it holds passwords.
const IMAGE_ORDERS: &str = "images";
/// What was pulled, as JSON by reference.
const PULLED: TableDefinition<&str, &str> = TableDefinition::new("pulled_images");
/// With which image each instance was well, as JSON by instance.
const WELL: TableDefinition<&str, &str> = TableDefinition::new("well_images");

/// With which images an instance answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Well {
    /// Last.
    pub(crate) with: ImageReference,
    /// Before that; what an upgrade can go back to.
    pub(crate) before: Option<ImageReference>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct PulledRecord {
    at: DateTime<Utc>,
    unneeded_since: Option<DateTime<Utc>>,
}

/// The copy of what is on the disk.
#[derive(Debug)]
pub(super) struct Images {
    orders: watch::Sender<ImageOrders>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pulled: BTreeMap<ImageReference, PulledRecord>,
    well: BTreeMap<InstanceId, Well>,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            orders: watch::Sender::new(ImageOrders::default()),
            state: Mutex::default(),
        }
    }
}

/// The tables, in a new ledger or one of an earlier schema.
pub(super) fn open_tables(transaction: &WriteTransaction) -> Result<(), LedgerError> {
    transaction.open_table(PULLED)?;
    transaction.open_table(WELL)?;
    Ok(())
}

impl Ledger {
    /// What the coordinator last said of images.
    pub(crate) fn image_orders(&self) -> watch::Receiver<ImageOrders> {
        self.images.orders.subscribe()
    }

    /// Takes what the coordinator says of images.
    pub(super) fn receive_images(&self, orders: &ImageOrders) -> Result<(), LedgerError> {
        if *self.images.orders.borrow() == *orders {
            return Ok(());
        }
        let sealed = self.key.seal(IMAGE_ORDERS, orders)?;
        let text = serde_json::to_string(&sealed).map_err(SealError::Content)?;
        self.write(|transaction| {
            transaction.open_table(RECORDS)?.insert(IMAGE_ORDERS, text.as_str())?;
            Ok(())
        })?;
        self.images.orders.send_replace(orders.clone());
        Ok(())
    }

    /// What was pulled here.
    pub(crate) fn pulled(&self) -> Vec<Pulled> {
        let state = self.images.lock();
        let all = state.pulled.iter().map(|(image, record)| Pulled {
            image: image.clone(),
            at: record.at,
            unneeded_since: record.unneeded_since,
        });
        all.collect()
    }

    /// An image is about to be pulled: from now on it is ours to remove.
    pub(crate) fn note_pull(&self, image: &ImageReference, at: DateTime<Utc>) -> Result<(), LedgerError> {
        let record = PulledRecord {
            at,
            unneeded_since: None,
        };
        self.put_pulled(image, record)
    }

    /// Since when nobody needs an image; none: it is needed.
    pub(crate) fn note_unneeded(&self, image: &ImageReference, since: Option<DateTime<Utc>>) -> Result<(), LedgerError> {
        let known = self.images.lock().pulled.get(image).cloned();
        match known {
            Some(mut record) => {
                record.unneeded_since = since;
                self.put_pulled(image, record)
            }
            None => Ok(()),
        }
    }

    /// An image is not here any more.
    pub(crate) fn forget_pulled(&self, image: &ImageReference) -> Result<(), LedgerError> {
        self.write(|transaction| {
            transaction.open_table(PULLED)?.remove(image.to_string().as_str())?;
            Ok(())
        })?;
        self.images.lock().pulled.remove(image);
        Ok(())
    }

    fn put_pulled(&self, image: &ImageReference, record: PulledRecord) -> Result<(), LedgerError> {
        let text = serde_json::to_string(&record).map_err(SealError::Content)?;
        self.write(|transaction| {
            transaction
                .open_table(PULLED)?
                .insert(image.to_string().as_str(), text.as_str())?;
            Ok(())
        })?;
        self.images.lock().pulled.insert(image.clone(), record);
        Ok(())
    }

    /// With which images instances were well.
    pub(crate) fn well(&self) -> BTreeMap<InstanceId, Well> {
        self.images.lock().well.clone()
    }

    /// Takes in which instances answer now: what each runs with is good.
    pub(crate) fn note_well(&self, reports: &[InstanceReport]) -> Result<(), LedgerError> {
        let ready = reports
            .iter()
            .filter(|report| report.phase == Phase::Ready && !report.pending_change);
        let mut changed = Vec::new();
        for report in ready {
            let Some(entry) = self.entry(report.id) else { continue };
            let with = &entry.order.spec.image;
            let known = self.images.lock().well.get(&report.id).cloned();
            if report.generation != Some(entry.order.generation) || known.as_ref().is_some_and(|known| known.with == *with) {
                continue;
            }
            let before = known.map(|known| known.with);
            changed.push((
                report.id,
                Well {
                    with: with.clone(),
                    before,
                },
            ));
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(WELL)?;
            for (id, well) in &changed {
                let text = serde_json::to_string(well).map_err(SealError::Content)?;
                table.insert(id.to_string().as_str(), text.as_str())?;
            }
            Ok(())
        })?;
        self.images.lock().well.extend(changed);
        Ok(())
    }

    /// Forgets with which images instances were well that are in no order any more.
    pub(crate) fn retain_well(&self) -> Result<(), LedgerError> {
        let ordered: BTreeSet<InstanceId> = self.entries().iter().map(|entry| entry.order.id).collect();
        let gone: Vec<InstanceId> = self
            .images
            .lock()
            .well
            .keys()
            .copied()
            .filter(|id| !ordered.contains(id))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(WELL)?;
            for id in &gone {
                table.remove(id.to_string().as_str())?;
            }
            Ok(())
        })?;
        self.images.lock().well.retain(|id, _| ordered.contains(id));
        Ok(())
    }

    pub(super) fn load_images(&self) -> Result<Images, LedgerError> {
        let images = Images::default();
        self.write(|transaction| {
            let mut state = images.lock();
            for row in transaction.open_table(PULLED)?.iter()? {
                let (image, text) = row?;
                if let (Ok(image), Some(record)) = (image.value().parse(), readable(text.value())) {
                    state.pulled.insert(image, record);
                }
            }
            for row in transaction.open_table(WELL)?.iter()? {
                let (id, text) = row?;
                if let (Ok(id), Some(well)) = (id.value().parse(), readable(text.value())) {
                    state.well.insert(id, well);
                }
            }
            drop(state);
            let records = transaction.open_table(RECORDS)?;
            if let Some(text) = records.get(IMAGE_ORDERS)? {
                let sealed: Sealed = serde_json::from_str(text.value()).map_err(SealError::Content)?;
                images.orders.send_replace(self.key.open(IMAGE_ORDERS, &sealed)?);
            }
            Ok(())
        })?;
        Ok(images)
    }
}

/// One record that cannot be read costs an image that is pulled again, not the node.
fn readable<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text)
        .inspect_err(|error| tracing::warn!(%error, "a record of an image cannot be read and is passed over"))
        .ok()
}

impl Images {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
