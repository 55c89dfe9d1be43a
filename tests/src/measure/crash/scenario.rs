//! A small life that needs every action: created, stopped, started, restarted, tampered with, limited,
//! deleted with and without its data, moved to another public URL. Whoever dies meanwhile is started
//! again, and the caller asks again, as real callers do.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bollard::models::{ContainerUpdateBody, RestartPolicy, RestartPolicyNameEnum};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::stub,
    cluster::{Cluster, Who},
    engine,
    machine::Machine,
    must,
    registry::{Build, Caller, Fault, HOST, Registry},
};

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// The coordinator finds it, Docker does not.
const ABSENT: (&str, &str) = ("absent", "1");
const OTHER_PUBLIC_URL: &str = "http://localhost:3999";
const MORE_MEMORY: i64 = 2 << 30;

/// What the coordinator of these runs is started with: disks of deleted instances are due soon.
pub(super) const SETTINGS: [(Who, &str, &str); 1] = [(Who::Coordinator, "CRABSHACK_DELETE_GRACE", "1s")];

/// Ids by name of everything that was created.
pub(super) type Ids = BTreeMap<String, String>;

/// One thing that happens to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Create,
    /// With an image that cannot be pulled.
    CreateAbsent,
    Stop,
    Start,
    Restart,
    /// Somebody has Docker start it, and freezes it.
    Tamper,
    /// Its owner gives it more memory.
    Limit,
    Purge,
    Delete,
    /// The time of its disk comes.
    Expire,
    /// Users see the coordinator elsewhere. Last: a coordinator that is started again counts its
    /// actions anew.
    Move,
}

const SCRIPT: [(Act, &str); 16] = [
    (Act::Create, "alpha"),
    (Act::Stop, "alpha"),
    (Act::Start, "alpha"),
    (Act::Restart, "alpha"),
    (Act::Tamper, "alpha"),
    (Act::Limit, "alpha"),
    (Act::Create, "gamma"),
    (Act::Delete, "gamma"),
    (Act::Create, "beta"),
    (Act::Purge, "beta"),
    (Act::CreateAbsent, "absent"),
    (Act::Purge, "absent"),
    // Its order raises the generations of later ones, so it must come before those that stay.
    (Act::Expire, "gamma"),
    (Act::Create, "delta"),
    (Act::Stop, "delta"),
    (Act::Move, "alpha"),
];

/// A registry that shows an image to the coordinator and not to Docker, so that a pull fails at once and
/// always in the same words.
pub(super) async fn registry(machine: &Machine) -> anyhow::Result<Registry> {
    let registry = Registry::start(machine).await?;
    registry.push(ABSENT.0, ABSENT.1, &Build::default()).await?;
    registry.faults.set_for(Caller::Docker, Fault::Status(404, None));
    Ok(registry)
}

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
        perform(cluster, act, name, &mut ids, died).await?;
    }
    // What dies in the last moment must be back as well.
    *died |= !cluster.revive()?.is_empty();
    for who in Who::ALL {
        cluster.ready(who).await?;
    }
    Ok(ids)
}

async fn perform(cluster: &mut Cluster<'_>, act: Act, name: &str, ids: &mut Ids, died: &mut bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut heard = false;
    while began.elapsed() < LIMIT {
        *died |= !cluster.revive()?.is_empty();
        if !ids.contains_key(name)
            && let Ok(instance) = cluster.client.instance(name).await
        {
            ids.insert(name.to_owned(), must::text(&instance, "instance_id")?.to_owned());
        }
        if !heard {
            heard = match act {
                Act::Tamper => tamper(cluster, name).await.is_ok(),
                Act::Expire => true,
                Act::Move => {
                    // Its own end may be what it is killed for.
                    *died |= cluster.stop(Who::Coordinator).await.is_err();
                    cluster.set(Who::Coordinator, "CRABSHACK_PUBLIC_URL", OTHER_PUBLIC_URL);
                    cluster.start(Who::Coordinator)?;
                    true
                }
                _ => ask(cluster, act, name).await?,
            };
        } else if is_done(cluster, act, name).await.unwrap_or(false) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("{act:?} of {name} did not come true within {} s", LIMIT.as_secs())
}

/// Repeats what an attempt that failed half-way has done already.
async fn tamper(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<()> {
    let docker = cluster.machine.dockerd.engine();
    let container = container_of(cluster, name).await?;
    let id = container.id.clone().context("no id")?;
    if is_paused(&container) {
        return Ok(());
    }
    let always = ContainerUpdateBody {
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::ALWAYS),
            maximum_retry_count: None,
        }),
        ..ContainerUpdateBody::default()
    };
    docker.update_container(&id, always).await?;
    Ok(docker.pause_container(&id).await?)
}

async fn container_of(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<bollard::models::ContainerInspectResponse> {
    let instance = cluster.client.instance(name).await?;
    engine::container(cluster.machine.dockerd.engine(), must::text(&instance, "instance_id")?).await
}

fn is_paused(container: &bollard::models::ContainerInspectResponse) -> bool {
    container.state.as_ref().and_then(|state| state.paused).unwrap_or(false)
}

/// True when the coordinator has taken the wish; false when it was not there.
async fn ask(cluster: &Cluster<'_>, act: Act, name: &str) -> anyhow::Result<bool> {
    let client = &cluster.client;
    let creation = |image: Option<&str>| {
        let mut body = stub(name);
        if let Some(image) = image {
            body["image"] = image.into();
        }
        client.request(Method::POST, "/instances").body(body.to_string())
    };
    let post = |action: &str| client.request(Method::POST, &format!("/instances/{name}/{action}"));
    let request = match act {
        Act::Create => creation(None),
        Act::CreateAbsent => creation(Some(&format!("{HOST}/{}:{}", ABSENT.0, ABSENT.1))),
        Act::Stop => post("stop"),
        Act::Start => post("start"),
        Act::Restart => post("restart"),
        Act::Limit => client
            .request(Method::PATCH, &format!("/instances/{name}"))
            .body(json!({"mem_limit": "2g"}).to_string()),
        Act::Purge => client.request(Method::DELETE, &format!("/instances/{name}?purge=true")),
        Act::Delete => client.request(Method::DELETE, &format!("/instances/{name}")),
        Act::Tamper | Act::Expire | Act::Move => return Ok(true),
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
        (Act::Create | Act::CreateAbsent, 409, "name_taken") | (Act::Purge | Act::Delete, 404, _) => Ok(true),
        // Its node is not back yet.
        (_, 409, "no_capacity" | "conflict") | (_, 503, _) => Ok(false),
        _ => bail!("{act:?} of {name}: {status} {refusal}"),
    }
}

async fn is_done(cluster: &Cluster<'_>, act: Act, name: &str) -> anyhow::Result<bool> {
    let client = &cluster.client;
    let status = client.status(name).await?;
    let is_ready = async || {
        let instance = client.instance(name).await?;
        anyhow::Ok(instance["status"] == "running" && instance["phase"] == "ready")
    };
    Ok(match act {
        Act::Create | Act::Start | Act::Restart => is_ready().await?,
        Act::CreateAbsent => status.as_deref() == Some("error"),
        Act::Stop => status.as_deref() == Some("stopped"),
        Act::Purge | Act::Delete => status.is_none(),
        Act::Tamper => {
            let container = container_of(cluster, name).await?;
            let policy = container.host_config.as_ref().and_then(|host| host.restart_policy.as_ref());
            let started_by_docker = policy.and_then(|policy| policy.name) == Some(RestartPolicyNameEnum::ALWAYS);
            !is_paused(&container) && !started_by_docker && is_ready().await?
        }
        Act::Limit => {
            let host = container_of(cluster, name).await?.host_config;
            host.and_then(|host| host.memory) == Some(MORE_MEMORY) && is_ready().await?
        }
        Act::Expire => {
            let list = client.get("/instances?deleted=true").await?.success()?;
            list["instances"].as_array().is_some_and(Vec::is_empty)
        }
        Act::Move => {
            let settings = client.get(&format!("/gateway/{name}/managed")).await?.success()?;
            settings.to_string().contains(":3999") && is_ready().await?
        }
    })
}
