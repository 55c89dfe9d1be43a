//! What goes wrong inside an instance, or is changed under a running one: the node says what happened
//! and puts right what is its own.

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use bollard::{
    Docker,
    exec::{CreateExecOptions, StartExecResults},
    models::{ContainerInspectResponse, ContainerUpdateBody},
};
use crabshack_tests::{
    client::{stub, stub_with},
    cluster::{Cluster, Who},
    command, data_plane, dockerd, engine,
    machine::Machine,
    must::{PATIENCE, become_true, eventually, stay_true, text},
    suite,
};
use futures_util::TryStreamExt as _;
use reqwest::Method;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

/// The recipe's grace for stops.
const GRACE: Duration = Duration::from_secs(30);
/// After a port was published dockerd writes that down; the process of the container comes later.
const UNTIL_RESERVED: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("out_of_memory__should_be_told_apart_from_a_killed_process", out_of_memory);
        suite.test("crash_loop__should_report_code_and_last_lines", crash_loop);
        suite.test("limits__should_be_put_right_without_a_restart_and_never_below_use", limits);
        suite.test("paused_instance__should_go_on", paused);
        suite.test("hanging_stop__should_end_with_a_kill_after_the_grace", hanging_stop);
        suite.test("log__should_outlive_its_containers", log_stays);
        suite.test("followed_log__should_go_on_over_a_restart", log_is_followed);
        suite.test("stats__should_tell_use_also_when_stopped", stats);
        suite.test("container__should_keep_its_neighbours_quiet", quiet);
        suite.test(
            "bridge_without_a_network__should_be_replaced_and_go_with_the_instance",
            forgotten_bridge,
        );
        suite.test("start_that_dockerd_died_in__should_come_true_or_say_what_helps", cut_short);
    })
}

async fn out_of_memory(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (engine, id) = (machine.dockerd.engine(), create(cluster, &stub("hungry")).await?);
        let before = engine::container(engine, &id).await?;
        exec(engine, &id, &["/usr/local/bin/crabshack-stub-agent", "eat", "1500"]).await?;
        let told = reason(cluster, "hungry", "a process of it was killed at the memory limit of 1g").await?;
        ensure!(told["phase"] == "ready" && told["status"] == "running", "{told}");
        let after = engine::container(engine, &id).await?;
        ensure!(
            engine::started_at(&before) == engine::started_at(&after),
            "it was started again"
        );

        drop(cluster.client.get("/gateway/hungry/eat?mb=1500").await);
        reason(cluster, "hungry", "killed for exceeding its memory limit of 1g").await?;
        ready(cluster, "hungry").await
    })
    .await
}

async fn crash_loop(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let body = stub_with("crasher", &[("STUB_CRASH_TIMES", "99"), ("STUB_EXIT_CODE", "7")]);
        let mut stream = cluster.client.events("/instances", &body).await?;
        let looping = eventually("it is called a crash loop", PATIENCE, async || {
            let instance = cluster.client.instance("crasher").await?;
            let again = instance["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("again and again"));
            Ok(again.then_some(instance))
        })
        .await?;
        ensure!(text(&looping, "reason")?.contains("code 7"), "{looping}");
        if let Some(exit) = looping.get("last_exit").filter(|exit| !exit.is_null()) {
            ensure!(exit["code"] == 7 && exit["out_of_memory"] == false, "{looping}");
            let log = text(exit, "log")?;
            ensure!(log.contains("start 1 [31mcrashes") && log.lines().count() >= 3, "{log}");
            let plain = log.chars().all(|character| character == '\n' || !character.is_control());
            ensure!(plain, "{log:?}");
        }
        // The stream ends by itself, or with this test.
        drop(stream.next().await);
        Ok(())
    })
    .await
}

async fn limits(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (engine, id) = (machine.dockerd.engine(), create(cluster, &stub("bounded")).await?);
        let before = engine::container(engine, &id).await?;
        let ordered = memory(&before)?;
        ensure!(ordered == (1 << 30, 100_000, 512), "{ordered:?}");
        set(engine, &id, (2 << 30, 200_000, 99)).await?;
        becomes(engine, &id, ordered).await?;
        // So the node agent has seen it too, and looks at limits again in some seconds only.
        stay_true("its limits stay", Duration::from_secs(2), async || {
            Ok(memory(&engine::container(engine, &id).await?)? == ordered)
        })
        .await?;

        // More than the order allows is in use: the order would kill it, so it waits.
        let loose = (2 << 30, 100_000, 512);
        set(engine, &id, loose).await?;
        cluster.client.get("/gateway/bounded/eat?mb=1200").await?.success()?;
        let told = reason(cluster, "bounded", "mem_limit 1g is less than").await?;
        ensure!(told["phase"] == "ready", "{told}");
        let now = engine::container(engine, &id).await?;
        ensure!(memory(&now)? == loose, "{:?}", memory(&now)?);
        ensure!(
            engine::started_at(&before) == engine::started_at(&now),
            "it was started again"
        );
        cluster.client.act("bounded", "restart").await?;
        becomes(engine, &id, ordered).await
    })
    .await
}

async fn paused(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (engine, id) = (machine.dockerd.engine(), create(cluster, &stub("sleeper")).await?);
        engine.pause_container(&format!("cs-{id}")).await?;
        let is_paused = async || {
            let container = engine::container(engine, &id).await?;
            anyhow::Ok(container.state.and_then(|state| state.paused).unwrap_or(true))
        };
        become_true("it is let go on", PATIENCE, async || Ok(!is_paused().await?)).await?;
        // Also a paused one can be stopped, and deleted, while the node agent was away.
        cluster.kill9(Who::NodeAgent).await?;
        engine.pause_container(&format!("cs-{id}")).await?;
        cluster.start(Who::NodeAgent)?;
        cluster.client.act("sleeper", "stop").await?;
        cluster.client.act("sleeper", "start").await?;
        ready(cluster, "sleeper").await
    })
    .await
}

async fn hanging_stop(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, &stub_with("deaf", &[("STUB_IGNORE_TERM", "1")])).await?;
        let began = std::time::Instant::now();
        let mut events = cluster.client.events("/instances/deaf/stop", &Value::Null).await?;
        let (created, took) = {
            // Nobody waits for it.
            let other = std::time::Instant::now();
            cluster.client.create(&stub("other")).await?;
            (
                other.elapsed(),
                async {
                    let events = events.rest().await?;
                    ensure!(events.last().is_some_and(|event| event.name == "stopped"), "{events:?}");
                    anyhow::Ok(began.elapsed())
                }
                .await?,
            )
        };
        ensure!(created < GRACE / 2, "another one was made after {created:?}");
        ensure!(
            took >= GRACE - Duration::from_secs(1) && took < GRACE * 2,
            "stopped after {took:?}"
        );
        let container = engine::container(machine.dockerd.engine(), &id).await?;
        let code = container.state.and_then(|state| state.exit_code);
        ensure!(code == Some(137), "exit code {code:?}");
        Ok(())
    })
    .await
}

async fn log_stays(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, &stub("writer")).await?;
        for _ in 0..3 {
            cluster.client.act("writer", "restart").await?;
        }
        let logs = async |tail: u32| -> anyhow::Result<String> {
            let answer = cluster
                .client
                .get(&format!("/instances/writer/logs?tail={tail}"))
                .await?
                .success()?;
            Ok(text(&answer, "logs")?.to_owned())
        };
        // The two containers before this one are kept.
        ensure!(
            logs(100).await? == "start 2 serves\nstart 3 serves\nstart 4 serves\n",
            "{}",
            logs(100).await?
        );
        ensure!(logs(2).await? == "start 3 serves\nstart 4 serves\n", "{}", logs(2).await?);
        let folder = cluster.data(Who::NodeAgent).join("instances").join(&id).join("log");
        ensure!(fs::read_dir(&folder)?.count() == 2, "{} holds others", folder.display());
        Ok(())
    })
    .await
}

async fn log_is_followed(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, &stub("writer")).await?;
        let mut body = data_plane::open(cluster, &format!("/v1/instances/{id}/logs?tail=10&follow=true")).await?;
        let mut seen = String::new();
        let mut until = async |end: &str, seen: &mut String| {
            let read = async {
                while !seen.contains(end) {
                    let mut part = [0; 4096];
                    let length = body.read(&mut part).await?;
                    ensure!(length > 0, "the log ended");
                    seen.push_str(&String::from_utf8_lossy(&part[..length]));
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(PATIENCE, read)
                .await
                .with_context(|| format!("no `{end}` in `{seen}`"))?
        };
        until("start 1 serves", &mut seen).await?;
        cluster.client.act("writer", "restart").await?;
        until("start 2 serves", &mut seen).await?;
        machine.dockerd.engine().kill_container(&format!("cs-{id}"), None).await?;
        until("start 3 serves", &mut seen).await?;
        let lines: Vec<&str> = seen.lines().filter(|line| line.starts_with("start")).collect();
        ensure!(lines == ["start 1 serves", "start 2 serves", "start 3 serves"], "{seen}");
        cluster.client.delete("writer", true).await?;
        // The last chunk is the empty one.
        until("\r\n0\r\n\r\n", &mut seen)
            .await
            .context("the log of a deleted instance goes on")
    })
    .await
}

async fn stats(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, &stub("measured")).await?;
        let read = async || {
            let answer = data_plane::get(cluster, &format!("/v1/instances/{id}/stats")).await?;
            let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
            serde_json::from_str::<Value>(body).with_context(|| answer.clone())
        };
        let little = read().await?;
        cluster.client.get("/gateway/measured/eat?mb=200").await?;
        let much = read().await?;
        let number = |stats: &Value, key: &str| stats[key].as_u64().with_context(|| format!("no `{key}` in {stats}"));
        ensure!(number(&little, "memory_limit")? == 1 << 30, "{little}");
        ensure!(
            number(&much, "memory_used")? > number(&little, "memory_used")? + (150 << 20),
            "{little} {much}"
        );
        ensure!(
            number(&much, "cpu_nanoseconds")? > number(&little, "cpu_nanoseconds")?,
            "{little} {much}"
        );
        ensure!(
            number(&much, "pids")? >= 1 && number(&much, "network_received")? > 0,
            "{much}"
        );
        ensure!(
            much["cpu_percent"]
                .as_f64()
                .is_some_and(|percent| (0.0..=400.0).contains(&percent)),
            "{much}"
        );
        cluster.client.act("measured", "stop").await?;
        let stopped = read().await?;
        ensure!(
            number(&stopped, "memory_used")? == 0 && number(&stopped, "pids")? == 0,
            "{stopped}"
        );
        ensure!(number(&stopped, "memory_limit")? == 1 << 30, "{stopped}");
        Ok(())
    })
    .await
}

async fn quiet(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, &stub("quiet")).await?;
        let host = engine::container(machine.dockerd.engine(), &id)
            .await?
            .host_config
            .context("no host config")?;
        ensure!(host.memory_swap == host.memory, "it may swap: {host:?}");
        ensure!(host.shm_size == Some(64 << 20) && host.oom_score_adj == Some(500), "{host:?}");
        let limits = serde_json::to_value(&host.ulimits)?;
        let files = limits
            .as_array()
            .into_iter()
            .flatten()
            .find(|limit| limit["Name"] == "nofile")
            .context("no limit of files")?;
        ensure!(
            files["Hard"].as_i64().is_some_and(|hard| (1..=65_536).contains(&hard)),
            "{files}"
        );
        // What this kernel does not have is left out, not half set.
        let weight = fs::exists("/sys/fs/cgroup/blkio/blkio.weight")? || fs::exists("/sys/fs/cgroup/blkio/blkio.bfq.weight")?;
        let given = host.blkio_weight.unwrap_or_default();
        ensure!(
            weight == (given != 0) || fs::exists("/sys/fs/cgroup/cgroup.controllers")?,
            "weight {given}"
        );
        let log = fs::read_to_string(cluster.log(Who::NodeAgent))?;
        ensure!(
            !log.contains("UpdateLimits"),
            "the engine keeps other limits than it was given: {host:?}"
        );
        Ok(())
    })
    .await
}

/// dockerd (seen with 20.10) that is killed between reserving an SSH port and starting the container's
/// process reserves that port again when it is started, finds no container for it and keeps it: no
/// request frees it, not even the removal of container and network, only another restart.
async fn cut_short(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        for name in ["unlucky-1", "unlucky-2", "unlucky-3"] {
            let before = dockerd::published_ports();
            let creation = cluster.client.request(Method::POST, "/instances");
            drop(creation.body(stub(name).to_string()).send().await?);
            let published = async {
                while dockerd::published_ports() <= before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(PATIENCE, published)
                .await
                .context("its port is not published")?;
            tokio::time::sleep(UNTIL_RESERVED).await;
            machine.dockerd.kill9().await?;
            machine.dockerd.start_again().await?;
            let told = eventually("it is ready, or says why not", PATIENCE, async || {
                let instance = cluster.client.instance(name).await?;
                let says = instance["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains("`systemctl restart docker`"));
                Ok((says || instance["phase"] == "ready").then_some(instance))
            })
            .await?;
            if told["phase"] != "ready" {
                ensure!(told["phase"] == "failed" && told["status"] == "error", "{told}");
                machine.dockerd.restart().await?;
                ready(cluster, name).await?;
            }
            let (id, instance) = (text(&told, "instance_id")?, cluster.client.instance(name).await?);
            let settings = engine::container(machine.dockerd.engine(), id).await?.network_settings;
            let ports = serde_json::to_string(&settings.context("no network settings")?.ports)?;
            let port = instance["ssh_port"].as_u64().context("no SSH port")?;
            ensure!(ports.contains(&port.to_string()), "{port} is not in {ports}");
        }
        Ok(())
    })
    .await
}

/// What a dockerd leaves that is killed while it makes a network.
async fn forgotten_bridge(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (engine, id) = (machine.dockerd.engine(), create(cluster, &stub("astray")).await?);
        let bridge = format!("cs-{}", &id[..12]);
        cluster.client.act("astray", "stop").await?;
        engine::wipe(engine).await?;
        command::run(&format!("ip link add {bridge} type bridge"))?;
        cluster.client.act("astray", "start").await?;
        ready(cluster, "astray").await?;
        cluster.client.delete("astray", true).await?;
        ensure!(!command::run("ip link")?.contains(&bridge), "{bridge} is left");
        Ok(())
    })
    .await
}

/// Creates an instance and returns its id.
async fn create(cluster: &Cluster<'_>, body: &Value) -> anyhow::Result<String> {
    cluster.client.create(body).await?;
    let name = text(body, "name")?;
    Ok(text(&cluster.client.instance(name).await?, "instance_id")?.to_owned())
}

/// Waits for a reason that holds these words.
async fn reason(cluster: &Cluster<'_>, name: &str, words: &str) -> anyhow::Result<Value> {
    eventually(&format!("the reason says `{words}`"), PATIENCE, async || {
        let instance = cluster.client.instance(name).await?;
        let says = instance["reason"].as_str().is_some_and(|reason| reason.contains(words));
        Ok(says.then_some(instance))
    })
    .await
}

async fn ready(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<()> {
    become_true("it answers", PATIENCE, async || {
        Ok(cluster.client.instance(name).await?["phase"] == "ready")
    })
    .await
}

/// Memory, quota of CPU time, processes.
type Limits = (i64, i64, i64);

fn memory(container: &ContainerInspectResponse) -> anyhow::Result<Limits> {
    let host = container.host_config.as_ref().context("no host config")?;
    ensure!(host.memory == host.memory_swap, "it may swap");
    let all = (host.memory, host.cpu_quota, host.pids_limit);
    let (Some(memory), Some(quota), Some(pids)) = all else {
        anyhow::bail!("{all:?}")
    };
    Ok((memory, quota, pids))
}

/// Changes limits behind the node agent's back.
async fn set(engine: &Docker, id: &str, (memory, quota, pids): Limits) -> anyhow::Result<()> {
    let body = ContainerUpdateBody {
        memory: Some(memory),
        memory_swap: Some(memory),
        cpu_period: Some(100_000),
        cpu_quota: Some(quota),
        pids_limit: Some(pids),
        ..ContainerUpdateBody::default()
    };
    Ok(engine.update_container(&format!("cs-{id}"), body).await?)
}

async fn becomes(engine: &Docker, id: &str, limits: Limits) -> anyhow::Result<()> {
    become_true(&format!("its limits are {limits:?}"), PATIENCE, async || {
        Ok(memory(&engine::container(engine, id).await?)? == limits)
    })
    .await
}

/// Runs a command in the container to its end, whatever that is.
async fn exec(engine: &Docker, id: &str, argv: &[&str]) -> anyhow::Result<()> {
    let options = CreateExecOptions {
        cmd: Some(argv.iter().map(|&word| word.to_owned()).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..CreateExecOptions::default()
    };
    let exec = engine.create_exec(&format!("cs-{id}"), options).await?;
    if let StartExecResults::Attached { output, .. } = engine.start_exec(&exec.id, None).await? {
        output.try_for_each(async |_| Ok(())).await?;
    }
    Ok(())
}
