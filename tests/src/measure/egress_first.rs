//! `egress-first`: what leaves an instance from its first instruction on, and what a rule that
//! comes after the start would have let out.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bollard::models::{ContainerCreateBody, HostConfig, Ipam, IpamConfig, NetworkCreateRequest};

use super::Figures;
use crate::{
    client::{stub, stub_with},
    cluster::{Cluster, Who},
    command, engine, image,
    internet::{METADATA, NODE, PRIVATE, PUBLIC, PUBLIC6},
    machine::Machine,
    must::{self, PATIENCE, become_true},
    witness::Seen,
};

const POOL_FIRST: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);
/// The one address of the node that instances may talk to.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
const FLOOD_MILLISECONDS: &str = "1000";

/// Floods with `starts` starts of an instance.
pub async fn figures(machine: &Machine, starts: usize) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("neighbour")).await?;
        let neighbour: Ipv4Addr = must::text(&cluster.client.instance("neighbour").await?, "gateway_address")?.parse()?;
        let targets = forbidden(neighbour)?;
        let before = escaped(machine, &targets)?;
        let text: Vec<_> = targets.iter().map(ToString::to_string).collect();
        let flood = [
            ("STUB_FLOOD", text.join(",")),
            ("STUB_FLOOD_MS", FLOOD_MILLISECONDS.to_owned()),
        ];
        let flood = flood.each_ref().map(|(key, value)| (*key, value.as_str()));
        cluster.client.create(&stub_with("flooder", &flood)).await?;
        let mut attempts = flooded(cluster).await?;
        for _ in 1..starts {
            cluster.client.act("flooder", "restart").await?;
            attempts += flooded(cluster).await?;
        }
        attempts += without_agent(cluster, &flood).await?;
        figures.add("starts", starts + 2);
        figures.add("attempted_packets", attempts);
        figures.add("escaped_packets", escaped(machine, &targets)? - before);
        figures.add("allowed_works", allowed_works(cluster).await.inspect_err(show).is_ok());
        figures.add(
            "forbidden_closed",
            forbidden_closed(cluster, neighbour).await.inspect_err(show).is_ok(),
        );
        figures.add(
            "unprivileged_refused",
            unprivileged_refused(neighbour).inspect_err(show).is_ok(),
        );
        figures.add("late_rule_packets", late_rule(machine, &flood, &targets).await?);
        Ok(())
    })
    .await?;
    Ok(figures)
}

fn show(error: &anyhow::Error) {
    // There is nowhere to complain to if standard error is closed.
    drop(std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("{error:#}\n").as_bytes(),
    ));
}

/// Everything that must not be reached.
fn forbidden(neighbour: Ipv4Addr) -> anyhow::Result<Vec<SocketAddr>> {
    let mut targets = vec![
        (METADATA, 80),
        (METADATA, 53),
        (PUBLIC, 25),
        (PUBLIC, 22),
        (PUBLIC, 53),
        (PUBLIC, 8080),
    ];
    targets.extend(PRIVATE.map(|address| (address, 443)));
    targets.extend([
        (NODE, 22),
        (NODE, 80),
        (NODE, 443),
        (SERVICE, 22),
        (SERVICE, 443),
        (SERVICE, 7703),
    ]);
    targets.extend([(neighbour, 18789), (neighbour, 2222), (neighbour, 80)]);
    let mut targets: Vec<SocketAddr> = targets.into_iter().map(SocketAddr::from).collect();
    let public6: IpAddr = PUBLIC6.parse()?;
    targets.extend([80, 443].map(|port| SocketAddr::new(public6, port)));
    targets.push("[fe80::1]:443".parse()?);
    Ok(targets)
}

/// Packets from instances that arrived where they must not.
fn escaped(machine: &Machine, targets: &[SocketAddr]) -> anyhow::Result<u64> {
    let hits = |seen: &Seen| targets.contains(&SocketAddr::new(seen.destination, seen.port));
    // The agent's own forwarder asks the public name server; it does so from the node's address.
    let forwarder = |seen: &Seen| seen.destination == IpAddr::V4(PUBLIC) && seen.port == 53;
    let outside = machine.internet.witness().count(|seen| hits(seen) && !forwarder(seen))?;
    let inside = machine.witness.count(|seen| hits(seen) || seen.hook == "crossed")?;
    Ok(outside + inside)
}

/// Waits until the flood of the instance `flooder` is over; how many packets it tried.
pub async fn flooded(cluster: &Cluster<'_>) -> anyhow::Result<u64> {
    let attempts = async || {
        let count = cluster.client.get("/gateway/flooder/flood").await?.success()?;
        Ok::<_, anyhow::Error>(count["sent"].as_u64().unwrap_or_default() + count["refused"].as_u64().unwrap_or_default())
    };
    become_true("the flood is over", PATIENCE, async || {
        let before = attempts().await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Afterwards a few per second go on.
        Ok(before > 0 && attempts().await? - before < 500)
    })
    .await?;
    attempts().await
}

/// The same with a dead agent: a start by Docker alone, and a container on a bridge that looks like
/// ours and is not known.
async fn without_agent(cluster: &mut Cluster<'_>, flood: &[(&str, &str)]) -> anyhow::Result<u64> {
    let docker = cluster.machine.dockerd.engine().clone();
    cluster.kill9(Who::NodeAgent).await?;
    let id = must::text(&cluster.client.instance("flooder").await?, "instance_id")?.to_owned();
    docker.restart_container(&format!("cs-{id}"), None).await?;
    let stranger = Stranger::start(&docker, "cs-ffffffffffff", "10.201.255.0/29", flood).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stranger.remove(&docker).await?;
    cluster.start(Who::NodeAgent)?;
    cluster.ready(Who::NodeAgent).await?;
    flooded(cluster).await
}

/// A container beside the product.
struct Stranger {
    container: String,
    network: String,
}

impl Stranger {
    async fn start(docker: &bollard::Docker, bridge: &str, subnet: &str, flood: &[(&str, &str)]) -> anyhow::Result<Self> {
        let network = NetworkCreateRequest {
            name: bridge.to_owned(),
            options: Some([("com.docker.network.bridge.name".to_owned(), bridge.to_owned())].into()),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(subnet.to_owned()),
                    ..IpamConfig::default()
                }]),
                ..Ipam::default()
            }),
            ..NetworkCreateRequest::default()
        };
        docker.create_network(network).await?;
        let body = ContainerCreateBody {
            image: Some(image::STUB.to_owned()),
            env: Some(flood.iter().map(|(key, value)| format!("{key}={value}")).collect()),
            host_config: Some(HostConfig {
                network_mode: Some(bridge.to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let container = docker.create_container(None, body).await?.id;
        docker.start_container(&container, None).await?;
        Ok(Self {
            container,
            network: bridge.to_owned(),
        })
    }

    async fn remove(&self, docker: &bollard::Docker) -> anyhow::Result<()> {
        engine::remove_container(docker, &self.container).await?;
        Ok(docker.remove_network(&self.network).await?)
    }
}

/// The usual way: start, then close. What got out meanwhile.
async fn late_rule(machine: &Machine, flood: &[(&str, &str)], targets: &[SocketAddr]) -> anyhow::Result<u64> {
    let docker = machine.dockerd.engine();
    let before = escaped(machine, targets)?;
    let stranger = Stranger::start(docker, "late0", "10.202.0.0/29", flood).await?;
    command::run("iptables -I FORWARD -i late0 -j DROP")?;
    let late = escaped(machine, targets)?;
    command::run("iptables -D FORWARD -i late0 -j DROP")?;
    stranger.remove(docker).await?;
    Ok(late - before)
}

async fn inside(cluster: &Cluster<'_>, path: &str) -> anyhow::Result<serde_json::Value> {
    cluster.client.get(&format!("/gateway/flooder/{path}")).await?.success()
}

/// DNS, HTTP and HTTPS to the outside, from the instance `flooder`.
pub async fn allowed_works(cluster: &Cluster<'_>) -> anyhow::Result<()> {
    for port in [80, 443] {
        let answer = inside(cluster, &format!("connect?to={PUBLIC}:{port}")).await?;
        ensure!(answer["result"] == "ok", "port {port}: {answer}");
    }
    for tcp in [0, 1] {
        let resolved = inside(cluster, &format!("resolve?name=example.org&tcp={tcp}")).await?;
        ensure!(resolved["addresses"][0] == PUBLIC.to_string(), "tcp={tcp}: {resolved}");
        let direct = inside(cluster, &format!("resolve?name=example.org&tcp={tcp}&server={SERVICE}:53")).await?;
        ensure!(
            direct["addresses"][0] == PUBLIC.to_string(),
            "tcp={tcp}, service address: {direct}"
        );
    }
    Ok(())
}

/// One connection to each forbidden place, and other name servers.
async fn forbidden_closed(cluster: &Cluster<'_>, neighbour: Ipv4Addr) -> anyhow::Result<()> {
    let own: Ipv4Addr = must::text(&cluster.client.instance("flooder").await?, "gateway_address")?.parse()?;
    let bridge = Ipv4Addr::from_bits(own.to_bits() - 1);
    ensure!(own > POOL_FIRST, "an instance outside the pool: {own}");
    let mut targets = forbidden(neighbour)?;
    targets.extend([(bridge, 22), (bridge, 7700), (bridge, 2222)].map(SocketAddr::from));
    for target in targets {
        let answer = inside(cluster, &format!("connect?to={target}&ms=700")).await?;
        ensure!(answer["result"] != "ok", "{target} is open");
    }
    let other = inside(cluster, &format!("connect?to={PUBLIC}:53&proto=udp&ms=700")).await?;
    ensure!(other["result"] != "ok", "another name server answers");
    Ok(())
}

/// Only root of the node opens connections to instances.
fn unprivileged_refused(instance: Ipv4Addr) -> anyhow::Result<()> {
    let connect = |user: &str| {
        let script = format!("exec 3<>/dev/tcp/{instance}/18789");
        let mut command = std::process::Command::new("setpriv");
        command.args([
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--clear-groups",
            "timeout",
            "3",
            "bash",
            "-c",
            &script,
        ]);
        command.stderr(std::process::Stdio::null());
        Ok::<_, anyhow::Error>(
            command
                .status()
                .context("setpriv (package util-linux) cannot be run")?
                .success(),
        )
    };
    ensure!(connect("0")?, "root cannot connect, so this test shows nothing");
    ensure!(!connect("65534")?, "an unprivileged user connected to the instance");
    Ok(())
}
