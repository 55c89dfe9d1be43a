//! Makes the pool larger: first the file, then the block device over it, then the filesystem. A kill
//! in between is made good by running it again.

use std::{ffi::OsStr, fs::OpenOptions, path::Path};

use crabshack_shared::resources::Bytes;
use rustix::fs::FallocateFlags;

use super::{LOSETUP, PoolError, Record, check_mounted, create::length, disk_error, free, instances};
use crate::{
    command::{self, Input},
    volume::BTRFS,
};

/// Grows it; returns what to tell.
pub(super) async fn grow(data: &Path, size: Bytes) -> Result<String, PoolError> {
    let record = Record::load(data)?.ok_or(PoolError::None)?;
    check_mounted(data)?;
    let found = length(&record.file)?;
    if size < found {
        return Err(PoolError::Shrinks { found, asked: size });
    }
    let folder = record.file.parent().unwrap_or(Path::new("/"));
    let more = Bytes::new(size.get() - found.get());
    let free = free(folder)?;
    if more > free {
        return Err(PoolError::NoRoom {
            path: folder.to_owned(),
            asked: more,
            free,
        });
    }
    if more.get() > 0 {
        let failed = |error| disk_error("preallocate", &record.file, error);
        let file = OpenOptions::new().write(true).open(&record.file).map_err(failed)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), found.get(), more.get()).map_err(|error| failed(error.into()))?;
        file.sync_all().map_err(failed)?;
    }
    let words = ["--noheadings", "--output", "NAME", "--associated"].map(OsStr::new);
    let devices = command::run(LOSETUP, &[&words[..], &[record.file.as_os_str()]].concat(), Input::Nothing).await?;
    for device in String::from_utf8_lossy(&devices).split_whitespace() {
        command::run(LOSETUP, &["--set-capacity", device], Input::Nothing).await?;
    }
    let instances = instances(data);
    let words = ["filesystem", "resize", "max"].map(OsStr::new);
    command::run(BTRFS, &[&words[..], &[instances.as_os_str()]].concat(), Input::Nothing).await?;
    Ok(format!("The pool {} has {size}.", record.file.display()))
}
