//! Sizes: what is used, what is promised, and what people are told of it.

use std::{io, path::Path};

use crabshack_shared::{
    agent_api::v1::{StorageFacts, StorageKind},
    resources::Bytes,
};

/// From here on a volume counts as full, in percent.
const FULL: u64 = 98;
/// A use that moved by less than this, and by less than one percent, is not worth a report.
const WORTH_TELLING: u64 = 16 << 20;
/// Share of a pool that can be promised, in percent: the rest is for btrfs' own records.
const PROMISED: u64 = 90;

/// What is there of an instance's volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Volume {
    /// Its folder without a home: it is being made or being removed.
    Unfinished,
    /// A plain folder: nothing bounds it.
    Plain,
    /// Bounded by the kernel.
    Quota(VolumeUsage),
}

/// How much a bounded volume holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VolumeUsage {
    /// As the kernel counts, up to its last commit.
    pub(crate) used: Bytes,
    /// The same for reports: in whole MiB, and only moved when it matters.
    pub(crate) shown: Bytes,
    /// None: not set yet.
    pub(crate) limit: Option<Bytes>,
    /// The largest limit that the pool has room for.
    pub(crate) largest: Bytes,
    /// Subvolumes that the tenant made inside; they count too.
    pub(crate) nested: usize,
}

impl VolumeUsage {
    /// Decides what reports show, given what was seen before.
    pub(super) fn show_after(&mut self, earlier: Option<&Volume>) {
        let earlier = match earlier {
            Some(Volume::Quota(usage)) => usage.shown.get(),
            _ => 0,
        };
        let now = self.used.get().next_multiple_of(1 << 20);
        let moved = now.abs_diff(earlier);
        let kept = moved <= earlier / 100 && moved <= WORTH_TELLING;
        self.shown = Bytes::new(if kept { earlier } else { now });
    }

    /// A smaller limit always fits.
    fn fits(&self, limit: Bytes) -> bool {
        limit <= self.largest || self.limit.is_some_and(|current| limit <= current)
    }

    fn is_full(&self) -> bool {
        self.limit
            .is_some_and(|limit| u128::from(self.used.get()) * 100 >= u128::from(limit.get()) * u128::from(FULL))
    }
}

impl Volume {
    /// Its size is not the ordered one, and can be made so.
    pub(crate) fn wants_limit(&self, ordered: Bytes) -> bool {
        let Self::Quota(usage) = self else { return false };
        usage.limit != Some(ordered) && usage.used <= ordered && (usage.fits(ordered) || usage.limit.is_none())
    }

    /// What people should know of it although it works.
    pub(crate) fn warning(&self, ordered: Bytes) -> Option<String> {
        let Self::Quota(usage) = self else { return None };
        let limit = usage.limit?;
        if usage.used > ordered && limit != ordered {
            return Some(format!(
                "storage_size {ordered} is less than the {} that are stored, so {limit} stays: delete files first",
                usage.shown
            ));
        }
        if !usage.fits(ordered) {
            return Some(format!(
                "storage_size {ordered} does not fit into the node's pool, so {limit} stays"
            ));
        }
        usage.is_full().then(|| {
            format!(
                "its disk is full ({} of {limit}): delete files or raise storage_size",
                usage.shown
            )
        })
    }

    /// Its numbers, where it has some.
    pub(crate) fn usage(&self) -> Option<&VolumeUsage> {
        match self {
            Self::Quota(usage) => Some(usage),
            Self::Unfinished | Self::Plain => None,
        }
    }
}

/// The disk behind all volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) total: Bytes,
    pub(crate) used: Bytes,
    /// The sum of all limits; none: nothing is bounded.
    pub(crate) promised: Option<Bytes>,
    /// Why nothing bounds new volumes.
    pub(crate) unbounded: Option<String>,
    /// Subvolumes that tenants made inside their homes.
    pub(crate) nested: usize,
}

impl Storage {
    /// Total and use of the filesystem that holds a folder.
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(folder)?;
        let total = disk.f_blocks * disk.f_frsize;
        Ok(Self {
            total: Bytes::new(total),
            used: Bytes::new(total - disk.f_bfree * disk.f_frsize),
            ..Self::default()
        })
    }

    /// How much may be promised in all.
    pub(crate) fn capacity(&self) -> Bytes {
        Bytes::new(self.total.get() / 100 * PROMISED)
    }

    /// For the report.
    pub(crate) fn facts(&self) -> StorageFacts {
        StorageFacts {
            kind: if self.promised.is_some() {
                StorageKind::Btrfs
            } else {
                StorageKind::Directory
            },
            total: self.total,
            used: self.used,
            promised: self.promised,
            promised_limit_enforced: self.promised.is_some(),
        }
    }

    /// What people should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let unbounded = self
            .unbounded
            .iter()
            .map(|reason| format!("volumes are plain folders: storage_size is not enforced ({reason})"));
        let nested = (self.nested > 0).then(|| {
            format!(
                "instances made {} btrfs subvolumes inside their homes; they are counted to their storage_size",
                self.nested
            )
        });
        unbounded.chain(nested).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(used: u64, limit: u64) -> Volume {
        Volume::Quota(VolumeUsage {
            used: Bytes::mebibytes(used),
            shown: Bytes::mebibytes(used),
            limit: Some(Bytes::mebibytes(limit)),
            largest: Bytes::mebibytes(200),
            nested: 0,
        })
    }

    #[test]
    fn volume__should_want_a_limit_only_when_it_differs_and_can_be_set() {
        let ordered = Bytes::mebibytes(100);
        assert!(!Volume::Plain.wants_limit(ordered) && !Volume::Unfinished.wants_limit(ordered));
        assert!(!quota(10, 100).wants_limit(ordered));
        assert!(quota(10, 50).wants_limit(ordered) && quota(10, 200).wants_limit(ordered));
        assert!(!quota(150, 200).wants_limit(ordered), "shrinking below what is stored");
        assert!(Volume::Quota(VolumeUsage::default()).wants_limit(ordered));
        let large = Bytes::mebibytes(300);
        assert!(!quota(10, 100).wants_limit(large) && quota(10, 100).warning(large).unwrap().contains("does not fit"));
        assert!(!quota(10, 100).wants_limit(Bytes::mebibytes(100)));
    }

    #[test]
    fn volume__should_say_when_it_is_full_or_cannot_shrink() {
        let ordered = Bytes::mebibytes(100);
        assert_eq!(quota(97, 100).warning(ordered), None);
        assert!(quota(98, 100).warning(ordered).unwrap().contains("full"));
        assert!(quota(150, 200).warning(ordered).unwrap().contains("200m stays"));
        assert_eq!(Volume::Plain.warning(ordered), None);
    }

    #[test]
    fn use__should_be_shown_anew_only_when_it_moved_enough() {
        let shown = |used: u64, before: u64| {
            let mut usage = VolumeUsage {
                used: Bytes::new(used),
                ..VolumeUsage::default()
            };
            usage.show_after(Some(&quota(before, 1 << 20)));
            usage.shown
        };
        assert_eq!(shown((1000 << 20) + 5, 1000), Bytes::mebibytes(1000));
        assert_eq!(shown(1020 << 20, 1000), Bytes::mebibytes(1020));
        assert_eq!(shown(10_010 << 20, 10_000), Bytes::mebibytes(10_000));
        assert_eq!(shown(10_020 << 20, 10_000), Bytes::mebibytes(10_020));
        assert_eq!(shown(1, 0), Bytes::mebibytes(1));
    }
}
