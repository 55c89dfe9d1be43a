//! The main job with the stub agent: create, look at, stop, start, restart, delete.

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::{Event, stub, stub_with},
    cluster::{Cluster, Who},
    engine, leftovers,
    looks::{check_container, check_fields, check_inside, same},
    machine::Machine,
    must::{PATIENCE, become_true, eventually, text},
    suite,
};
use serde_json::{Value, json};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl tests";

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("create__should_stream_created_pending_ready", create_streams);
        suite.test("instance__should_keep_its_identity_over_stop_start_restart", identity_stays);
        suite.test("delete__should_leave_nothing_when_purging", purge_leaves_nothing);
        suite.test("delete__should_keep_the_volume_without_purge", delete_keeps_the_volume);
        suite.test("client__should_be_free_to_hang_up", hang_up);
        suite.test("slow_start__should_be_pending_until_it_answers", slow_start);
        suite.test("ended_instance__should_be_started_again_but_not_after_exit_78", ended);
        suite.test("memory__should_be_bounded_without_swap", memory_is_bounded);
    })
}

async fn create_streams(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let mut stream = cluster.client.events("/instances", &stub("shapes")).await?;
        ensure!(stream.headers["cache-control"] == "no-cache", "{:?}", stream.headers);
        ensure!(stream.headers["x-accel-buffering"] == "no", "{:?}", stream.headers);
        let events = stream.rest().await?;
        let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
        let (first, last) = (names.first().copied(), names.last().copied());
        ensure!(first == Some("created") && last == Some("ready"), "{names:?}");
        ensure!(names[1..names.len() - 1].iter().all(|&name| name == "pending"), "{names:?}");
        events.iter().try_for_each(|event| shape(event, "shapes"))?;
        for line in stream.raw.lines() {
            let known = line.is_empty() || line.starts_with(": ") || line.starts_with("event: ") || line.starts_with("data: {");
            ensure!(known, "an odd line: `{line}`");
        }
        let stopped = cluster.client.act("shapes", "stop").await?;
        stopped.iter().try_for_each(|event| shape(event, "shapes"))?;
        let started = cluster.client.act("shapes", "start").await?;
        ensure!(started.iter().all(|event| event.name != "created"), "{started:?}");
        let again = cluster.client.act("shapes", "start").await?;
        ensure!(again.len() == 1, "a start of a running one is ready at once: {again:?}");
        Ok(())
    })
    .await
}

/// What every event must carry, and must not.
fn shape(event: &Event, name: &str) -> anyhow::Result<()> {
    let data = &event.data;
    ensure!(data["name"] == name && data["event"] == event.name.as_str(), "{data}");
    text(data, "stage")?;
    text(data, "message")?;
    for (key, value) in data.as_object().context("data is not an object")? {
        ensure!(!value.is_null() && value != "", "`{key}` is empty in {data}");
    }
    Ok(())
}

async fn identity_stays(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let mut body = stub("keeper");
        body["ssh_pubkey"] = KEY.into();
        cluster.client.create(&body).await?;
        let first = cluster.client.instance("keeper").await?;
        check_fields(&first)?;
        let listed = cluster.client.instances().await?;
        ensure!(
            listed.len() == 1 && listed[0]["name"] == "keeper" && listed[0]["status"] == "running",
            "{listed:?}"
        );
        let token = text(&first, "token")?.to_owned();
        let list_text = cluster.client.get("/instances").await?.text;
        ensure!(
            !list_text.contains(&token) && !list_text.contains("sk-agent"),
            "a secret in {list_text}"
        );
        let ssh = cluster.client.get("/instances/keeper/ssh").await?.success()?;
        ensure!(ssh["port"] == first["ssh_port"] && ssh["user"] == "agent", "{ssh}");
        let port = ssh["port"].as_u64().context("no port")?;
        ensure!(
            text(&ssh, "command")? == format!("ssh -p {port} agent@{}", text(&ssh, "host")?),
            "{ssh}"
        );
        let logs = cluster.client.get("/instances/keeper/logs?tail=10").await?.success()?;
        ensure!(logs["name"] == "keeper" && logs["logs"].is_string(), "{logs}");

        let id = text(&first, "instance_id")?.to_owned();
        let home = cluster.data(Who::NodeAgent).join("instances").join(&id).join("home");
        fs::write(home.join("mine"), "kept")?;
        let docker = machine.dockerd.engine();
        let container = engine::container(docker, &id).await?;
        check_container(&container, &first, &token)?;
        check_inside(&cluster.client.get("/gateway/keeper/env").await?.success()?, &token)?;

        cluster.client.act("keeper", "stop").await?;
        let stopped = cluster.client.instance("keeper").await?;
        ensure!(stopped["status"] == "stopped" && stopped["token"] == token, "{stopped}");
        let running: Vec<_> = engine::containers(docker)
            .await?
            .into_iter()
            .filter(engine::is_running)
            .collect();
        ensure!(running.is_empty(), "still running: {running:?}");
        cluster.client.act("keeper", "start").await?;
        same(&first, &cluster.client.instance("keeper").await?)?;

        let before = engine::container(docker, &id).await?;
        cluster.client.act("keeper", "restart").await?;
        same(&first, &cluster.client.instance("keeper").await?)?;
        let after = engine::container(docker, &id).await?;
        ensure!(
            engine::started_at(&before) != engine::started_at(&after),
            "it was not restarted"
        );
        ensure!(fs::read_to_string(home.join("mine"))? == "kept");
        Ok(())
    })
    .await
}

async fn purge_leaves_nothing(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        for name in ["gone-1", "gone-2"] {
            cluster.client.create(&stub(name)).await?;
        }
        cluster.client.act("gone-2", "stop").await?;
        for name in ["gone-1", "gone-2"] {
            let events = cluster.client.delete(name, true).await?;
            events.iter().try_for_each(|event| shape(event, name))?;
            ensure!(cluster.client.status(name).await?.is_none(), "{name} is still there");
        }
        ensure!(cluster.client.instances().await?.is_empty());
        let gone = async || Ok(leftovers::find(cluster).await?.is_empty());
        become_true("nothing is left", PATIENCE, gone)
            .await
            .with_context(|| "leftovers")?;
        cluster.client.get("/instances/gone-1").await?.problem(404, "not_found")?;
        Ok(())
    })
    .await
}

async fn delete_keeps_the_volume(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("again")).await?;
        let old = cluster.client.instance("again").await?;
        let volume = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join(text(&old, "instance_id")?);
        fs::write(volume.join("home/mine"), "kept")?;
        cluster.client.delete("again", false).await?;
        ensure!(
            engine::containers(machine.dockerd.engine()).await?.is_empty(),
            "a container is left"
        );
        ensure!(fs::read_to_string(volume.join("home/mine"))? == "kept");
        // The name is free, and its new owner inherits nothing.
        cluster.client.create(&stub("again")).await?;
        let new = cluster.client.instance("again").await?;
        ensure!(
            new["instance_id"] != old["instance_id"] && new["token"] != old["token"],
            "{new}"
        );
        let home = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join(text(&new, "instance_id")?)
            .join("home");
        ensure!(!home.join("mine").exists(), "the new instance has the old one's data");
        Ok(())
    })
    .await
}

async fn hang_up(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        drop(cluster.client.events("/instances", &stub("hasty")).await?);
        let has = async |status: &str| {
            become_true(&format!("it is {status}"), PATIENCE, async || {
                Ok(cluster.client.status("hasty").await?.as_deref() == Some(status))
            })
            .await
        };
        has("running").await?;
        drop(
            cluster
                .client
                .events("/instances/hasty/stop", &json!({"user_id": "x"}))
                .await?,
        );
        has("stopped").await?;
        drop(cluster.client.events("/instances/hasty/start", &Value::Null).await?);
        has("running").await?;
        // The later wish wins, also while the earlier one is still on its way.
        for _ in 0..5 {
            drop(cluster.client.events("/instances/hasty/stop", &Value::Null).await?);
            cluster.client.act("hasty", "start").await?;
            ensure!(
                cluster.client.get("/gateway/hasty/healthz").await?.status.as_u16() == 200,
                "`ready` was said too early"
            );
        }
        Ok(())
    })
    .await
}

async fn slow_start(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let body = stub_with("slow", &[("STUB_START_DELAY_MS", "2000")]);
        let mut stream = cluster.client.events("/instances", &body).await?;
        let began = std::time::Instant::now();
        let created = stream.next().await?.context("no event")?;
        ensure!(
            created.name == "created" && began.elapsed() < Duration::from_millis(500),
            "{created:?}"
        );
        ensure!(cluster.client.status("slow").await?.as_deref() == Some("creating"));
        let rest = stream.rest().await?;
        ensure!(rest.last().is_some_and(|event| event.name == "ready"), "{rest:?}");
        ensure!(
            began.elapsed() > Duration::from_millis(2000),
            "ready after {:?}",
            began.elapsed()
        );
        Ok(())
    })
    .await
}

async fn ended(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster
            .client
            .create(&stub_with("phoenix", &[("STUB_CRASH_TIMES", "1")]))
            .await?;
        let id = cluster.client.instance("phoenix").await?["instance_id"]
            .as_str()
            .context("no id")?
            .to_owned();
        let starts = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join(id)
            .join("home/.stub/starts");
        ensure!(fs::read_to_string(&starts)? == "2", "{} starts", fs::read_to_string(&starts)?);

        let body = stub_with("config", &[("STUB_CRASH_TIMES", "9"), ("STUB_EXIT_CODE", "78")]);
        let mut stream = cluster.client.events("/instances", &body).await?;
        let events = stream.rest().await?;
        ensure!(events.last().is_some_and(|event| event.name == "error"), "{events:?}");
        let broken = eventually("it needs a person", PATIENCE, async || {
            let instance = cluster.client.instance("config").await?;
            Ok((instance["status"] == "error").then_some(instance))
        })
        .await?;
        ensure!(text(&broken, "reason")?.contains("78"), "{broken}");
        let home = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join(text(&broken, "instance_id")?)
            .join("home");
        ensure!(fs::read_to_string(home.join(".stub/starts"))? == "1", "it was started again");
        Ok(())
    })
    .await
}

async fn memory_is_bounded(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("hungry")).await?;
        // The stub dies while it answers; the node agent starts it again.
        drop(cluster.client.get("/gateway/hungry/eat?mb=1500").await);
        let id = text(&cluster.client.instance("hungry").await?, "instance_id")?.to_owned();
        let starts = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join(id)
            .join("home/.stub/starts");
        become_true("it was killed and started again", PATIENCE, async || {
            Ok(fs::read_to_string(&starts)? == "2")
        })
        .await?;
        become_true("it answers again", PATIENCE, async || {
            Ok(cluster.client.get("/gateway/hungry/healthz").await?.status.as_u16() == 200)
        })
        .await
    })
    .await
}
