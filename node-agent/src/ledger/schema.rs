//! The tables of the ledger and their versions. Every version has a migration from the one before;
//! a newer one is refused.

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};

use super::{LedgerError, images};

/// What this node agent writes.
///
/// 1: orders and links. 2: events with their sequence, the phase last told of each instance, the
/// coordinator's last answer, and which disks were kept on purpose. 3: what is known of images.
pub(super) const SCHEMA: u64 = 3;

/// Numbers of the node.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Sealed orders by instance.
pub(super) const ORDERS: TableDefinition<&str, &str> = TableDefinition::new("orders");
/// Index of the link by instance.
pub(super) const LINKS: TableDefinition<&str, u32> = TableDefinition::new("links");
/// Events as JSON by sequence.
pub(super) const EVENTS: TableDefinition<u64, &str> = TableDefinition::new("events");
/// What the last event of each instance said, as JSON.
pub(super) const TOLD: TableDefinition<&str, &str> = TableDefinition::new("told");
/// Records of the node as JSON.
pub(super) const RECORDS: TableDefinition<&str, &str> = TableDefinition::new("records");
/// Instances that were deleted and whose disk was to be kept.
pub(super) const KEPT: TableDefinition<&str, ()> = TableDefinition::new("kept");

/// In [`META`].
pub(super) const VERSION: &str = "schema";
/// In [`META`]: of the last event that was written.
pub(super) const SEQUENCE: &str = "event_sequence";
/// In [`RECORDS`]: when the coordinator last answered.
pub(super) const ANSWERED: &str = "answered";

/// Brings the tables to the present version, or refuses a newer one.
pub(super) fn migrate(transaction: &WriteTransaction) -> Result<(), LedgerError> {
    let mut meta = transaction.open_table(META)?;
    let found = meta.get(VERSION)?.map(|version| version.value());
    match found {
        Some(found) if found > SCHEMA => return Err(LedgerError::Newer { found }),
        // New, or of version 1: what version 2 adds begins empty, and no event has been given a number.
        None | Some(0..=1) => {
            transaction.open_table(EVENTS)?;
            transaction.open_table(TOLD)?;
            transaction.open_table(RECORDS)?;
            transaction.open_table(KEPT)?;
            meta.insert(SEQUENCE, 0)?;
        }
        Some(_) => {}
    }
    // Begins empty: what was pulled before stays, since nobody knows who pulled it.
    if found.is_none_or(|found| found < 3) {
        images::open_tables(transaction)?;
    }
    meta.insert(VERSION, SCHEMA)?;
    Ok(())
}
