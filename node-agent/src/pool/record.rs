//! That a pool was made, and of which file: with it the daemon tells a node without a pool from one
//! whose pool is not mounted.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{PoolError, disk_error};

/// What is kept of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) file: PathBuf,
}

impl Record {
    /// Where it is kept.
    pub(super) fn path(data: &Path) -> PathBuf {
        data.join("pool.json")
    }

    /// None: no pool was made.
    pub(super) fn load(data: &Path) -> Result<Option<Self>, PoolError> {
        let path = Self::path(data);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| PoolError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk_error("read", &path, error)),
        }
    }

    /// Replaces it as a whole.
    pub(super) fn save(&self, data: &Path) -> Result<(), PoolError> {
        let path = Self::path(data);
        let new = path.with_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            serde_json::to_writer(&mut file, self)?;
            file.flush()?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(data)?.sync_all()
        };
        write().map_err(|error| disk_error("write", &path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::check_mounted;

    #[test]
    fn record__should_make_a_missing_pool_known() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(data.path()).unwrap(), None);
        check_mounted(data.path()).unwrap();
        let record = Record {
            file: data.path().join("pool.btrfs"),
        };
        record.save(data.path()).unwrap();
        assert_eq!(Record::load(data.path()).unwrap(), Some(record));
        let message = check_mounted(data.path()).unwrap_err().to_string();
        assert!(
            message.contains("pool.btrfs") && message.contains("mount -t btrfs"),
            "{message}"
        );
        fs::write(Record::path(data.path()), "{").unwrap();
        assert!(Record::load(data.path()).is_err() && check_mounted(data.path()).is_err());
    }
}
