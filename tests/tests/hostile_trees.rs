//! A thousand trees that tenants could leave in their homes, through everything that happens to an
//! instance: nothing outside is touched, nothing inside is changed, and nothing is left at the end.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::sized,
    cluster::{Cluster, Who},
    command,
    machine::Machine,
    measure::quota,
    must::text,
    pool, suite,
};
use serde_json::{Value, json};

/// Trees in all, and per instance.
const TREES: u64 = 1000;
const TREES_AT_ONCE: u64 = 125;

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("hostile_tree__should_change_nothing_outside_on_a_pool", on_pool);
        suite.test(
            "hostile_tree__should_change_nothing_outside_in_plain_folders",
            in_plain_folders,
        );
    })
}

async fn on_pool(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "2g", async |cluster| half(cluster, 0).await).await
}

async fn in_plain_folders(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| half(cluster, TREES / 2).await).await
}

/// Half of the trees, from this seed on. Beside them lives somebody else, and outside are files that
/// every link of them aims at.
async fn half(cluster: &mut Cluster<'_>, first: u64) -> anyhow::Result<()> {
    let canary = cluster.machine.folder().join("canary");
    fs::create_dir_all(canary.join("folder"))?;
    for name in ["file", "folder/file", "etc", "home"] {
        fs::write(canary.join(name), "untouched")?;
    }
    cluster.client.create(&sized("bystander", "100m")).await?;
    quota::write(cluster, "bystander", "work", 1).await?;
    let bystander = pool::folder(cluster, "bystander").await?;
    fs::write(bystander.join("home/kept"), "kept")?;
    let outside = || anyhow::Ok(listed(&canary)? + &listed(&bystander)?);
    let before = outside()?;
    for seed in (first..first + TREES / 2).step_by(usize::try_from(TREES_AT_ONCE)?) {
        life(cluster, seed, &canary).await.with_context(|| format!("seed {seed}"))?;
        let after = outside()?;
        ensure!(before == after, "seed {seed} changed something outside: {before}\n{after}");
    }
    fs::remove_dir_all(&canary)?;
    cluster.client.delete("bystander", true).await?;
    Ok(())
}

/// Everything that can happen to an instance with such trees in its home.
async fn life(cluster: &mut Cluster<'_>, seed: u64, canary: &Path) -> anyhow::Result<()> {
    let client = cluster.client.clone();
    client.create(&sized("hostile", "900m")).await?;
    let id = text(&client.instance("hostile").await?, "instance_id")?.to_owned();
    let folder = pool::folder(cluster, "hostile").await?;
    let url = format!(
        "/gateway/hostile/hostile?seed={seed}&shapes={TREES_AT_ONCE}&target={}",
        canary.display()
    );
    let made = client.post(&url, &Value::Null).await?.success()?;
    ensure!(made["made"] == TREES_AT_ONCE && made["error"].is_null(), "{made}");
    let trees = || trees(&folder.join("home"));
    let before = trees()?;

    // In use: the disk grows, files of ours are written anew, and the container is made again.
    let grown = json!({"storage_size": "950m", "ssh_pubkey": null});
    client.patch("/instances/hostile", &grown).await?.success()?;
    let changed = json!({"extra_env": {"SEED": seed.to_string()}});
    client.patch("/instances/hostile?apply=now", &changed).await?.success()?;
    client.act("hostile", "restart").await?;
    cluster.crash_and_restart(Who::NodeAgent).await?;
    client.act("hostile", "stop").await?;
    // At rest.
    client
        .patch("/instances/hostile", &json!({"storage_size": "900m"}))
        .await?
        .success()?;
    ensure!(trees()? == before, "the trees have changed by the stop");
    client.delete("hostile", false).await?;
    client.undelete(&id).await?;
    ensure!(trees()? == before, "the trees have changed by the deletion");
    client.delete("hostile", true).await?;
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

/// Every path with its kind, mode, owner, time and aim.
fn listed(folder: &Path) -> anyhow::Result<String> {
    command::run(&format!(
        "find {} -not -path */home/.stub* -not -name heartbeat -printf %p_%y_%m_%U_%s_%T@_%l\\n",
        folder.display()
    ))
}

/// A digest of the same for all trees in a home: their names are no text, and there are many.
fn trees(home: &Path) -> anyhow::Result<String> {
    let listing = format!(
        "find {}/tree-* -printf '%P %y %m %U %s %T@ %l\\0' | sort -z | sha256sum",
        home.display()
    );
    let output = std::process::Command::new("bash")
        .args(["-o", "pipefail", "-c", &listing])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(String::from_utf8(output.stdout)?)
}
