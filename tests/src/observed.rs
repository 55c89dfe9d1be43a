//! What suites look at when nobody but the node acts: containers' starts, and the events that it tells.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    client::stub,
    cluster::{AGENT_HEALTH, Cluster},
    engine,
    machine::Machine,
    must::{PATIENCE, become_true, text},
};

/// A check-up of a small node, even on a busy machine.
pub const CHECK_UP: Duration = Duration::from_secs(60);

/// What the doctor says now.
pub async fn check_up() -> anyhow::Result<Vec<Value>> {
    let http = reqwest::Client::builder().no_proxy().timeout(CHECK_UP).build()?;
    let answer = http.get(format!("{AGENT_HEALTH}/doctor")).send().await?;
    let checkup: Value = serde_json::from_str(&answer.error_for_status()?.text().await?)?;
    let findings = checkup["findings"].as_array().context("no array `findings`")?;
    let subjects = checkup["subjects"].as_array().context("no array `subjects`")?;
    ensure!(
        findings.iter().all(|finding| subjects.contains(&finding["subject"])),
        "a finding about something that was not looked at: {checkup}"
    );
    Ok(findings.clone())
}

/// The start of an instance's container; none while it is down.
pub async fn up_since(machine: &Machine, id: &str) -> anyhow::Result<Option<String>> {
    let container = engine::container(machine.dockerd.engine(), id).await?;
    let up = engine::is_running(&container);
    Ok(engine::started_at(&container).filter(|_| up))
}

/// Creates an instance and returns its id.
pub async fn create(cluster: &Cluster<'_>, body: &Value) -> anyhow::Result<String> {
    cluster.client.create(body).await?;
    let instance = cluster.client.instance(text(body, "name")?).await?;
    Ok(text(&instance, "instance_id")?.to_owned())
}

/// A stub that its node stops when the coordinator has been silent for so many seconds.
pub fn leased(name: &str, seconds: u64) -> Value {
    let mut body = stub(name);
    body["on_disconnect"] = json!({"action": "stop_after", "seconds": seconds});
    body
}

/// An event that a node told: when, which phase, and why.
pub type Told = (String, String, String);

/// What its node told of an instance, oldest first.
pub async fn told(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<Vec<Told>> {
    let list = cluster.client.get(&format!("/instances/{name}/events")).await?.success()?;
    let events = list["events"].as_array().context("no array `events`")?;
    let of_node = events.iter().filter(|event| event["origin"] == "node");
    let word = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    Ok(of_node
        .map(|event| (word(event, "at"), word(event, "phase"), word(event, "reason")))
        .collect())
}

/// Waits until an instance answers through the gateway.
pub async fn ready(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<()> {
    become_true(&format!("{name} answers"), PATIENCE, async || {
        let answer = cluster.client.get(&format!("/gateway/{name}/healthz")).await?;
        Ok(answer.status.is_success())
    })
    .await
}
