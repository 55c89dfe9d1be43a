//! The store of a Docker inside an instance: apart from the home, bounded on its own, and never kept
//! from one container to the next, since what it holds can be fetched again.

use std::path::Path;

use crabshack_shared::{ids::InstanceId, resources::Bytes};

use super::{VolumeError, Volumes, blocking, folder};

impl Volumes {
    /// Makes the store of an instance, empty. On a plain folder nothing bounds it, like the home.
    pub(crate) async fn renew_inner(&self, id: InstanceId, size: Bytes) -> Result<(), VolumeError> {
        let path = self.folder(id).inner;
        self.remove_inner(&path).await?;
        let Some(btrfs) = &self.btrfs else {
            let made = path.clone();
            return blocking("make", path, move || folder::make_plain(&made)).await;
        };
        let made = btrfs.create_bounded(&path, size).await;
        made.map_err(|source| VolumeError::Command {
            action: "make",
            path,
            source,
        })
    }

    pub(super) async fn remove_inner(&self, path: &Path) -> Result<(), VolumeError> {
        let looked = path.to_owned();
        let is_subvolume = blocking("look at", path.to_owned(), move || folder::subvolume(&looked)).await?;
        match &self.btrfs {
            Some(btrfs) if is_subvolume == Some(true) => {
                let removed = btrfs.delete_own(path).await;
                removed.map_err(|source| VolumeError::Command {
                    action: "remove",
                    path: path.to_owned(),
                    source,
                })
            }
            _ => self.discard(path).await,
        }
    }
}
