//! A small life that needs every action: created, stopped, started, restarted, deleted with and
//! without its data. Whoever dies meanwhile is started again, and the caller asks again, as real
//! callers do.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::bail;
use reqwest::Method;
use serde_json::Value;

use crate::{
    client::stub,
    cluster::{Cluster, Who},
    must,
};

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Ids by name of everything that was created.
pub(super) type Ids = BTreeMap<String, String>;

const SCRIPT: [(&str, &str); 12] = [
    ("create", "alpha"),
    ("stop", "alpha"),
    ("start", "alpha"),
    ("restart", "alpha"),
    ("create", "beta"),
    ("purge", "beta"),
    ("create", "gamma"),
    ("delete", "gamma"),
    ("create", "delta"),
    ("stop", "delta"),
    ("create", "epsilon"),
    ("restart", "epsilon"),
];

/// Plays it; nobody may die.
pub(super) async fn play(cluster: &mut Cluster<'_>) -> anyhow::Result<Ids> {
    let mut died = false;
    let ids = play_through(cluster, &mut died).await?;
    anyhow::ensure!(!died, "a process died without being told to");
    Ok(ids)
}

/// Plays it whoever dies, and says whether somebody did.
pub(super) async fn play_through(cluster: &mut Cluster<'_>, died: &mut bool) -> anyhow::Result<Ids> {
    let mut ids = Ids::new();
    for (act, name) in SCRIPT {
        perform(cluster, act, name, died).await?;
        if act == "create" {
            let id = must::text(&cluster.client.instance(name).await?, "instance_id")?.to_owned();
            ids.insert(name.to_owned(), id);
        }
    }
    // What dies in the last moment must be back as well.
    cluster.revive()?;
    for who in Who::ALL {
        cluster.ready(who).await?;
    }
    Ok(ids)
}

async fn perform(cluster: &mut Cluster<'_>, act: &str, name: &str, died: &mut bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut heard = false;
    while began.elapsed() < LIMIT {
        *died |= !cluster.revive()?.is_empty();
        if !heard {
            heard = ask(cluster, act, name).await?;
        } else if is_done(cluster, act, name).await.unwrap_or(false) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("{act} of {name} did not come true within {} s", LIMIT.as_secs())
}

/// True when the coordinator has taken the wish; false when it was not there.
async fn ask(cluster: &Cluster<'_>, act: &str, name: &str) -> anyhow::Result<bool> {
    let client = &cluster.client;
    let request = match act {
        "create" => client.request(Method::POST, "/instances").body(stub(name).to_string()),
        "purge" => client.request(Method::DELETE, &format!("/instances/{name}?purge=true")),
        "delete" => client.request(Method::DELETE, &format!("/instances/{name}")),
        _ => client.request(Method::POST, &format!("/instances/{name}/{act}")),
    };
    let Ok(answer) = request.send().await else { return Ok(false) };
    let status = answer.status();
    if status.is_success() {
        // A real caller may hang up here.
        return Ok(true);
    }
    let refusal: Value = answer.json().await.unwrap_or_default();
    match (act, status.as_u16(), refusal["code"].as_str().unwrap_or_default()) {
        // An earlier attempt was heard, but its answer was lost.
        ("create", 409, "name_taken") | ("purge" | "delete", 404, _) => Ok(true),
        // Its node is not back yet.
        (_, 409, "no_capacity" | "conflict") | (_, 503, _) => Ok(false),
        _ => bail!("{act} of {name}: {status} {refusal}"),
    }
}

async fn is_done(cluster: &Cluster<'_>, act: &str, name: &str) -> anyhow::Result<bool> {
    let status = cluster.client.status(name).await?;
    Ok(match act {
        "stop" => status.as_deref() == Some("stopped"),
        "purge" | "delete" => status.is_none(),
        _ => {
            let instance = cluster.client.instance(name).await?;
            status.as_deref() == Some("running") && instance["phase"] == "ready"
        }
    })
}
