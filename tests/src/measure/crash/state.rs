//! The end state of a run, made comparable: API view, containers, networks, rules, folders. Ids,
//! addresses and ports differ from run to run, so they get names.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::scenario::Ids;
use crate::{
    cluster::{Cluster, Who},
    command, engine,
};

/// How long a machine may take to come to rest.
const REST: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(200);

/// The state once two looks in a row agree.
pub(super) async fn of(cluster: &Cluster<'_>, ids: &Ids) -> anyhow::Result<Value> {
    let mut last = look(cluster, ids).await;
    for _ in 0..REST.as_millis() / LOOK.as_millis() {
        tokio::time::sleep(LOOK).await;
        let now = look(cluster, ids).await;
        if let (Ok(last), Ok(now)) = (&last, &now)
            && last == now
        {
            return Ok(now.clone());
        }
        last = now;
    }
    last.context("the machine does not come to rest")
}

/// The state once it is the expected one, or at rest after some patience: what dockerd's death made
/// fail is tried again after a while.
pub(super) async fn settled(cluster: &Cluster<'_>, ids: &Ids, expected: &Value) -> anyhow::Result<Value> {
    let began = Instant::now();
    loop {
        let state = of(cluster, ids).await;
        if began.elapsed() > REST || state.as_ref().is_ok_and(|state| state == expected) {
            return state;
        }
    }
}

/// Without saved ends of logs that the reference lacks: dockerd killed in a start may cost a container, which
/// is then made again. One that is missing still counts.
pub(super) fn without_more_logs(state: &Value, reference: &Value) -> Value {
    let known = reference["folders"].as_array().cloned().unwrap_or_default();
    let mut state = state.clone();
    if let Some(folders) = state["folders"].as_array_mut() {
        folders.retain(|entry| known.contains(entry) || !entry.as_str().is_some_and(|entry| entry.contains("/log ")));
    }
    state
}

/// The first lines that differ; none when both are equal.
pub(super) fn difference(expected: &Value, given: &Value) -> Option<String> {
    let lines = |value: &Value| {
        serde_json::to_string_pretty(value)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (expected, given) = (lines(expected), lines(given));
    let (missing, extra) = (minus(&expected, &given), minus(&given, &expected));
    (expected != given).then(|| format!("missing {missing:#?}, unexpected {extra:#?}"))
}

/// What is in these and not in those; a line that comes twice must be there twice.
fn minus(these: &[String], those: &[String]) -> Vec<String> {
    let mut left = BTreeMap::<&str, usize>::new();
    for line in those {
        *left.entry(bare(line)).or_default() += 1;
    }
    let is_new = |line: &&String| match left.get_mut(bare(line)) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    these.iter().filter(is_new).take(12).cloned().collect()
}

/// Without what depends on its place in a list.
fn bare(line: &str) -> &str {
    line.trim_end_matches(',')
}

async fn look(cluster: &Cluster<'_>, ids: &Ids) -> anyhow::Result<Value> {
    let docker = cluster.machine.dockerd.engine();
    let mut view = Vec::new();
    let mut ports = Vec::new();
    for instance in cluster.client.instances().await? {
        let name = instance["name"].as_str().context("no name")?;
        let whole = cluster.client.instance(name).await?;
        ports.extend(
            whole["ssh_port"]
                .as_u64()
                .map(|port| (port.to_string(), format!("<port of {name}>"))),
        );
        view.push(json!({
            "name": name, "status": whole["status"], "phase": whole["phase"], "reason": whole["reason"],
            "image_digest": whole["image_digest"], "has_address": whole["gateway_address"].is_string(),
        }));
    }
    view.sort_by_key(|entry| entry["name"].to_string());
    let mut containers = Vec::new();
    for container in engine::containers(docker).await? {
        let config = container.config.as_ref();
        let mut labels = config.and_then(|config| config.labels.clone()).unwrap_or_default();
        // A restart whose answer was lost is asked for twice.
        labels.remove("crabshack.restarts");
        labels.remove("crabshack.recipe");
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        containers.push(json!({
            "name": container.name, "running": engine::is_running(&container), "labels": labels, "host": container.host_config,
            "environment": config.and_then(|config| config.env.clone()), "image": config.and_then(|config| config.image.clone()),
        }));
    }
    let mut networks = Vec::new();
    for network in engine::networks(docker).await? {
        networks.push(json!({
            "name": network.name, "options": network.options.map(|options| options.into_iter().collect::<BTreeMap<_, _>>()),
            "internal": network.internal, "ipv6": network.enable_ipv6,
        }));
    }
    let state = json!({
        "api": view, "containers": containers, "networks": networks, "rules": rules()?,
        "bridges": bridges()?, "folders": tree(&cluster.data(Who::NodeAgent).join("instances"))?,
    });
    let mut text = state.to_string();
    for (name, id) in ids {
        text = text
            .replace(id, &format!("<{name}>"))
            .replace(&id[..12], &format!("<bridge of {name}>"));
    }
    for (port, name) in ports {
        text = text.replace(&port, &name);
    }
    text = text.replace(&cluster.machine.folder().display().to_string(), "<folder>");
    Ok(sorted(serde_json::from_str(&text)?))
}

/// Lists have no order of their own here, and an empty one is as good as none: dockerd says none of a
/// container that it made, and empty of one that it has read from its records.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<_> = items.into_iter().map(sorted).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| value.as_array().is_none_or(|items| !items.is_empty()))
                .map(|(key, value)| (key, sorted(value)))
                .collect::<Map<_, _>>(),
        ),
        other => other,
    }
}

/// Names of the interfaces of links, also of those that Docker has forgotten.
pub(super) fn bridges() -> anyhow::Result<Vec<String>> {
    let links: Value = serde_json::from_str(&command::run("ip -j link")?)?;
    let names = links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| name.starts_with("cs-")).map(str::to_owned).collect())
}

/// Elements of the ruleset's own sets and maps, by bridge; addresses and epochs are left out.
fn rules() -> anyhow::Result<Value> {
    let listing: Value = serde_json::from_str(&command::run("nft -n -j list table inet crabshack")?)?;
    let mut rules = Vec::new();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        if let Some(chain) = object.get("chain") {
            rules.push(format!("chain {}", chain["name"]));
        }
        let Some(set) = object.get("set").or_else(|| object.get("map")) else {
            continue;
        };
        if set["flags"].to_string().contains("dynamic") {
            continue;
        }
        for element in set["elem"].as_array().into_iter().flatten() {
            let text = element.to_string();
            let bridge = text.find("cs-").and_then(|at| text.get(at..at + 15)).unwrap_or("constant");
            rules.push(format!("{} holds {bridge}", set["name"]));
        }
    }
    let guard = command::run("ip rule")?
        .lines()
        .filter(|line| line.contains("10.201."))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    Ok(json!({"table": rules, "guard": guard}))
}

/// Every file but those inside a home and saved logs, of which a repeated wish leaves more; with mode and
/// owner.
fn tree(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        found.push(format!("{} {:o} {}", entry.path().display(), metadata.mode(), metadata.uid()));
        if metadata.is_dir() && entry.file_name() != "home" && entry.file_name() != "log" {
            found.extend(tree(&entry.path())?);
        }
    }
    Ok(found)
}
