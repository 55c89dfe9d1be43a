//! Subvolumes that tenants make inside their homes: any user may, and classic quotas count such a one
//! to no group, or to a group of the tenant's choice. So every new subvolume is noticed within a
//! moment and put where it belongs; and all of them go before the home can go.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crabshack_shared::{ids::InstanceId, telemetry::Chain};

use super::{
    InstanceFolder, VolumeError, Volumes, blocking,
    btrfs::{Btrfs, Place, group},
    folder,
};
use crate::command::CommandError;

/// How long a new subvolume can go uncounted. Looking costs one listing of a folder of the kernel's.
const PERIOD: Duration = Duration::from_millis(250);
/// Periods between two sweeps.
const SWEEP: u64 = 40;
/// New subvolumes per period: more cannot make us busier.
const AT_ONCE: usize = 64;
/// Rounds of a removal; subvolumes that were moved into one another need several.
const ROUNDS: usize = 64;
/// A number without a subvolume is believed gone after so many looks.
const LOOKS: u32 = 4;

/// What is known of every subvolume.
#[derive(Debug, Default)]
pub(super) struct Nested {
    places: BTreeMap<u64, Place>,
    /// Numbers without a subvolume: it is gone, or not there yet.
    lost: BTreeMap<u64, Lost>,
    period: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lost {
    looks: u32,
    next: u64,
}

impl Nested {
    /// All that tenants made.
    pub(super) fn count(&self) -> usize {
        self.places.values().filter(|place| matches!(place, Place::Nested(_))).count()
    }

    /// Those of one instance.
    pub(super) fn count_of(&self, id: InstanceId) -> usize {
        self.of(id).len()
    }

    fn of(&self, id: InstanceId) -> Vec<u64> {
        let mine = self.places.iter().filter(|(_, place)| **place == Place::Nested(id));
        mine.map(|(number, _)| *number).collect()
    }

    /// Forgets what is gone, and says what to look at.
    fn unknown(&mut self, numbers: &BTreeSet<u64>, all: bool) -> Vec<u64> {
        self.places.retain(|number, _| numbers.contains(number));
        self.lost.retain(|number, _| numbers.contains(number));
        let due = |number: &&u64| {
            !self.places.contains_key(number) && self.lost.get(number).is_none_or(|lost| all || lost.next <= self.period)
        };
        numbers.iter().filter(due).copied().collect()
    }

    /// Looks less and less often.
    fn note_lost(&mut self, number: u64) {
        let period = self.period;
        let lost = self.lost.entry(number).or_insert(Lost { looks: 0, next: period });
        lost.looks += 1;
        lost.next = period + (1 << lost.looks.min(10));
    }
}

impl Volumes {
    /// Watches until the shutdown.
    pub(crate) async fn watch(self: Arc<Self>) {
        let Some(btrfs) = &self.btrfs else { return };
        let mut failing = false;
        loop {
            tokio::time::sleep(PERIOD).await;
            let period = {
                let mut nested = self.nested();
                nested.period += 1;
                nested.period
            };
            let mut result = self.place_new(btrfs, false).await;
            if result.is_ok() && period.is_multiple_of(SWEEP) {
                result = self.sweep(btrfs).await;
            }
            if let Err(error) = &result
                && !failing
            {
                tracing::error!(error = %Chain(error), "subvolumes that instances make cannot be counted");
            }
            failing = result.is_err();
        }
    }

    /// Finds out where new subvolumes are, and counts them to their instance. `all`: also those that
    /// were not found at the last look.
    async fn place_new(&self, btrfs: &Btrfs, all: bool) -> Result<(), VolumeError> {
        let qgroups = btrfs.qgroups.clone();
        let numbers = blocking("look at", self.root.clone(), move || Ok(qgroups.of_level(0)?)).await?;
        let unknown = self.nested().unknown(&numbers, all);
        let mut claims = None;
        for number in unknown.into_iter().take(if all { usize::MAX } else { AT_ONCE }) {
            let Some(located) = btrfs.path(number).await.map_err(|source| self.failed("look at", source))? else {
                self.nested().note_lost(number);
                continue;
            };
            if let Place::Nested(id) = located.place {
                let claims = match &mut claims {
                    Some(claims) => claims,
                    None => claims.insert(btrfs.claims().await.map_err(|source| self.failed("look at", source))?),
                };
                self.count_to(btrfs, number, id, claims.get(&number)).await?;
                tracing::warn!(instance = %id, subvolume = number, "an instance made a subvolume; it is counted to its volume");
            }
            let mut nested = self.nested();
            nested.lost.remove(&number);
            nested.places.insert(number, located.place);
        }
        Ok(())
    }

    async fn count_to(
        &self,
        btrfs: &Btrfs,
        number: u64,
        id: InstanceId,
        claimed: Option<&BTreeSet<u64>>,
    ) -> Result<(), VolumeError> {
        for foreign in claimed.into_iter().flatten().filter(|claimed| **claimed != group(id)) {
            match btrfs.unassign(number, *foreign).await {
                Ok(()) => {
                    tracing::warn!(instance = %id, subvolume = number, "an instance let its subvolume be counted to another's volume")
                }
                // The claim was invented.
                Err(CommandError::Failed { .. }) => {}
                Err(source) => return Err(self.failed("limit", source)),
            }
        }
        match btrfs.assign(number, group(id)).await {
            // It is gone again, or its home is a plain folder and has no group.
            Err(CommandError::Failed { .. }) | Ok(()) => Ok(()),
            Err(source) => Err(self.failed("limit", source)),
        }
    }

    /// Removes what removed volumes leave behind, and lets the kernel count again when it lost count.
    async fn sweep(&self, btrfs: &Btrfs) -> Result<(), VolumeError> {
        let gone: Vec<u64> = self
            .nested()
            .lost
            .iter()
            .filter(|(_, lost)| lost.looks >= LOOKS)
            .map(|(number, _)| *number)
            .collect();
        if !gone.is_empty() {
            let freed = btrfs.being_freed().await.map_err(|source| self.failed("look at", source))?;
            for number in gone.into_iter().filter(|number| !freed.contains(number)) {
                // Newer kernels do this themselves and refuse.
                drop(btrfs.remove_count(number).await);
            }
        }
        let inner = btrfs.clone();
        let left = blocking("look at", self.root.clone(), move || Ok(inner.left_groups()?)).await?;
        for number in left {
            // Busy while data is being freed: the next sweep tries again.
            drop(btrfs.remove_group(number).await);
        }
        if btrfs.qgroups.inconsistent() {
            btrfs.recount().await.map_err(|source| self.failed("count", source))?;
        }
        Ok(())
    }

    /// Removes every subvolume of an instance, the nested ones first. Nothing of it may run any more.
    pub(super) async fn remove_subvolumes(
        &self,
        btrfs: &Btrfs,
        id: InstanceId,
        folder: &InstanceFolder,
    ) -> Result<(), VolumeError> {
        self.place_new(btrfs, true).await?;
        for _ in 0..ROUNDS {
            let mine = self.nested().of(id);
            if mine.is_empty() {
                break;
            }
            // Younger ones are usually further inside.
            for number in mine.into_iter().rev() {
                self.remove_nested(btrfs, number, folder).await?;
            }
        }
        for path in [&folder.home, &folder.unfinished] {
            let looked = path.clone();
            if blocking("look at", path.clone(), move || folder::subvolume(&looked)).await? == Some(true) {
                btrfs
                    .delete_own(path)
                    .await
                    .map_err(|source| self.failed_at("remove", path, source))?;
            }
        }
        Ok(())
    }

    async fn remove_nested(&self, btrfs: &Btrfs, number: u64, folder: &InstanceFolder) -> Result<(), VolumeError> {
        let failed = |source| self.failed_at("remove a subvolume from", &folder.home, source);
        match btrfs.delete(number).await {
            Ok(()) => {
                let mut nested = self.nested();
                nested.places.remove(&number);
                nested.note_lost(number);
            }
            Err(error) if error.says("Directory not empty") => {}
            Err(error) if error.says("Read-only") => {
                // Whichever of those above it is read-only: make each writable.
                let located = btrfs.path(number).await.map_err(failed)?;
                let relative = located.map(|located| located.relative).unwrap_or_default();
                for above in relative.ancestors().filter(|above| above.components().count() >= 2) {
                    drop(btrfs.make_writable(above).await);
                }
            }
            Err(error) => {
                if btrfs.path(number).await.map_err(failed)?.is_some() {
                    return Err(failed(error));
                }
                self.nested().places.remove(&number);
            }
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, source: CommandError) -> VolumeError {
        self.failed_at(action, &self.root, source)
    }

    fn failed_at(&self, action: &'static str, path: &Path, source: CommandError) -> VolumeError {
        VolumeError::Command {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number__should_be_looked_at_less_often_while_nothing_is_there() {
        let mut nested = Nested::default();
        let numbers = BTreeSet::from([5, 256]);
        nested.places.insert(5, Place::Elsewhere);
        assert_eq!(nested.unknown(&numbers, false), [256]);
        nested.note_lost(256);
        assert!(nested.unknown(&numbers, false).is_empty());
        assert_eq!(nested.unknown(&numbers, true), [256]);
        nested.period += 2;
        assert_eq!(nested.unknown(&numbers, false), [256]);
        assert!(nested.unknown(&BTreeSet::new(), true).is_empty());
        assert!(nested.places.is_empty() && nested.lost.is_empty());
    }
}
