//! The folder of one run. Its lock says that the run is alive: the next run removes what a killed
//! one left, folders and control groups both.

use std::{
    env, fs,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

const PREFIX: &str = "crabshack-tests-";
const LOCK: &str = "lock";

/// A folder that is removed with the run.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Sweeps dead ones, then makes a fresh one under the system's temporary folder.
    pub fn new() -> anyhow::Result<Self> {
        sweep();
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(6)
            .tempdir()
            .context("no temporary folder")?
            .keep();
        let lock = File::create(path.join(LOCK))?;
        lock.try_lock().context("a fresh lock file is locked")?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, which also names the run's control group.
    pub fn name(&self) -> String {
        name_of(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if env::var_os("CRABSHACK_TESTS_KEEP").is_none() {
            remove(&self.path);
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn sweep() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let path = entry.path();
        if !name_of(&path).starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            remove(&path);
        }
    }
}

fn remove(path: &Path) {
    // What cannot be removed now is swept by the next run.
    drop(fs::remove_dir_all(path));
    let name = name_of(path);
    for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove_groups(&controller.path().join(&name));
    }
    remove_groups(&Path::new("/sys/fs/cgroup").join(&name));
}

/// Control groups are folders that can only be removed empty of processes, leaves first.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}
