//! The folder of one run. Its lock says that the run is alive: the next run removes what a killed
//! one left, folders and control groups both.

use std::{
    env, fs,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use crate::command;

const PREFIX: &str = "crabshack-tests-";
const LOCK: &str = "lock";
/// Longer than a run takes from its folder to its lock.
const START: Duration = Duration::from_secs(60);

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
        if name_of(&path).starts_with(PREFIX) && is_dead(&path) {
            remove(&path);
        }
    }
}

/// Nobody holds its lock, or it never got one.
fn is_dead(path: &Path) -> bool {
    match File::open(path.join(LOCK)) {
        Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => {
            let made = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
            made.and_then(|made| made.elapsed().ok()).is_some_and(|age| age > START)
        }
    }
}

/// The lock goes last: what cannot be removed now is swept by the next run.
fn remove(path: &Path) {
    unmount(path);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            drop(fs::remove_dir_all(path));
        } else if entry.file_name() != LOCK {
            drop(fs::remove_file(path));
        }
    }
    let left = fs::read_dir(path).into_iter().flatten().count();
    if left <= 1 {
        drop(fs::remove_dir_all(path));
    }
    let name = name_of(path);
    for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove_groups(&controller.path().join(&name));
    }
    remove_groups(&Path::new("/sys/fs/cgroup").join(&name));
}

/// dockerd leaves mounts in our mount namespace when it is killed; latest first.
fn unmount(path: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(path)) {
        // Another one may have taken it along.
        drop(command::run(&format!("umount --lazy {point}")));
    }
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
