//! Numbers about the store: its schema version, the generations and ports given out, and up to where
//! the events of each node are kept.

use crabshack_shared::{generation::Generation, ids::NodeId};

use super::{Snapshot, Source, StoreError, Writing, tables};

const KEY_SCHEMA: &str = "schema";
const KEY_EPOCH: &str = "epoch";
const KEY_COUNTER: &str = "counter";
const KEY_PORT: &str = "last_ssh_port";

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// The last generation given out.
    pub(crate) fn last_generation(&self) -> Result<Generation, StoreError> {
        Ok(Generation {
            // Only ever written from a u32.
            epoch: u32::try_from(self.0.number(KEY_EPOCH)?).unwrap_or(u32::MAX),
            counter: self.0.number(KEY_COUNTER)?,
        })
    }

    /// The sequence of the last event of a node that is kept.
    pub(crate) fn events_kept(&self, node: &NodeId) -> Result<u64, StoreError> {
        self.0.number(&key_events(node))
    }

    pub(super) fn schema(&self) -> Result<u64, StoreError> {
        self.0.number(KEY_SCHEMA)
    }

    pub(super) fn last_port(&self) -> Result<u64, StoreError> {
        self.0.number(KEY_PORT)
    }
}

impl Writing {
    /// Gives out the next generation.
    pub(crate) fn next_generation(&self) -> Result<Generation, StoreError> {
        let next = self.last_generation()?.next();
        self.set_generation(next)?;
        Ok(next)
    }

    /// Starts the next epoch, so that everything said from now on outranks everything before.
    pub(crate) fn raise_epoch(&self) -> Result<Generation, StoreError> {
        let raised = self.last_generation()?.next_epoch();
        self.set_generation(raised)?;
        Ok(raised)
    }

    /// Starts an epoch above what a node has seen. None: nothing needed to be done.
    pub(crate) fn raise_epoch_above(&self, seen: Generation) -> Result<Option<Generation>, StoreError> {
        if seen <= self.last_generation()? {
            return Ok(None);
        }
        let raised = seen.next_epoch();
        self.set_generation(raised)?;
        Ok(Some(raised))
    }

    pub(super) fn set_last_port(&self, port: u16) -> Result<(), StoreError> {
        self.set_number(KEY_PORT, port.into())
    }

    pub(super) fn set_events_kept(&self, node: &NodeId, sequence: u64) -> Result<(), StoreError> {
        self.set_number(&key_events(node), sequence)
    }

    pub(super) fn set_schema(&self, schema: u64) -> Result<(), StoreError> {
        self.set_number(KEY_SCHEMA, schema)
    }

    pub(super) fn set_generation(&self, generation: Generation) -> Result<(), StoreError> {
        self.set_number(KEY_EPOCH, generation.epoch.into())?;
        self.set_number(KEY_COUNTER, generation.counter)
    }

    fn set_number(&self, key: &str, number: u64) -> Result<(), StoreError> {
        let mut table = self.0.open_table(tables::META)?;
        table.insert(key, number)?;
        Ok(())
    }
}

fn key_events(node: &NodeId) -> String {
    format!("events_kept/{node}")
}
