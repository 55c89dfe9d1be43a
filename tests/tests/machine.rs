//! The harness itself: can it count, does its internet answer, does Docker run the stub?

use std::{net::IpAddr, process::ExitCode};

use anyhow::ensure;
use bollard::models::{ContainerCreateBody, HostConfig};
use crabshack_tests::{
    command, engine, image,
    internet::{METADATA, PUBLIC},
    machine::Machine,
    must::{PATIENCE, eventually},
    suite,
};
use serde_json::Value;

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("witness__should_count_every_packet", counts);
        suite.test("stub__should_answer_and_see_the_internet", stub_answers);
    })
}

async fn counts(machine: &Machine) -> anyhow::Result<()> {
    let witness = machine.internet.witness();
    let to = |port: u16, protocol: &'static str| {
        witness.count(|seen| seen.destination == IpAddr::V4(METADATA) && seen.port == port && seen.protocol == protocol)
    };
    let (udp, tcp) = (to(9, "udp")?, to(9, "tcp")?);
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await?;
    for _ in 0..1000 {
        // An ICMP answer to an earlier one is an error here; the packet leaves all the same.
        drop(socket.send_to(b"x", (METADATA, 9)).await);
    }
    ensure!(
        tokio::net::TcpStream::connect((METADATA, 9)).await.is_err(),
        "nothing listens there"
    );
    ensure!(tokio::net::TcpStream::connect((PUBLIC, 443)).await.is_ok());
    ensure!(
        to(9, "udp")? == udp + 1000,
        "{} of 1000 datagrams counted",
        to(9, "udp")? - udp
    );
    ensure!(to(9, "tcp")? == tcp + 1, "{} of 1 SYN counted", to(9, "tcp")? - tcp);
    Ok(())
}

async fn stub_answers(machine: &Machine) -> anyhow::Result<()> {
    let docker = machine.dockerd.engine();
    let body = ContainerCreateBody {
        image: Some(image::STUB.to_owned()),
        env: Some(vec![format!("STUB_FLOOD={METADATA}:7"), "STUB_FLOOD_MS=100".to_owned()]),
        host_config: Some(HostConfig {
            init: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None, body).await?.id;
    docker.start_container(&id, None).await?;
    let inspected = docker.inspect_container(&id, None).await?;
    let networks = inspected
        .network_settings
        .and_then(|settings| settings.networks)
        .unwrap_or_default();
    let address = networks
        .into_values()
        .find_map(|network| network.ip_address)
        .unwrap_or_default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let get = async |path: &str| -> anyhow::Result<Value> {
        Ok(http.get(format!("http://{address}:18789{path}")).send().await?.json().await?)
    };
    let report = eventually("the stub answers", PATIENCE, async || Ok(Some(get("/env").await?))).await?;
    ensure!(report["init"] == "docker-init", "{report}");
    let open = get("/connect?to=203.0.113.1:443").await?;
    ensure!(open["result"] == "ok", "{open}");
    let closed = get("/connect?to=203.0.113.1:81").await?;
    ensure!(closed["result"] == "refused", "{closed}");
    for tcp in ["0", "1"] {
        let resolved = get(&format!("/resolve?name=example.org&server=203.0.113.1:53&tcp={tcp}")).await?;
        ensure!(resolved["addresses"][0] == "203.0.113.1", "{resolved}");
    }
    let arrived = machine
        .internet
        .witness()
        .count(|seen| seen.destination == IpAddr::V4(METADATA) && seen.port == 7)?;
    let flooded = get("/flood").await?;
    ensure!(
        arrived > 100 && flooded["sent"].as_u64() >= Some(arrived),
        "{flooded}, {arrived} arrived"
    );
    engine::remove_container(docker, &id).await?;
    ensure!(command::run("ip -j link")?.contains("docker0"));
    Ok(())
}
