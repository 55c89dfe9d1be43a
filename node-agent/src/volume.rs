//! The disk of an instance. The only place that knows how a volume is kept: as a btrfs subvolume
//! whose size the kernel bounds, or as a plain folder where there is no btrfs with quotas.
//!
//! A home gets its name when it is complete, so whatever has that name is whole. The folder above it
//! belongs to root alone: its names cannot be swapped by a tenant, and names below it are never
//! followed.

mod btrfs;
mod folder;
mod inner;
mod mounts;
mod nested;
mod sysfs;
mod usage;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crabshack_shared::{ids::InstanceId, resources::Bytes};
use tokio::task::spawn_blocking;

#[cfg(test)]
pub(crate) use self::usage::VolumeUsage;
pub(crate) use self::{
    btrfs::{BTRFS, is_btrfs},
    folder::{AGENT, InstanceFolder, Owner},
    mounts::mount_of,
    usage::{Storage, Volume},
};
use self::{
    btrfs::{Btrfs, Found},
    nested::Nested,
};
use crate::command::CommandError;

/// Why a volume could not be made, found, limited or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The filesystem refused.
    #[error("cannot {action} {path}: check the disk and its permissions")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else is where the folder should be.
    #[error("{path} is not a folder: move it away, then the instance's folder is made there")]
    NotAFolder {
        /// Where.
        path: PathBuf,
    },
    /// A program of the system failed.
    #[error("cannot {action} {path}")]
    Command {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CommandError,
    },
    /// The pool is promised to others.
    #[error(
        "{wanted} more does not fit: {promised} of the pool's {capacity} are promised; grow it with `crabshack-node-agent pool grow`, or delete instances"
    )]
    NoRoom {
        /// What was asked for.
        wanted: Bytes,
        /// The sum of all limits.
        promised: Bytes,
        /// What may be promised in all.
        capacity: Bytes,
    },
    /// More is stored than the new limit allows.
    #[error("the volume cannot shrink to {wanted}: {used} are used; delete files first")]
    TooSmall {
        /// The new limit.
        wanted: Bytes,
        /// What is stored.
        used: Bytes,
    },
}

/// All volumes of the node.
#[derive(Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
    owner: Owner,
    btrfs: Option<Btrfs>,
    /// Why nothing bounds new volumes.
    unbounded: Option<String>,
    known: Mutex<BTreeMap<InstanceId, Volume>>,
    nested: Mutex<Nested>,
    /// What the pool can still promise, as of the last look.
    spare: AtomicU64,
    /// Held while a promise is checked and made, so that two cannot take the same room.
    promising: tokio::sync::Mutex<()>,
}

impl Volumes {
    /// Volumes below this folder, made with what its filesystem offers.
    pub(crate) async fn open(root: PathBuf) -> Result<Self, VolumeError> {
        let (path, owner) = (root.clone(), AGENT);
        blocking("make", root.clone(), move || folder::make_private(&path)).await?;
        let found = Btrfs::find(&root).await;
        let failed = |source| VolumeError::Command {
            action: "use the quotas of",
            path: root.clone(),
            source,
        };
        let (btrfs, unbounded) = match found.map_err(failed)? {
            Found::Quotas(btrfs) => (Some(btrfs), None),
            Found::Nothing(reason) => (None, Some(reason)),
        };
        let (known, nested, spare, promising) = Default::default();
        let volumes = Self {
            root,
            owner,
            btrfs,
            unbounded,
            known,
            nested,
            spare,
            promising,
        };
        volumes.look_at_spare().await?;
        Ok(volumes)
    }

    /// Where an instance's things are, whether they exist or not.
    pub(crate) fn folder(&self, id: InstanceId) -> InstanceFolder {
        InstanceFolder::new(&self.root, id)
    }

    /// Makes the volume of an instance, or completes it; what is in it stays. Idempotent.
    pub(crate) async fn ensure(&self, id: InstanceId, size: Bytes) -> Result<(), VolumeError> {
        let (folder, root, owner) = (self.folder(id), self.root.clone(), self.owner);
        let work = folder.clone();
        let finished = blocking("make", folder.root.clone(), move || folder::prepare(&root, &work, owner)).await?;
        if !finished {
            match &self.btrfs {
                Some(btrfs) => self.make_subvolume(btrfs, id, &folder, size).await?,
                None => {
                    self.discard(&folder.unfinished).await?;
                    let path = folder.unfinished.clone();
                    blocking("make", path.clone(), move || folder::make_plain(&path)).await?;
                }
            }
            blocking("name", folder.home.clone(), move || folder::finish(&folder, owner)).await?;
        }
        self.lock().remove(&id);
        Ok(())
    }

    /// Bounds a volume to a new size while it is in use. A plain folder stays unbounded.
    pub(crate) async fn limit(&self, id: InstanceId, size: Bytes) -> Result<(), VolumeError> {
        let Some(btrfs) = &self.btrfs else { return Ok(()) };
        let folder = self.folder(id);
        self.look_at_spare().await?;
        self.lock().remove(&id);
        let Volume::Quota(usage) = self.volume(id).await? else {
            return Ok(());
        };
        if usage.used > size {
            return Err(VolumeError::TooSmall {
                wanted: size,
                used: usage.used,
            });
        }
        let failed = |source| VolumeError::Command {
            action: "limit",
            path: folder.home.clone(),
            source,
        };
        let _promise = self.promising.lock().await;
        self.check_promise(btrfs, size, usage.limit.unwrap_or(Bytes::new(0)))?;
        btrfs.limit(id, size).await.map_err(failed)?;
        if usage.limit.is_none() {
            // It came here without its group, like one that was put back by hand.
            btrfs.adopt(id, &folder.home).await.map_err(failed)?;
        }
        self.lock().remove(&id);
        Ok(())
    }

    /// Removes everything of an instance, also what an earlier call left. Idempotent.
    pub(crate) async fn remove(&self, id: InstanceId) -> Result<(), VolumeError> {
        let folder = self.folder(id);
        self.remove_inner(&folder.inner).await?;
        if let Some(btrfs) = &self.btrfs {
            self.remove_subvolumes(btrfs, id, &folder).await?;
        }
        self.discard(&folder.root).await?;
        let root = self.root.clone();
        blocking("write down the removal of", folder.root.clone(), move || folder::sync(&root)).await?;
        if let Some(btrfs) = &self.btrfs {
            // The kernel still frees the data; a later sweep removes the group then.
            drop(btrfs.remove_group(btrfs::group(id)).await);
        }
        self.lock().remove(&id);
        Ok(())
    }

    /// Every instance of which anything is here. What is not named like one is passed over. Sizes are
    /// those of the last [`Self::refresh`].
    pub(crate) async fn list(&self) -> Result<BTreeMap<InstanceId, Volume>, VolumeError> {
        let root = self.root.clone();
        let ids = blocking("list", root.clone(), move || Ok(folder::list(&root)?)).await?;
        let mut volumes = BTreeMap::new();
        for id in ids {
            let known = self.lock().get(&id).cloned();
            let volume = match known {
                Some(volume) => volume,
                None => self.volume(id).await?,
            };
            volumes.insert(id, volume);
        }
        self.lock().retain(|id, _| volumes.contains_key(id));
        Ok(volumes)
    }

    /// Reads all sizes again: a few small files per instance, no program is run.
    pub(crate) async fn refresh(&self) -> Result<(), VolumeError> {
        self.look_at_spare().await?;
        let root = self.root.clone();
        for id in blocking("list", root.clone(), move || Ok(folder::list(&root)?)).await? {
            self.volume(id).await?;
        }
        Ok(())
    }

    /// The disk behind the volumes.
    pub(crate) async fn storage(&self) -> Result<Storage, VolumeError> {
        let (root, btrfs) = (self.root.clone(), self.btrfs.clone());
        let unbounded = self.unbounded.clone();
        let nested = self.nested().count();
        blocking("look at", root.clone(), move || {
            let mut storage = Storage::of(&root)?;
            storage.unbounded = unbounded;
            storage.nested = nested;
            storage.promised = btrfs.map(|btrfs| btrfs.promised()).transpose()?;
            Ok(storage)
        })
        .await
    }

    /// Looks at one volume, and remembers what it saw.
    async fn volume(&self, id: InstanceId) -> Result<Volume, VolumeError> {
        let (folder, btrfs) = (self.folder(id), self.btrfs.clone());
        let path = folder.home.clone();
        let mut volume = blocking("look at", path, move || match folder::subvolume(&folder.home)? {
            None => Ok(Volume::Unfinished),
            Some(true) if let Some(btrfs) = &btrfs => Ok(Volume::Quota(btrfs.usage(id)?)),
            Some(_) => Ok(Volume::Plain),
        })
        .await?;
        let mut known = self.lock();
        if let Volume::Quota(usage) = &mut volume {
            usage.nested = self.nested().count_of(id);
            usage.largest = Bytes::new(self.spare.load(Ordering::Relaxed) + usage.limit.map_or(0, Bytes::get));
            usage.show_after(known.get(&id));
        }
        known.insert(id, volume.clone());
        Ok(volume)
    }

    async fn look_at_spare(&self) -> Result<(), VolumeError> {
        let storage = self.storage().await?;
        let promised = storage.promised.map_or(0, Bytes::get);
        self.spare
            .store(storage.capacity().get().saturating_sub(promised), Ordering::Relaxed);
        Ok(())
    }

    async fn make_subvolume(
        &self,
        btrfs: &Btrfs,
        id: InstanceId,
        folder: &InstanceFolder,
        size: Bytes,
    ) -> Result<(), VolumeError> {
        let failed = |source| VolumeError::Command {
            action: "make",
            path: folder.home.clone(),
            source,
        };
        self.remove_subvolumes(btrfs, id, folder).await?;
        self.discard(&folder.unfinished).await?;
        let _promise = self.promising.lock().await;
        self.check_promise(
            btrfs,
            size,
            btrfs.usage(id).ok().and_then(|usage| usage.limit).unwrap_or(Bytes::new(0)),
        )?;
        // The limit stands before there is anything that it could have to stop.
        btrfs.limit(id, size).await.map_err(failed)?;
        btrfs.create(id, &folder.unfinished).await.map_err(failed)
    }

    fn check_promise(&self, btrfs: &Btrfs, wanted: Bytes, held: Bytes) -> Result<(), VolumeError> {
        let failed = |source| VolumeError::Disk {
            action: "look at",
            path: self.root.clone(),
            source,
        };
        let promised = btrfs.promised().map_err(failed)?;
        let capacity = Storage::of(&self.root).map_err(failed)?.capacity();
        if wanted > held && promised.get() - held.get() + wanted.get() > capacity.get() {
            return Err(VolumeError::NoRoom {
                wanted,
                promised,
                capacity,
            });
        }
        Ok(())
    }

    /// Removes a folder of ours with all that is in it.
    async fn discard(&self, path: &Path) -> Result<(), VolumeError> {
        let failed = |source| VolumeError::Command {
            action: "remove",
            path: path.to_owned(),
            source,
        };
        folder::discard(path).await.map_err(failed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Volume>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nested(&self) -> MutexGuard<'_, Nested> {
        self.nested.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a folder is on a btrfs that counts.
pub(crate) fn counts(folder: &Path) -> bool {
    btrfs::qgroups(folder).is_ok()
}

/// Whether a folder holds anything of instances.
pub(crate) fn holds_volumes(instances: &Path) -> io::Result<bool> {
    Ok(!folder::list(instances)?.is_empty())
}

/// What stopped a blocking step.
enum Stop {
    Disk(io::Error),
    NotAFolder(PathBuf),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    path: PathBuf,
    run: impl FnOnce() -> Result<T, Stop> + Send + 'static,
) -> Result<T, VolumeError> {
    let result = spawn_blocking(run)
        .await
        .unwrap_or_else(|error| Err(Stop::Disk(io::Error::other(error))));
    result.map_err(|stop| match stop {
        Stop::Disk(source) => VolumeError::Disk { action, path, source },
        Stop::NotAFolder(path) => VolumeError::NotAFolder { path },
    })
}

#[cfg(test)]
mod tests;
