//! Schema versions: what a store goes through when a later version opens it. Each step is one
//! transaction, so a kill leaves the store as it was before the step or after it.

use crabshack_shared::generation::Generation;

use super::{StoreError, Writing, images::IMAGES, registries::REGISTRIES, tables};

/// The schema that this version reads and writes.
pub(super) const SCHEMA: u64 = 3;

impl Writing {
    /// Makes the tables of a new store, brings an older one to this schema, refuses a newer one.
    pub(super) fn prepare(&self) -> Result<(), StoreError> {
        let found = self.schema()?;
        match found {
            0 => self.first()?,
            1..SCHEMA => {
                if found < 2 {
                    self.keep_events()?;
                }
                if found < 3 {
                    self.know_images()?;
                }
            }
            SCHEMA => return Ok(()),
            _ => return Err(StoreError::Newer { found, known: SCHEMA }),
        }
        if found != 0 {
            tracing::info!("the store was brought from schema {found} to {SCHEMA}");
        }
        self.set_schema(SCHEMA)
    }

    fn first(&self) -> Result<(), StoreError> {
        for table in [
            tables::INSTANCES,
            tables::RETIRED,
            tables::OBSERVATIONS,
            tables::NODES,
            tables::JOIN_TOKENS,
        ] {
            self.0.open_table(table)?;
        }
        self.0.open_table(tables::NAMES)?;
        self.0.open_table(tables::PORTS)?;
        self.0.open_table(tables::EVENTS)?;
        self.know_images()?;
        self.set_generation(Generation::default().next_epoch())
    }

    /// From 1 to 2: histories, and instances that say more of themselves. What was put away said
    /// nothing of holding no memory.
    fn keep_events(&self) -> Result<(), StoreError> {
        self.0.open_table(tables::EVENTS)?;
        for mut record in self.retired_instances()? {
            record.disk_only = true;
            record.wish_generation = record.generation;
            self.put(tables::RETIRED, &record.id.to_string(), &record)?;
        }
        for mut record in self.instances()? {
            record.wish_generation = record.generation;
            self.put_instance(&record)?;
        }
        Ok(())
    }

    /// From 2 to 3: the list of images, and registries.
    fn know_images(&self) -> Result<(), StoreError> {
        self.0.open_table(IMAGES)?;
        self.0.open_table(REGISTRIES)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
