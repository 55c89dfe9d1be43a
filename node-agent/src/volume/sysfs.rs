//! What the kernel tells about the quotas of a mounted btrfs, in small files: no program is run to
//! read a size.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crabshack_shared::resources::Bytes;

/// Bit of `limit_flags`: the referenced bytes are limited.
const LIMITS_REFERENCED: u64 = 1;

/// The folder `qgroups` of one filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Qgroups(PathBuf);

/// Numbers of one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) used: Bytes,
    pub(super) limit: Option<Bytes>,
}

impl Qgroups {
    /// Of the filesystem with this id; none: it counts nothing.
    pub(super) fn of(filesystem: &str) -> Option<Self> {
        Self::at(Path::new("/sys/fs/btrfs").join(filesystem).join("qgroups"))
    }

    fn at(path: PathBuf) -> Option<Self> {
        // Kernels before 6.1 have the folder, but not this file.
        let enabled = fs::read_to_string(path.join("enabled")).map_or(path.is_dir(), |text| text.trim() == "1");
        enabled.then_some(Self(path))
    }

    /// Numbers of all groups of a level. On level 0 they are the numbers of the subvolumes.
    pub(super) fn of_level(&self, level: u16) -> io::Result<BTreeSet<u64>> {
        let mut numbers = BTreeSet::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.split_once('_'));
            let number = number.filter(|(found, _)| found.parse() == Ok(level));
            numbers.extend(number.and_then(|(_, number)| number.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// Use and limit of a group of level 1; zero when it does not exist.
    pub(super) fn size(&self, number: u64) -> io::Result<Size> {
        let folder = self.0.join(format!("1_{number}"));
        let read = |name: &str| match fs::read_to_string(folder.join(name)) {
            Ok(text) => text.trim().parse().map_err(io::Error::other),
            // Removed between two reads, too.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => Ok(0),
            Err(error) => Err(error),
        };
        let limited = read("limit_flags")? & LIMITS_REFERENCED != 0;
        Ok(Size {
            used: Bytes::new(read("referenced")?),
            limit: if limited {
                Some(Bytes::new(read("max_referenced")?))
            } else {
                None
            },
        })
    }

    /// The numbers cannot be trusted until they are counted again.
    pub(super) fn inconsistent(&self) -> bool {
        fs::read_to_string(self.0.join("inconsistent")).is_ok_and(|text| text.trim() == "1")
    }

    /// Makes the kernel follow also the removal of large subvolumes, instead of giving up the count.
    pub(super) fn count_removals(&self) {
        let path = self.0.join("drop_subtree_threshold");
        if path.exists()
            && let Err(error) = fs::write(&path, "8")
        {
            tracing::warn!(%error, path = %path.display(), "removed volumes may make the kernel count all volumes again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes__should_be_read_from_the_kernels_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(Qgroups::at(folder.path().join("missing")).is_none());
        write("enabled", "0\n");
        assert!(Qgroups::at(folder.path().to_owned()).is_none());
        write("enabled", "1\n");
        let qgroups = Qgroups::at(folder.path().to_owned()).unwrap();
        write("0_5/referenced", "16384\n");
        write("0_256/referenced", "16384\n");
        for (name, text) in [
            ("referenced", "104923136\n"),
            ("limit_flags", "1\n"),
            ("max_referenced", "314572800\n"),
        ] {
            write(&format!("1_123456789012/{name}"), text);
        }
        write("1_7/referenced", "0\n");
        write("1_7/limit_flags", "0\n");
        write("inconsistent", "0\n");
        write("mode", "qgroup\n");
        assert_eq!(qgroups.of_level(0).unwrap(), BTreeSet::from([5, 256]));
        assert_eq!(qgroups.of_level(1).unwrap(), BTreeSet::from([7, 123_456_789_012]));
        let limited = Size {
            used: Bytes::new(104_923_136),
            limit: Some(Bytes::mebibytes(300)),
        };
        assert_eq!(qgroups.size(123_456_789_012).unwrap(), limited);
        assert_eq!(qgroups.size(7).unwrap(), Size::default());
        assert_eq!(qgroups.size(8).unwrap(), Size::default());
        assert!(!qgroups.inconsistent());
    }
}
