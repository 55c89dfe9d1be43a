//! Shows how volumes are kept.

use std::path::Path;

use crabshack_shared::{agent_api::v1::StorageKind, resources::Bytes};

use super::{PoolError, Record, check_mounted, instances};
use crate::volume::{Volume, Volumes};

/// Returns a table for people.
pub(super) async fn status(data: &Path) -> Result<String, PoolError> {
    check_mounted(data)?;
    let volumes = Volumes::open(instances(data)).await?;
    let storage = volumes.storage().await?;
    let facts = storage.facts();
    let kind = match facts.kind {
        StorageKind::Btrfs => "btrfs: every volume is kept within its storage_size",
        StorageKind::Directory => "plain folders: storage_size is not enforced",
    };
    let mut lines = vec![("kind", kind.to_owned())];
    lines.extend(Record::load(data)?.map(|record| ("file", record.file.display().to_string())));
    lines.push(("size", mebibytes(storage.total)));
    lines.push(("used", mebibytes(storage.used)));
    let capacity = storage.capacity();
    lines.extend(
        storage
            .promised
            .map(|promised| ("promised", format!("{} of {}", mebibytes(promised), mebibytes(capacity)))),
    );
    lines.extend(storage.warnings().into_iter().map(|warning| ("warning", warning)));
    for (id, volume) in volumes.list().await? {
        let size = match &volume {
            Volume::Unfinished => "unfinished".to_owned(),
            Volume::Plain => "plain folder".to_owned(),
            Volume::Quota(usage) => {
                let limit = usage.limit.map_or_else(|| "no limit yet".to_owned(), mebibytes);
                format!("{} of {limit}", mebibytes(usage.used))
            }
        };
        lines.push(("instance", format!("{id}  {size}")));
    }
    Ok(lines.into_iter().map(|(name, value)| format!("{name:9} {value}\n")).collect())
}

fn mebibytes(bytes: Bytes) -> String {
    format!("{} MiB", bytes.get().div_ceil(1 << 20))
}
