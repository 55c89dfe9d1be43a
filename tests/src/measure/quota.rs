//! `quota`: one instance writes until its disk is full, while another writes on.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::Figures;
use crate::{client::stub, cluster::Cluster, machine::Machine, pool};

/// The kernel's words for a full disk: `ENOSPC` and `EDQUOT`.
const FULL: [u64; 2] = [28, 122];

/// On a pool of its own; each instance may hold `limit` MiB.
pub async fn figures(machine: &Machine, limit: u64) -> anyhow::Result<Figures> {
    let mut figures = None;
    let size = format!("{}m", (limit * 4).max(1024));
    pool::with(machine, &size, async |cluster| {
        figures = Some(take(cluster, limit).await?);
        Ok(())
    })
    .await?;
    figures.context("no figures")
}

/// Makes `greedy` and `neighbour`, and leaves them.
pub async fn take(cluster: &Cluster<'_>, limit: u64) -> anyhow::Result<Figures> {
    for name in ["greedy", "neighbour"] {
        let mut body = stub(name);
        body["storage_size"] = format!("{limit}m").into();
        cluster.client.create(&body).await?;
    }
    let greed = write(cluster, "greedy", "hoard", limit * 2);
    let neighbour = async {
        let mut written = 0;
        // Half of what it may, bit by bit, also after the other is stopped.
        while written < limit / 2 {
            let answer = write(cluster, "neighbour", "work", 4).await?;
            written += answer["written"].as_u64().unwrap_or_default();
            if answer["error"].is_string() {
                return Ok((written, false));
            }
        }
        anyhow::Ok((written, true))
    };
    let (stopped, neighbour) = tokio::join!(greed, neighbour);
    let (stopped, (worked, neighbour_ok)) = (stopped?, neighbour?);
    let code = stopped["code"].as_u64().unwrap_or_default();
    ensure!(FULL.contains(&code), "writing beyond the limit ended with {stopped}");
    // Again, since a first refusal might leave room for more.
    write(cluster, "greedy", "more", limit).await?;
    pool::groups(cluster)?;
    let home = pool::folder(cluster, "greedy").await?.join("home");
    let stored = stored(&home)?;
    let allowed = limit << 20;
    let mut figures = Figures::default();
    figures.add("limit_mib", limit);
    figures.add("greedy_stored_mib", stored >> 20);
    figures.add("neighbour_written_mib", worked);
    figures.add("neighbour_ok", neighbour_ok);
    figures.add_rounded(
        "overshoot_percent",
        (stored.saturating_sub(allowed) as f64) * 100.0 / allowed as f64,
    );
    figures.add_rounded(
        "unused_percent",
        (allowed.saturating_sub(stored) as f64) * 100.0 / allowed as f64,
    );
    Ok(figures)
}

/// Lets an instance write below its home.
pub async fn write(cluster: &Cluster<'_>, name: &str, path: &str, mebibytes: u64) -> anyhow::Result<Value> {
    let url = format!("/gateway/{name}/write?path={path}&mib={mebibytes}");
    cluster.client.post(&url, &Value::Null).await?.success()
}

/// Bytes on disk of everything in a folder.
fn stored(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() {
            stored(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(sum)
}
