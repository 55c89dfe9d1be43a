//! Volumes on a btrfs pool: sizes the kernel enforces, tenants who try to get around them, and
//! volumes that are made and removed whatever is in them and whenever the node agent is killed.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::sized,
    cluster::{Cluster, Who},
    command, leftovers,
    machine::Machine,
    measure::quota,
    must::{PATIENCE, become_true, eventually, text},
    pool, suite, tenant,
};
use serde_json::Value;

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("pool__should_be_made_once_and_grow_in_use", pool_grows);
        suite.test("node_agent__should_not_start_without_its_pool", missing_pool);
        suite.test("quota__should_stop_one_and_spare_its_neighbour", quota_holds);
        suite.test("limit__should_be_put_right_in_use", limit_is_put_right);
        suite.test("instance__should_make_no_subvolume_and_may_share_blocks", filtered);
        suite.test("nested_subvolume__should_not_escape_the_quota", nested_is_counted);
        suite.test(
            "purge__should_leave_nothing_of_nested_and_read_only_subvolumes",
            purge_is_complete,
        );
        suite.test("volume__should_be_completed_after_a_kill", kills);
        suite.test("plain_home__should_keep_working_on_a_pool", plain_home);
    })
}

async fn pool_grows(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        let status = pool::run(cluster, &["status"]).await?;
        ensure!(status.contains("btrfs") && status.contains("1024 MiB"), "{status}");
        pool::run(cluster, &["create"]).await?;
        ensure!(
            pool::run(cluster, &["create", "--size", "2g"]).await.is_err(),
            "another size was taken"
        );
        cluster.client.create(&sized("first", "600m")).await?;
        // A promise that cannot be kept is not made, and is made as soon as it can be.
        let refusal = cluster.client.post("/instances", &sized("second", "600m")).await?;
        ensure!(refusal.status == 409 && refusal.text.contains("storage"), "{}", refusal.text);
        pool::run(cluster, &["grow", "--size", "1536m"]).await?;
        let made = async || Ok(cluster.client.create(&sized("second", "600m")).await.is_ok());
        become_true("the second fits", Duration::from_secs(90), made).await?;
        let status = pool::run(cluster, &["status"]).await?;
        ensure!(
            status.contains("1536 MiB") && status.matches("of 600 MiB").count() == 2,
            "{status}"
        );
        Ok(())
    })
    .await
}

async fn missing_pool(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "512m", async |cluster| {
        cluster.kill9(Who::NodeAgent).await?;
        let instances = cluster.data(Who::NodeAgent).join("instances");
        become_true("the pool is unmounted", PATIENCE, async || {
            command::run(&format!("umount {}", instances.display())).map(|_| true)
        })
        .await?;
        cluster.start(Who::NodeAgent)?;
        let status = cluster.process(Who::NodeAgent)?.wait(PATIENCE).await?;
        let log = fs::read_to_string(cluster.log(Who::NodeAgent))?;
        ensure!(!status.success() && log.contains("is not mounted"), "{status}: {log}");
        cluster.kill9(Who::NodeAgent).await
    })
    .await
}

async fn quota_holds(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        let figures = quota::take(cluster, 200).await?;
        let text = figures.render("quota");
        ensure!(figures.holds("neighbour_ok"), "{text}");
        let group = pool::group_of(cluster, "greedy").await?;
        ensure!(
            group.limit == Some(200 << 20) && group.used <= 204 << 20 && group.used >= 190 << 20,
            "{group:?}: {text}"
        );
        let last: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        let overshoot = last["figures"]["overshoot_percent"].as_f64().context("no overshoot")?;
        ensure!(overshoot < 2.0, "{text}");
        eventually("the API warns of the full disk while it runs", PATIENCE, async || {
            let greedy = cluster.client.instance("greedy").await?;
            let warned = greedy["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("disk is full"));
            Ok((warned && greedy["status"] == "running").then_some(()))
        })
        .await?;
        // A full disk can be emptied.
        let home = pool::folder(cluster, "greedy").await?.join("home");
        fs::remove_file(home.join("hoard"))?;
        let answer = quota::write(cluster, "greedy", "again", 50).await?;
        ensure!(answer["written"] == 50, "{answer}");
        Ok(())
    })
    .await
}

async fn limit_is_put_right(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        cluster.client.create(&sized("steady", "300m")).await?;
        let id = text(&cluster.client.instance("steady").await?, "instance_id")?.to_owned();
        let instances = cluster.data(Who::NodeAgent).join("instances");
        quota::write(cluster, "steady", "kept", 100).await?;
        for wrong in ["50m", "700m", "none"] {
            command::run(&format!(
                "btrfs qgroup limit {wrong} 1/{} {}",
                pool::group(&id)?,
                instances.display()
            ))?;
            become_true("the ordered limit is back", PATIENCE, async || {
                Ok(pool::group_of(cluster, "steady").await?.limit == Some(300 << 20))
            })
            .await
            .with_context(|| wrong.to_owned())?;
        }
        ensure!(cluster.client.get("/gateway/steady/healthz").await?.status.is_success());
        Ok(())
    })
    .await
}

/// Until everything in a home is counted to its instance alone.
async fn counted(cluster: &Cluster<'_>, name: &str, subvolumes: usize) -> anyhow::Result<()> {
    let own = pool::group_of(cluster, name).await?.name;
    become_true("all subvolumes are counted", PATIENCE, async || {
        let groups = pool::groups(cluster)?;
        Ok(groups.iter().filter(|group| group.above == [own.as_str()]).count() == subvolumes)
    })
    .await
}

async fn filtered(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        cluster.client.create(&sized("maker", "300m")).await?;
        let id = text(&cluster.client.instance("maker").await?, "instance_id")?.to_owned();
        let home = pool::folder(cluster, "maker").await?.join("home");
        tenant::bring(&home, &["btrfs", "cp"])?;
        // One that is there although nobody inside can have made it.
        pool::as_tenant(&home, &["subvolume", "create", "older"]).await?;
        let before = pool::groups(cluster)?.len();
        for refused in [
            &["subvolume", "create", "mine"][..],
            &["subvolume", "snapshot", ".", "copy"],
            &["subvolume", "snapshot", "-r", "older", "copy"],
            &["subvolume", "delete", "older"],
        ] {
            let said = tenant::run(cluster, &id, &[&["btrfs"], refused].concat()).await?;
            ensure!(
                said.code != 0 && said.text.contains("Operation not permitted"),
                "{refused:?}: {said:?}"
            );
        }
        ensure!(!home.join("mine").exists() && !home.join("copy").exists(), "it made one");
        ensure!(pool::groups(cluster)?.len() == before, "{:?}", pool::groups(cluster)?);
        let answer = quota::write(cluster, "maker", "data", 100).await?;
        ensure!(answer["written"] == 100, "{answer}");
        for number in 0..4 {
            let copy = format!("data-{number}");
            let said = tenant::run(cluster, &id, &["cp", "--reflink=always", "data", &copy]).await?;
            ensure!(said.code == 0, "{said:?}");
        }
        Ok(())
    })
    .await
}

async fn nested_is_counted(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        for name in ["nester", "victim"] {
            cluster.client.create(&sized(name, "200m")).await?;
        }
        let home = pool::folder(cluster, "nester").await?.join("home");
        let victim = pool::group_of(cluster, "victim").await?;
        pool::as_tenant(&home, &["subvolume", "create", "plain"]).await?;
        pool::as_tenant(&home, &["subvolume", "create", "plain/inner"]).await?;
        pool::as_tenant(&home, &["subvolume", "create", "-i", &victim.name, "thief"]).await?;
        // A name that looks like lines of the programs that list subvolumes.
        let forged = format!("x\n0/256 0 0 {} y", victim.name);
        let above = home.join(Path::new(&forged).parent().context("a name without slashes")?);
        fs::create_dir_all(&above)?;
        for folder in above.ancestors().take_while(|folder| **folder != home) {
            std::os::unix::fs::chown(folder, Some(1000), Some(1000))?;
        }
        pool::as_tenant(&home, &["subvolume", "create", &forged]).await?;
        counted(cluster, "nester", 5).await?;
        for path in ["plain/a", "plain/inner/b", "thief/c", "d"] {
            quota::write(cluster, "nester", path, 100).await?;
        }
        let (nester, after) = (
            pool::group_of(cluster, "nester").await?,
            pool::group_of(cluster, "victim").await?,
        );
        ensure!(nester.used <= 204 << 20 && nester.used >= 190 << 20, "{nester:?}");
        ensure!(
            after.used.abs_diff(victim.used) < 1 << 20,
            "the victim's count went from {victim:?} to {after:?}"
        );
        let answer = quota::write(cluster, "victim", "work", 100).await?;
        ensure!(answer["written"] == 100, "{answer}");
        Ok(())
    })
    .await
}

/// Subvolumes in one another, some of them read-only; links at their sides.
async fn nest(home: &Path) -> anyhow::Result<()> {
    for path in ["a", "a/b", "a/b/c", "d", "d/e"] {
        pool::as_tenant(home, &["subvolume", "create", path]).await?;
    }
    fs::write(home.join("a/b/c/file"), vec![1; 1 << 20])?;
    for read_only in ["d", "a/b", "a"] {
        command::run(&format!("btrfs property set -ts {} ro true", home.join(read_only).display()))?;
    }
    Ok(())
}

async fn nothing_is_left(cluster: &Cluster<'_>) -> anyhow::Result<()> {
    let gone = async || Ok(leftovers::find(cluster).await?.is_empty());
    become_true("nothing is left", PATIENCE, gone).await?;
    become_true("no group is left", Duration::from_secs(60), async || {
        let groups = pool::groups(cluster)?;
        let names: Vec<_> = groups.iter().map(|group| group.name.as_str()).collect();
        ensure!(names == ["0/5"], "{names:?}");
        Ok(true)
    })
    .await
}

async fn purge_is_complete(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        cluster.client.create(&sized("nested", "200m")).await?;
        let home = pool::folder(cluster, "nested").await?.join("home");
        nest(&home).await?;
        cluster.client.delete("nested", true).await?;
        nothing_is_left(cluster).await
    })
    .await
}

async fn kills(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        for (number, point) in [
            "before:CreateVolume:1",
            "after:CreateVolume:1",
            "before:RemoveVolume:1",
            "after:RemoveVolume:1",
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("killed-{number}");
            cluster.kill9(Who::NodeAgent).await?;
            cluster.set(Who::NodeAgent, "CRABSHACK_HALT_AT", point);
            cluster.start(Who::NodeAgent)?;
            drop(cluster.client.events("/instances", &sized(&name, "100m")).await?);
            let running = async |cluster: &mut Cluster<'_>| {
                let began = std::time::Instant::now();
                while cluster.client.status(&name).await?.as_deref() != Some("running") {
                    cluster.revive()?;
                    ensure!(began.elapsed() < Duration::from_secs(60), "{name} does not run after {point}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                anyhow::Ok(())
            };
            running(cluster).await?;
            drop(
                cluster
                    .client
                    .request(reqwest::Method::DELETE, &format!("/instances/{name}?purge=true"))
                    .send()
                    .await?,
            );
            let began = std::time::Instant::now();
            while cluster.client.status(&name).await?.is_some() {
                cluster.revive()?;
                ensure!(
                    began.elapsed() < Duration::from_secs(60),
                    "{name} is not deleted after {point}"
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            cluster.unset(Who::NodeAgent, "CRABSHACK_HALT_AT");
        }
        nothing_is_left(cluster).await?;
        half_made(cluster).await?;
        half_removed(cluster).await?;
        nothing_is_left(cluster).await
    })
    .await
}

/// Killed in the middle of making: a subvolume without its name, with something in it.
async fn half_made(cluster: &mut Cluster<'_>) -> anyhow::Result<()> {
    cluster.kill9(Who::NodeAgent).await?;
    drop(cluster.client.events("/instances", &sized("half", "100m")).await?);
    let folder = pool::folder(cluster, "half").await?;
    let unfinished = folder.join("home.new");
    fs::create_dir_all(&folder)?;
    command::run(&format!("btrfs subvolume create {}", unfinished.display()))?;
    command::run(&format!("btrfs subvolume create {}/left", unfinished.display()))?;
    cluster.start(Who::NodeAgent)?;
    become_true("it runs", PATIENCE, async || {
        Ok(cluster.client.status("half").await?.as_deref() == Some("running"))
    })
    .await?;
    ensure!(
        !unfinished.exists() && !folder.join("home/left").exists(),
        "what was half-made was kept"
    );
    ensure!(pool::group_of(cluster, "half").await?.limit == Some(100 << 20));
    counted(cluster, "half", 1).await
}

/// Killed in the middle of removing: nested subvolumes are gone or not, the home is gone or not.
async fn half_removed(cluster: &mut Cluster<'_>) -> anyhow::Result<()> {
    let folder = pool::folder(cluster, "half").await?;
    nest(&folder.join("home")).await?;
    cluster.client.act("half", "stop").await?;
    cluster.kill9(Who::NodeAgent).await?;
    drop(
        cluster
            .client
            .request(reqwest::Method::DELETE, "/instances/half?purge=true")
            .send()
            .await?,
    );
    command::run(&format!("btrfs property set -ts {}/home/d ro false", folder.display()))?;
    command::run(&format!("btrfs subvolume delete {}/home/d/e", folder.display()))?;
    fs::remove_dir_all(folder.join("etc"))?;
    cluster.start(Who::NodeAgent)?;
    become_true("it is gone", PATIENCE, async || {
        Ok(cluster.client.status("half").await?.is_none())
    })
    .await
}

async fn plain_home(machine: &Machine) -> anyhow::Result<()> {
    pool::with(machine, "1g", async |cluster| {
        cluster.client.create(&sized("older", "100m")).await?;
        cluster.client.act("older", "stop").await?;
        let home = pool::folder(cluster, "older").await?.join("home");
        // As if it had been moved here from before there was a pool.
        command::run(&format!("btrfs subvolume delete {}", home.display()))?;
        fs::create_dir(&home)?;
        std::os::unix::fs::chown(&home, Some(1000), Some(1000))?;
        fs::write(home.join("mine"), "kept")?;
        cluster.client.act("older", "start").await?;
        let answer = quota::write(cluster, "older", "much", 150).await?;
        ensure!(
            answer["written"] == 150 && fs::read_to_string(home.join("mine"))? == "kept",
            "{answer}"
        );
        pool::as_tenant(&home, &["subvolume", "create", "inside"]).await?;
        cluster.client.delete("older", true).await?;
        nothing_is_left(cluster).await
    })
    .await
}
