//! A cluster whose node keeps its volumes on a btrfs pool, made by the node agent's own command.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::{
    cluster::{Cluster, Who},
    command, engine,
    machine::Machine,
    must::{become_true, text},
};

/// Loop devices are let go a moment after their last user.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);

/// Makes a pool of this size, starts a cluster on it, runs a case, and removes both.
pub async fn with(
    machine: &Machine,
    size: &str,
    case: impl AsyncFnOnce(&mut Cluster<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(machine)?;
    let result = async {
        run(&cluster, &["create", "--size", size])
            .await
            .context("this suite needs root, loop devices, btrfs in the kernel, and btrfs-progs")?;
        cluster.start_all().await?;
        case(&mut cluster).await
    }
    .await;
    let removed = remove(&mut cluster).await;
    let wiped = cluster.wipe().await;
    result.and(removed).and(wiped)
}

/// `crabshack-node-agent pool ...` with the node agent's own settings; returns what it prints.
pub async fn run(cluster: &Cluster<'_>, arguments: &[&str]) -> anyhow::Result<String> {
    let output = cluster.command(Who::NodeAgent)?.arg("pool").args(arguments).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`pool {}`: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8(output.stdout)?)
}

async fn remove(cluster: &mut Cluster<'_>) -> anyhow::Result<()> {
    for who in Who::ALL {
        cluster.kill9(who).await?;
    }
    engine::wipe(cluster.machine.dockerd.engine()).await?;
    let instances = cluster.data(Who::NodeAgent).join("instances");
    if !is_mounted(&instances) {
        return Ok(());
    }
    become_true("the pool is unmounted", UNMOUNT_PATIENCE, async || {
        command::run(&format!("umount {}", instances.display())).map(|_| true)
    })
    .await
}

/// Whether the pool is there.
pub fn is_mounted(instances: &Path) -> bool {
    let above = instances.parent().and_then(|above| fs::metadata(above).ok());
    let (Some(above), Ok(instances)) = (above, fs::metadata(instances)) else {
        return false;
    };
    above.dev() != instances.dev()
}

/// The folder of an instance on the node.
pub async fn folder(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let instance = cluster.client.instance(name).await?;
    Ok(cluster
        .data(Who::NodeAgent)
        .join("instances")
        .join(text(&instance, "instance_id")?))
}

/// Runs `btrfs` as the tenant would who brought it along: uid 1000, in the home, with relative paths.
pub async fn as_tenant(home: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "btrfs"])
        .args(arguments)
        .current_dir(home)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`btrfs {}`: {}", arguments.join(" "), said.trim());
    Ok(())
}

/// Number of an instance's group: its id's first 48 bits.
pub fn group(id: &str) -> anyhow::Result<u64> {
    Ok(u64::from_str_radix(id.get(..12).context("a short id")?, 16)?)
}

/// What `btrfs qgroup show` says of every group: name, used, limit, and the groups above it.
pub fn groups(cluster: &Cluster<'_>) -> anyhow::Result<Vec<Group>> {
    let instances = cluster.data(Who::NodeAgent).join("instances");
    command::run(&format!("btrfs filesystem sync {}", instances.display()))?;
    let shown = command::run(&format!("btrfs qgroup show -pr --raw {}", instances.display()))?;
    let rows = shown.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [name, used, _, limit, above, ..] = fields.as_slice() else {
            return None;
        };
        let (name, used) = (name.contains('/').then(|| (*name).to_owned())?, used.parse().ok()?);
        Some(Group {
            name,
            used,
            limit: limit.parse().ok(),
            above: above.split(',').map(str::to_owned).collect(),
        })
    });
    Ok(rows.collect())
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Like `1/123`; `0/256` is a subvolume.
    pub name: String,
    /// Bytes.
    pub used: u64,
    /// Bytes.
    pub limit: Option<u64>,
    /// Names of the groups that it counts to.
    pub above: Vec<String>,
}

/// The group of an instance.
pub async fn group_of(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<Group> {
    let instance = cluster.client.instance(name).await?;
    let wanted = format!("1/{}", group(text(&instance, "instance_id")?)?);
    let found = groups(cluster)?.into_iter().find(|group| group.name == wanted);
    found.with_context(|| format!("there is no group {wanted}"))
}
