//! Watermarks of the node's own disks. A full disk stops Docker and the ledger, so the node first
//! stops making instances, then pulling images; what runs is left alone.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crabshack_shared::agent_api::v1::Pressure;

const GIB: u64 = 1 << 30;
/// Less free than this is always too little.
const LEAST: u64 = 5 * GIB;
/// A tenth of a large disk is plenty.
const PLENTY: u64 = 50 * GIB;

/// The disks that must not fill up: the data folder's and Docker's.
#[derive(Debug, Clone)]
pub(crate) struct Disks(BTreeSet<PathBuf>);

impl Disks {
    /// The filesystems that hold these folders.
    pub(crate) fn new(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(folders.into_iter().collect())
    }

    /// What not to do now. A folder that cannot be looked at counts as roomy: Docker may keep its data
    /// where we cannot look.
    pub(crate) fn pressure(&self) -> Pressure {
        self.looked_at()
            .map(|(_, free, total)| pressure(free, total))
            .max()
            .unwrap_or_default()
    }

    /// The same for people.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let tight = self.looked_at().filter_map(|(path, free, total)| {
            let stopped = match pressure(free, total) {
                Pressure::None => return None,
                Pressure::Creates => "no instances are made",
                Pressure::Pulls => "no instances are made and no images are pulled",
            };
            let free = free >> 20;
            Some(format!(
                "the disk of {} is nearly full ({free} MiB free): {stopped} until there is room",
                path.display()
            ))
        });
        tight.collect()
    }

    fn looked_at(&self) -> impl Iterator<Item = (&Path, u64, u64)> {
        self.0.iter().filter_map(|path| {
            let disk = rustix::fs::statvfs(path).ok()?;
            Some((path.as_path(), disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize))
        })
    }
}

/// Pulls stop at half of what stops creates.
fn pressure(free: u64, total: u64) -> Pressure {
    let mark = (total / 10).clamp(LEAST, PLENTY);
    if free < mark / 2 {
        Pressure::Pulls
    } else if free < mark {
        Pressure::Creates
    } else {
        Pressure::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure__should_stop_creates_before_pulls() {
        for (free, total, expected) in [
            (20, 100, Pressure::None),
            (9, 100, Pressure::Creates),
            (4, 100, Pressure::Pulls),
            (6, 20, Pressure::None),
            (4, 20, Pressure::Creates),
            (2, 20, Pressure::Pulls),
            (60, 10_000, Pressure::None),
            (40, 10_000, Pressure::Creates),
        ] {
            assert_eq!(pressure(free * GIB, total * GIB), expected, "{free} of {total}");
        }
    }

    #[test]
    fn disk__should_count_as_roomy_when_it_cannot_be_looked_at() {
        let disks = Disks::new([PathBuf::from("/no/such/folder")]);
        assert_eq!(disks.pressure(), Pressure::None);
        assert!(disks.warnings().is_empty());
    }
}
