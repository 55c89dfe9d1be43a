//! The environment: what the process got, and over it the file of the image contract.
//!
//! | variable | effect |
//! |---|---|
//! | `STUB_START_DELAY_MS` | `/healthz` answers 503 that long |
//! | `STUB_EXIT_AFTER_MS`, `STUB_EXIT_CODE` | ends by itself |
//! | `STUB_CRASH_TIMES` | the first N starts in this home end at once |
//! | `STUB_IGNORE_TERM` | 1: SIGTERM does nothing |
//! | `STUB_EAT_MEMORY_MB` | touches that much memory |
//! | `STUB_FLOOD`, `STUB_FLOOD_MS`, `STUB_FLOOD_PORTS` | `address:port,...`: packets from the first moment, see [`crate::flood`] |

use std::{collections::BTreeMap, env, fs, path::PathBuf, time::Duration};

/// Where the node agent puts files for the workload.
pub(crate) const CONTRACT_FOLDER: &str = "/etc/crabshack";

/// The environment as the workload sees it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Every variable, those of the file included.
    pub(crate) variables: BTreeMap<String, String>,
}

impl Settings {
    /// Reads both sources; a missing file is no error (the stub also runs without a node agent).
    pub(crate) fn read() -> Self {
        let mut variables: BTreeMap<_, _> = env::vars_os()
            .map(|(key, value)| (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        let file = fs::read_to_string(format!("{CONTRACT_FOLDER}/env")).unwrap_or_default();
        let pairs = file.lines().filter_map(|line| line.split_once('='));
        variables.extend(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
        Self { variables }
    }

    /// One variable, if it is set and not empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.variables.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable as a number.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }

    /// A variable in milliseconds.
    pub(crate) fn milliseconds(&self, key: &str) -> Option<Duration> {
        self.number(key).map(Duration::from_millis)
    }

    /// True for `1`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.text(key) == Some("1")
    }

    /// The folder that survives a restart.
    pub(crate) fn home(&self) -> PathBuf {
        PathBuf::from(self.text("HOME").unwrap_or("/home/agent"))
    }
}
