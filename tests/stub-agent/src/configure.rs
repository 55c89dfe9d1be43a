//! `crabshack-configure`: merges the managed settings over the workload's own, managed keys win.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use crate::settings::{CONTRACT_FOLDER, Settings};

/// The workload's own settings.
pub(crate) fn path(settings: &Settings) -> PathBuf {
    settings.home().join(".stub/config.json")
}

/// Merges and replaces the file atomically.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    let path = path(settings);
    let own = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let managed = fs::read(format!("{CONTRACT_FOLDER}/managed.json"))
        .ok()
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()
        .context("managed.json is not JSON")?;
    let mut merged = own.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    if let Some(managed) = managed {
        merge(&mut merged, managed);
    }
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::create_dir_all(folder).context("the home cannot be written")?;
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(&merged)?)?;
    fs::rename(&new, &path)?;
    Ok(())
}

fn merge(own: &mut Value, managed: Value) {
    match (own, managed) {
        (Value::Object(own), Value::Object(managed)) => {
            for (key, value) in managed {
                merge(own.entry(key).or_insert(Value::Null), value);
            }
        }
        (own, managed) => *own = managed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::merge;

    #[test]
    fn merge__should_let_managed_keys_win_and_keep_the_rest() {
        let mut own = json!({"a": {"kept": 1, "won": 1}, "b": 2});
        merge(&mut own, json!({"a": {"won": 2}}));
        assert_eq!(own, json!({"a": {"kept": 1, "won": 2}, "b": 2}));
    }
}
