//! Waiting for a condition instead of sleeping, and other small needs of every suite.

use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::bail;
use serde_json::Value;

/// How long suites wait for what should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Asks until the answer is `Some`. The last error, if any, is part of the failure.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    ask: impl AsyncFn() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        let last = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if began.elapsed() > patience {
            bail!("{what}: did not happen within {} s (last answer: {last})", patience.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// As [`eventually`] for a plain condition.
pub async fn become_true(what: &str, patience: Duration, ask: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    eventually(what, patience, async || Ok(ask().await?.then_some(()))).await
}

/// Watches a condition for a while; fails as soon as it does not hold.
pub async fn stay_true(what: &str, during: Duration, ask: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < during {
        if !ask().await? {
            bail!("{what}: ended after {} ms", began.elapsed().as_millis());
        }
        tokio::time::sleep(PAUSE * 5).await;
    }
    Ok(())
}

/// The first of these programs that is on PATH or in the usual places of root's.
pub fn program(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .collect();
    names
        .iter()
        .find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()))
}

/// A text field of a JSON object, which must be there and not empty.
pub fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    match value[key].as_str() {
        Some(text) if !text.is_empty() => Ok(text),
        _ => bail!("no text `{key}` in {value}"),
    }
}

/// The median; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}
