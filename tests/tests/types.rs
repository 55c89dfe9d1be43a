//! Every service type: its containers, its addresses, its SSH, and what its gateway says to it.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bollard::models::ContainerInspectResponse;
use crabshack_tests::{
    cluster::{Cluster, Who},
    command, engine, image,
    internet::{METADATA, PRIVATE, PUBLIC},
    machine::Machine,
    measure::types::{self, Kind, findings, offer_sysbox},
    must::{self, PATIENCE, become_true},
    suite,
    types::{ROOT_STUB, Real, import_root_stub},
};
use serde_json::Value;

const SSH_STUB: (Who, &str, &str) = (Who::NodeAgent, "CRABSHACK_SSH_IMAGE", image::STUB);

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("ironclaw__should_be_two_containers_on_one_link", two_containers);
        suite.test("sidecar__should_be_mended_without_touching_the_agent", sidecar);
        suite.test("agent__should_be_shown_its_own_token_only", own_token);
        suite.test("dind__should_be_refused_where_its_runtime_is_missing", refused);
        suite.test("dind__should_be_run_by_its_runtime_and_held_by_the_same_rules", inner);
        suite.test("types__should_live_from_creation_to_deletion", lives);
    })
}

fn name_of(container: &ContainerInspectResponse) -> &str {
    container.name.as_deref().unwrap_or_default().trim_start_matches('/')
}

fn address_of(container: &ContainerInspectResponse) -> Option<Ipv4Addr> {
    let networks = container.network_settings.as_ref()?.networks.as_ref()?;
    networks.values().next()?.ip_address.as_ref()?.parse().ok()
}

async fn created(cluster: &Cluster<'_>, kind: Kind) -> anyhow::Result<String> {
    cluster.client.create(&kind.stub()).await?;
    Ok(must::text(&cluster.client.instance(kind.name()).await?, "instance_id")?.to_owned())
}

async fn two_containers(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with_settings(machine, &[SSH_STUB], async |cluster| {
        let id = created(cluster, Kind::Ironclaw).await?;
        let mut containers = engine::containers(machine.dockerd.engine()).await?;
        containers.sort_by_key(|container| container.name.clone());
        let names: Vec<&str> = containers.iter().map(name_of).collect();
        ensure!(names == [format!("cs-{id}"), format!("cs-{id}-ssh")], "{names:?}");
        let addresses: Vec<Ipv4Addr> = containers.iter().filter_map(address_of).collect();
        let instance = cluster.client.instance("ironclaw").await?;
        let first: Ipv4Addr = must::text(&instance, "gateway_address")?.parse()?;
        let second = Ipv4Addr::from_bits(first.to_bits() + 1);
        ensure!(addresses == [first, second], "{addresses:?}");
        let bound = command::run("nft list set inet crabshack bind4")?;
        for address in addresses {
            ensure!(bound.contains(&format!("\"cs-{}\" . {address}", &id[..12])), "{bound}");
        }
        let memory: i64 = containers
            .iter()
            .filter_map(|container| container.host_config.as_ref()?.memory)
            .sum();
        ensure!(memory == 1 << 30, "together they may use {memory}");
        // Memory is shared anew without a restart.
        let changed = cluster.client.request(reqwest::Method::PATCH, "/instances/ironclaw");
        let changed = changed.json(&serde_json::json!({"mem_limit": "2g"})).send().await?;
        ensure!(changed.status().is_success(), "{changed:?}");
        become_true("both have their part", PATIENCE, async || {
            let now = engine::containers(machine.dockerd.engine()).await?;
            let memory: i64 = now
                .iter()
                .filter_map(|container| container.host_config.as_ref()?.memory)
                .sum();
            let same = now.iter().all(|now| containers.iter().any(|before| before.id == now.id));
            ensure!(same, "a container was made again");
            Ok(memory == 2 << 30)
        })
        .await?;
        ensure!(findings(&id).await?.is_empty(), "{:?}", findings(&id).await?);
        let stats = cluster.client.get("/instances/ironclaw/stats").await?.success()?;
        ensure!(stats.to_string().contains(&(2_u64 << 30).to_string()), "{stats}");
        Ok(())
    })
    .await
}

async fn sidecar(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with_settings(machine, &[SSH_STUB], async |cluster| {
        let id = created(cluster, Kind::Ironclaw).await?;
        let docker = machine.dockerd.engine();
        let agent = engine::container(docker, &id).await?;
        let beside = format!("{id}-ssh");
        for removed in [false, true] {
            let before = engine::container(docker, &beside).await?;
            if removed {
                engine::remove_container(docker, &format!("cs-{beside}")).await?;
            } else {
                let process = before.state.as_ref().and_then(|state| state.pid).context("it does not run")?;
                command::run(&format!("kill -9 {process}"))?;
            }
            become_true("the sidecar runs again", PATIENCE, async || {
                let now = engine::container(docker, &beside).await?;
                Ok(engine::is_running(&now) && engine::started_at(&now) != engine::started_at(&before))
            })
            .await?;
        }
        become_true("the doctor tells of it", PATIENCE, async || {
            let told = findings(&id).await?;
            Ok(told
                .iter()
                .any(|finding| finding["subject"] == "container state" && finding["repaired"] == true))
        })
        .await?;
        let now = engine::container(docker, &id).await?;
        ensure!(
            now.id == agent.id && engine::started_at(&now) == engine::started_at(&agent),
            "the agent was touched"
        );
        // A new node agent adopts both as they are.
        let kept = engine::container(docker, &beside).await?;
        cluster.crash_and_restart(Who::NodeAgent).await?;
        must::stay_true("both are left alone", Duration::from_secs(5), async || {
            let now = (
                engine::container(docker, &id).await?,
                engine::container(docker, &beside).await?,
            );
            Ok(now.0.id == agent.id && now.1.id == kept.id && engine::started_at(&now.1) == engine::started_at(&kept))
        })
        .await
    })
    .await
}

fn headers_of(echo: &Value, name: &str) -> Vec<String> {
    let pairs = echo["headers"].as_array().into_iter().flatten();
    let named = pairs.filter(|pair| pair[0] == name);
    named.filter_map(|pair| pair[1].as_str().map(str::to_owned)).collect()
}

async fn own_token(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with_settings(machine, &[SSH_STUB], async |cluster| {
        let id = created(cluster, Kind::Ironclaw).await?;
        let token = must::text(&cluster.client.instance("ironclaw").await?, "token")?.to_owned();
        let mut visitor = cluster.browser("ironclaw")?;
        visitor.log_in(&token).await?;
        let own = visitor.origin();
        let echo = visitor.get("/echo", &[("origin", &own)]).await?.success()?;
        ensure!(headers_of(&echo, "origin") == ["http://localhost"], "{echo}");
        let shown = headers_of(&echo, "authorization");
        let file = cluster.data(Who::NodeAgent).join("instances").join(&id).join("etc/env");
        let environment = std::fs::read_to_string(file)?;
        ensure!(
            !environment.contains(&token),
            "the instance's token is in the agent's environment"
        );
        let agents = environment.lines().find_map(|line| line.strip_prefix("GATEWAY_AUTH_TOKEN="));
        ensure!(
            agents.is_some_and(|agents| shown == [format!("Bearer {agents}")]),
            "{shown:?} instead of {agents:?}"
        );
        let foreign = visitor.get("/echo", &[("origin", "http://evil.localhost:3000")]).await?;
        ensure!(foreign.status.as_u16() == 403, "{foreign:?}");
        // A new token for visitors is no news to the agent.
        let rotated = cluster
            .client
            .post("/instances/ironclaw/token/rotate", &serde_json::json!({}))
            .await?
            .success()?;
        visitor.cookie = None;
        visitor.log_in(must::text(&rotated, "token")?).await?;
        let echo = visitor.get("/echo", &[]).await?.success()?;
        ensure!(headers_of(&echo, "authorization") == shown, "{echo}");
        Ok(())
    })
    .await
}

async fn refused(machine: &Machine) -> anyhow::Result<()> {
    import_root_stub(&machine.dockerd).await?;
    Cluster::with(machine, async |cluster| {
        let answer = cluster.client.post("/instances", &Kind::IronclawDind.stub()).await?;
        let text = answer.problem(409, "no_capacity")?;
        ensure!(text.contains("sysbox-runc"), "{text}");
        ensure!(cluster.client.instances().await?.is_empty(), "something was written down");
        let mut strict = Kind::IronclawDind.stub();
        strict["profile"] = "strict".into();
        cluster
            .client
            .post("/instances", &strict)
            .await?
            .problem(400, "invalid_request")?;
        let mut published = Kind::Openclaw.stub();
        published["image"] = ROOT_STUB.into();
        published["profile"] = "compatible".into();
        cluster.client.create(&published).await?;
        let instance = cluster.client.instance("openclaw").await?;
        ensure!(instance["profile"] == "compatible", "{instance}");
        let id = must::text(&instance, "instance_id")?;
        let container = engine::container(machine.dockerd.engine(), id).await?;
        let held = container.host_config.context("no host configuration")?;
        ensure!(
            held.privileged == Some(false) && held.cap_drop == Some(vec!["ALL".to_owned()]),
            "{held:?}"
        );
        let text = serde_json::to_string(&container.config)?;
        ensure!(!text.contains("GATEWAY_TOKEN"), "a secret in Docker's record: {text}");
        ensure!(findings(id).await?.is_empty(), "{:?}", findings(id).await?);
        let own = cluster.client.get("/gateway/openclaw/env").await?.success()?.to_string();
        ensure!(own.contains("OPENCLAW_GATEWAY_TOKEN"), "{own}");
        Ok(())
    })
    .await
}

/// What a process that holds a network namespace is ended with.
struct Nested(Child);

impl Drop for Nested {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn inner(machine: &Machine) -> anyhow::Result<()> {
    import_root_stub(&machine.dockerd).await?;
    Cluster::with(machine, async |cluster| {
        offer_sysbox(machine, cluster).await?;
        let id = created(cluster, Kind::IronclawDind).await?;
        let container = engine::container(machine.dockerd.engine(), &id).await?;
        let held = container.host_config.as_ref().context("no host configuration")?;
        ensure!(held.runtime.as_deref() == Some("sysbox-runc"), "{:?}", held.runtime);
        let inner = cluster.data(Who::NodeAgent).join("instances").join(&id).join("inner");
        std::fs::write(inner.join("image"), "can be fetched again")?;
        let process = container.state.and_then(|state| state.pid).context("it does not run")?;
        let nested = nest(u32::try_from(process)?)?;
        let reaches = |target: Ipv4Addr, port: u16| {
            let script = format!("exec 3<>/dev/tcp/{target}/{port}");
            let mut words = Command::new("nsenter");
            words.arg(format!("--net=/proc/{}/ns/net", nested.0.id()));
            words.args(["timeout", "2", "bash", "-c", &script]).stderr(Stdio::null());
            Ok::<_, anyhow::Error>(words.status()?.success())
        };
        ensure!(reaches(PUBLIC, 443)?, "the inner network has no way out");
        for (target, port) in [
            (METADATA, 80),
            (PUBLIC, 25),
            (PUBLIC, 22),
            (PRIVATE[0], 443),
            (PRIVATE[1], 443),
        ] {
            ensure!(!reaches(target, port)?, "{target}:{port} is open to an inner network");
        }
        drop(nested);
        cluster.client.act("ironclaw-dind", "restart").await?;
        ensure!(
            !inner.join("image").exists() && inner.is_dir(),
            "what the inner Docker kept outlived its container"
        );
        Ok(())
    })
    .await
}

/// A network inside the container's, behind its address, as an inner Docker makes one.
fn nest(container: u32) -> anyhow::Result<Nested> {
    let nested = Nested(Command::new("unshare").args(["--net", "sleep", "600"]).spawn()?);
    let inside = nested.0.id();
    let own = std::fs::read_link("/proc/self/ns/net")?;
    while std::fs::read_link(format!("/proc/{inside}/ns/net"))? == own {
        std::thread::sleep(Duration::from_millis(5));
    }
    for line in [
        format!("ip link add inner0 type veth peer name eth0 netns /proc/{inside}/ns/net"),
        "ip address add 172.31.0.1/24 dev inner0".to_owned(),
        "ip link set inner0 up".to_owned(),
        "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
        "iptables -t nat -A POSTROUTING -s 172.31.0.0/24 -j MASQUERADE".to_owned(),
    ] {
        command::run_in(Some(container), &line, "")?;
    }
    for line in [
        "ip address add 172.31.0.2/24 dev eth0",
        "ip link set eth0 up",
        "ip route add default via 172.31.0.1",
    ] {
        command::run_in(Some(inside), line, "")?;
    }
    Ok(nested)
}

async fn lives(machine: &Machine) -> anyhow::Result<()> {
    let figures = types::figures(machine).await?;
    let text = figures.render("types");
    for kind in Kind::ALL {
        ensure!(figures.holds(kind.name()), "{text}");
    }
    let real = Real::find()?.is_some();
    for figure in ["ssh_pty", "sftp", "shared_home"] {
        ensure!(figures.holds(figure) == real, "{figure}: {text}");
    }
    // What was not shown is said where people look: in the last line.
    let said = if real {
        "with the real IronClaw and the real SSH server"
    } else {
        "with the stub only: build infra/images/ssh and infra/images/ironclaw for the real ones"
    };
    writeln!(std::io::stdout(), "{text}types: {said}")?;
    Ok(())
}
