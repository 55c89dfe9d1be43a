//! `crabshack-node-agent pool`: one preallocated file with a btrfs for all volumes, where the node's
//! disk itself enforces no sizes. The daemon only uses what is mounted; it never makes or mounts a pool.

mod create;
mod grow;
mod record;
mod status;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Subcommand;
use crabshack_shared::{resources::Bytes, telemetry::Chain};

use self::record::Record;
use crate::{
    command::{CommandError, Program},
    volume::{self, VolumeError, mount_of},
};

const MKFS: Program = Program {
    name: "mkfs.btrfs",
    package: "btrfs-progs",
    deadline: Duration::from_secs(600),
};
const MOUNT: Program = Program {
    name: "mount",
    package: "mount",
    deadline: Duration::from_secs(120),
};
const LOSETUP: Program = Program {
    name: "losetup",
    package: "mount",
    deadline: Duration::from_secs(60),
};

/// A discard would give the preallocated blocks back, so that the pool could run out of room that it
/// has promised. Access times would be writes that count. No compression: quotas count what is
/// stored, so a full disk would come at another size for every content.
const MOUNT_OPTIONS: &str = "loop,noatime,nodiscard";

/// What to do with the pool.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make the pool and mount it. Run it before the node has instances.
    Create {
        /// Its size, like 200g; by default 60 % of the free space, and at least 10 GiB stay free.
        #[arg(long)]
        size: Option<Bytes>,
        /// Its file; by default pool.btrfs in the data folder.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Make the pool larger while it is in use.
    Grow {
        /// Its new size, like 400g.
        #[arg(long)]
        size: Bytes,
    },
    /// Show how volumes are kept, what is used, and what is promised.
    Status,
}

/// Why a pool command did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("cannot {action} {path}")]
    Disk {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the pool cannot be set up")]
    Command(#[from] CommandError),
    #[error("the volumes cannot be looked at")]
    Volumes(#[from] VolumeError),
    #[error(transparent)]
    NotMounted(#[from] NotMounted),
    #[error("{} already holds volumes that are plain folders: move them away, create the pool, and move each instance's folder back (it stays without a quota); or leave them and do without a pool", path.display())]
    HoldsVolumes { path: PathBuf },
    #[error("{} is on btrfs already, so no pool is needed: run `btrfs quota enable {0}`", path.display())]
    Needless { path: PathBuf },
    #[error("something else is mounted at {}: unmount it first", path.display())]
    Taken { path: PathBuf },
    #[error("{} exists and is not a pool of ours: name another with --file", path.display())]
    Foreign { path: PathBuf },
    #[error("the pool {} has {found}, not {asked}: change its size with `pool grow`", path.display())]
    OtherSize { path: PathBuf, found: Bytes, asked: Bytes },
    #[error("there is no room for {asked}: {free} are free on the disk of {}", path.display())]
    NoRoom { path: PathBuf, asked: Bytes, free: Bytes },
    #[error("a pool of {asked} is too small: use at least {least}")]
    TooSmall { asked: Bytes, least: Bytes },
    #[error("the pool has {found} already and cannot shrink to {asked}")]
    Shrinks { found: Bytes, asked: Bytes },
    #[error("there is no pool: make one with `crabshack-node-agent pool create`")]
    None,
    #[error("{} is not a record of a pool: it should hold the pool's file", path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// A pool was made, and it is not where the volumes should be.
#[derive(Debug, thiserror::Error)]
#[error(
    "the pool {file} is not mounted at {instances}: mount it (`mount -t btrfs -o {MOUNT_OPTIONS} {file} {instances}`); if it is gone for good, remove {record}"
)]
pub(crate) struct NotMounted {
    file: String,
    instances: String,
    record: String,
}

/// The folder of all volumes.
pub(crate) fn instances(data: &Path) -> PathBuf {
    data.join("instances")
}

/// Refuses when the node's pool should be mounted and is not.
pub(crate) fn check_mounted(data: &Path) -> Result<(), NotMounted> {
    // A record that cannot be read is no reason to give every instance an empty home either.
    let (path, instances) = (Record::path(data), instances(data));
    if !path.exists() || is_mounted(&instances) {
        return Ok(());
    }
    let file = Record::load(data)
        .ok()
        .flatten()
        .map_or_else(|| "of this node".to_owned(), |record| record.file.display().to_string());
    Err(NotMounted {
        file,
        instances: instances.display().to_string(),
        record: path.display().to_string(),
    })
}

/// Whether a btrfs is mounted at the very folder.
fn is_mounted(instances: &Path) -> bool {
    let point = instances.canonicalize().ok();
    let mount = mount_of(instances).ok().flatten();
    point.is_some() && mount.is_some_and(|mount| Some(mount.point) == point && mount.kind == "btrfs")
}

/// Does it, and tells the person.
pub(crate) async fn run(data: &Path, command: &PoolCommand) -> ExitCode {
    let result = match command {
        PoolCommand::Create { size, file } => create::create(data, *size, file.as_deref()).await,
        PoolCommand::Grow { size } => grow::grow(data, *size).await,
        PoolCommand::Status => status::status(data).await,
    };
    // Whoever closed the stream does not want to know.
    match result {
        Ok(text) => {
            drop(writeln!(io::stdout(), "{}", text.trim_end()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(writeln!(io::stderr(), "{}", Chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// What can be written to the disk of a folder.
fn free(folder: &Path) -> Result<Bytes, PoolError> {
    let disk = rustix::fs::statvfs(folder).map_err(|error| disk_error("look at", folder, error.into()))?;
    Ok(Bytes::new(disk.f_bavail * disk.f_frsize))
}

fn disk_error(action: &'static str, path: &Path, source: io::Error) -> PoolError {
    PoolError::Disk {
        action,
        path: path.to_owned(),
        source,
    }
}

fn holds_volumes(instances: &Path) -> Result<bool, PoolError> {
    volume::holds_volumes(instances).map_err(|error| disk_error("look at", instances, error))
}
