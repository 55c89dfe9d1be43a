//! Clocks that jump, under our own processes only: the wall clock (libfaketime, told by a file) and the
//! machine's clock since its boot (a time namespace, from the start of a process on).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use crate::cluster::{Cluster, Who};

const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
/// A jump arrives within so many seconds.
const SEEN_WITHIN: &str = "1";

/// The wall clock of both processes, as one machine has one.
#[derive(Debug)]
pub struct WallClock {
    file: PathBuf,
}

impl WallClock {
    /// Both processes look at it from their next start on. At first it is right.
    pub fn inject(cluster: &mut Cluster<'_>) -> anyhow::Result<Self> {
        let clock = Self {
            file: cluster.machine.folder().join("wall-clock"),
        };
        clock.set(0)?;
        let library = library()?.display().to_string();
        let file = clock.file.display().to_string();
        for who in Who::ALL {
            for (key, value) in [
                ("LD_PRELOAD", library.as_str()),
                ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
                ("FAKETIME_CACHE_DURATION", SEEN_WITHIN),
                // Waits are measured on a clock that nobody can set.
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                // A process that is killed would leave its memory behind for one with the same id.
                ("FAKETIME_DISABLE_SHM", "1"),
            ] {
                cluster.set(who, key, value);
            }
        }
        Ok(clock)
    }

    /// Sets it to so many seconds after the right time; running processes see it.
    pub fn set(&self, seconds: i64) -> anyhow::Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(fs::rename(new, &self.file)?)
    }
}

fn library() -> anyhow::Result<PathBuf> {
    let folders = fs::read_dir(LIBRARIES)?.flatten().map(|entry| entry.path());
    folders
        .chain([Path::new(LIBRARIES).to_owned()])
        .map(|folder| folder.join(LIBRARY))
        .find(|library| library.is_file())
        .context("libfaketime is missing: install the package `faketime`")
}

/// A command line that starts a process on a machine that has been up for so much longer (Linux 6.1).
pub fn up_longer(by: Duration) -> Vec<String> {
    let seconds = by.as_secs().to_string();
    ["unshare", "--time", "--monotonic", &seconds, "--boottime", &seconds]
        .map(str::to_owned)
        .into()
}
