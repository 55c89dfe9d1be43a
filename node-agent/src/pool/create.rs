//! Makes the pool. Every step can be run again; the file gets its name when it is complete.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crabshack_shared::resources::Bytes;
use rustix::fs::FallocateFlags;

use super::{MKFS, MOUNT, MOUNT_OPTIONS, PoolError, Record, disk_error, free, holds_volumes, instances, is_mounted};
use crate::{
    command::{self, Input},
    volume::{self, BTRFS, is_btrfs, mount_of},
};

/// For images, logs and the ledger.
const STAYS_FREE: u64 = 10 << 30;
/// Of the free space, in percent, when no size is given.
const SHARE: u64 = 60;
/// btrfs needs a good part of a smaller one for itself.
const LEAST: Bytes = Bytes::mebibytes(512);
/// How we know a pool of ours again.
const LABEL: &str = "crabshack-pool";

/// Makes and mounts it; returns what to tell.
pub(super) async fn create(data: &Path, size: Option<Bytes>, file: Option<&Path>) -> Result<String, PoolError> {
    let instances = instances(data);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&instances)
        .map_err(|error| disk_error("make", &instances, error))?;
    let record = Record::load(data)?;
    let file = match (&record, file) {
        (Some(record), _) => record.file.clone(),
        (None, Some(file)) => std::path::absolute(file).map_err(|error| disk_error("name", file, error))?,
        (None, None) => data.join("pool.btrfs"),
    };
    if !is_mounted(&instances) {
        check(data, &instances, record.is_some())?;
        make_file(&file, size).await?;
        Record { file: file.clone() }.save(data)?;
        let words = ["-t", "btrfs", "-o", MOUNT_OPTIONS].map(OsStr::new);
        command::run(
            MOUNT,
            &[&words[..], &[file.as_os_str(), instances.as_os_str()]].concat(),
            Input::Nothing,
        )
        .await?;
    } else if record.is_none() {
        return Err(PoolError::Needless { path: instances });
    }
    // A new filesystem lets everybody look in.
    fs::set_permissions(&instances, fs::Permissions::from_mode(0o700)).map_err(|error| disk_error("close", &instances, error))?;
    check_size(&file, size)?;
    enable_quotas(&instances).await?;
    Ok(told(&file, &instances, length(&file)?))
}

fn check(data: &Path, instances: &Path, made_before: bool) -> Result<(), PoolError> {
    let failed = |error| disk_error("look at", instances, error);
    let mount = mount_of(instances).map_err(failed)?;
    if mount.is_some_and(|mount| instances.canonicalize().is_ok_and(|path| path == mount.point)) {
        return Err(PoolError::Taken {
            path: instances.to_owned(),
        });
    }
    if holds_volumes(instances)? {
        return Err(PoolError::HoldsVolumes {
            path: instances.to_owned(),
        });
    }
    if !made_before && is_btrfs(data).map_err(failed)? {
        return Err(PoolError::Needless {
            path: instances.to_owned(),
        });
    }
    Ok(())
}

async fn make_file(file: &Path, size: Option<Bytes>) -> Result<(), PoolError> {
    let failed = |action| move |error| disk_error(action, file, error);
    if file.exists() {
        let words = ["filesystem", "label"].map(OsStr::new);
        let label = command::run(BTRFS, &[&words[..], &[file.as_os_str()]].concat(), Input::Nothing).await;
        let ours = label.is_ok_and(|label| label.trim_ascii() == LABEL.as_bytes());
        return if ours {
            Ok(())
        } else {
            Err(PoolError::Foreign { path: file.to_owned() })
        };
    }
    let folder = file.parent().unwrap_or(Path::new("/"));
    let free = free(folder)?;
    let size = size.unwrap_or_else(|| default_size(free));
    if size < LEAST {
        return Err(PoolError::TooSmall {
            asked: size,
            least: LEAST,
        });
    }
    if size > free {
        return Err(PoolError::NoRoom {
            path: folder.to_owned(),
            asked: size,
            free,
        });
    }
    let mut unfinished = OsString::from(file);
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed("make"))?;
    // Not a sparse file: what is promised must be there when it is written.
    rustix::fs::fallocate(&opened, FallocateFlags::empty(), 0, size.get()).map_err(|error| {
        drop(fs::remove_file(&unfinished));
        failed("preallocate")(error.into())
    })?;
    let words = ["--quiet", "--nodiscard", "--label", LABEL].map(OsStr::new);
    command::run(MKFS, &[&words[..], &[unfinished.as_os_str()]].concat(), Input::Nothing).await?;
    let finish = || {
        opened.sync_all()?;
        fs::rename(&unfinished, file)?;
        File::open(folder)?.sync_all()
    };
    finish().map_err(failed("name"))
}

fn default_size(free: Bytes) -> Bytes {
    let share = (free.get() / 100 * SHARE).min(free.get().saturating_sub(STAYS_FREE));
    Bytes::new(share >> 20 << 20)
}

fn check_size(file: &Path, asked: Option<Bytes>) -> Result<(), PoolError> {
    let found = length(file)?;
    match asked {
        Some(asked) if asked != found => Err(PoolError::OtherSize {
            path: file.to_owned(),
            found,
            asked,
        }),
        _ => Ok(()),
    }
}

/// Size of the pool's file.
pub(super) fn length(file: &Path) -> Result<Bytes, PoolError> {
    let metadata = fs::metadata(file).map_err(|error| disk_error("look at", file, error))?;
    Ok(Bytes::new(metadata.len()))
}

/// Simple quotas, where kernel and btrfs-progs (both from 6.7 on) know them: they count subvolumes
/// inside a home to the home, and cost nothing.
async fn enable_quotas(instances: &Path) -> Result<(), PoolError> {
    if volume::counts(instances) {
        return Ok(());
    }
    let enable = async |words: &[&str]| {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).chain([instances.as_os_str()]).collect();
        command::run(BTRFS, &words, Input::Nothing).await
    };
    if enable(&["quota", "enable", "--simple"]).await.is_err() {
        enable(&["quota", "enable"]).await?;
    }
    Ok(())
}

fn told(file: &Path, instances: &Path, size: Bytes) -> String {
    let (what, where_) = (file.display().to_string(), instances.display().to_string());
    let line = format!(
        "{} {} btrfs {MOUNT_OPTIONS},nofail,x-systemd.before=crabshack-node-agent.service,X-fstrim.notrim 0 0",
        what.replace(' ', "\\040"),
        where_.replace(' ', "\\040")
    );
    format!(
        "The pool {what} ({size}) is mounted at {where_}; new volumes are kept within their storage_size.\n\
         Restart the node agent if it runs already.\n\
         It must be mounted at every start before the node agent: by a mount unit with\n  \
         What={what}\n  Where={where_}\n  Type=btrfs\n  Options={MOUNT_OPTIONS}\n\
         or by this line in /etc/fstab:\n  {line}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size__should_by_default_leave_room_for_images_and_logs() {
        assert_eq!(default_size(Bytes::gibibytes(100)), Bytes::gibibytes(60));
        assert_eq!(default_size(Bytes::gibibytes(20)), Bytes::gibibytes(10));
        assert_eq!(default_size(Bytes::gibibytes(5)), Bytes::new(0));
    }

    #[test]
    fn line__should_survive_a_space_in_a_path() {
        let text = told(Path::new("/my data/pool.btrfs"), Path::new("/my data/instances"), LEAST);
        assert!(
            text.contains("/my\\040data/pool.btrfs /my\\040data/instances btrfs loop,"),
            "{text}"
        );
    }
}
