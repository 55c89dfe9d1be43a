//! What the product left on a machine. After a purge: nothing.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    cluster::{Cluster, Who},
    command, engine,
};

/// First and last port of the instances' SSH.
const SSH_PORTS: std::ops::RangeInclusive<u16> = 19001..=29999;

/// Everything of instances that is still there, one line each.
pub async fn find(cluster: &Cluster<'_>) -> anyhow::Result<Vec<String>> {
    let engine = cluster.machine.dockerd.engine();
    let mut left = Vec::new();
    for container in engine::containers(engine).await? {
        left.push(format!("container {}", container.name.unwrap_or_default()));
    }
    for network in engine::networks(engine).await? {
        left.push(format!("network {}", network.name.unwrap_or_default()));
    }
    let links: Value = serde_json::from_str(&command::run("ip -j link")?)?;
    let names = links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link["ifname"].as_str());
    left.extend(
        names
            .filter(|name| name.starts_with("cs-"))
            .map(|name| format!("bridge {name}")),
    );
    left.extend(elements()?);
    left.extend(folders(&cluster.data(Who::NodeAgent).join("instances")));
    left.extend(ports()?);
    Ok(left)
}

/// Elements of the ruleset that name a bridge.
fn elements() -> anyhow::Result<Vec<String>> {
    let Ok(text) = command::run("nft -n -j list table inet crabshack") else {
        return Ok(Vec::new());
    };
    let listing: Value = serde_json::from_str(&text)?;
    let mut left = Vec::new();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        let Some(set) = object.get("set").or_else(|| object.get("map")) else {
            continue;
        };
        for element in set["elem"].as_array().into_iter().flatten() {
            // Dynamic sets (rate limits) forget by themselves; what they hold lets nothing out.
            let dynamic = set["flags"].to_string().contains("dynamic");
            if !dynamic && element.to_string().contains("cs-") {
                left.push(format!("element {element} of {}", set["name"]));
            }
        }
    }
    Ok(left)
}

/// Folders of instances.
pub fn folders(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| format!("folder {}", entry.path().display())).collect()
}

fn ports() -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table)?.lines().skip(1) {
            let mut fields = line.split_whitespace();
            let local = fields.nth(1).and_then(|address| address.rsplit_once(':'));
            let port = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            // 0A is LISTEN.
            if let (Some(port), Some("0A")) = (port, fields.nth(1)) {
                left.extend(SSH_PORTS.contains(&port).then(|| format!("listening port {port}")));
            }
        }
    }
    Ok(left)
}
