//! What is there: Docker's containers and networks, the armed links, the volumes and the files.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use crabshack_shared::{agent_api::v1::Desired, ids::InstanceId};

use super::plan::{Container, Observed, Presence, Run, must_be_made_again};
use crate::{
    docker::{ContainerState, DockerError, DockerState},
    egress::{Egress, EgressError},
    files,
    ledger::Entry,
    link::Link,
    node::Node,
    recipe,
    volume::VolumeError,
};

/// Why the node cannot be observed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserveError {
    #[error("Docker cannot be asked")]
    Docker(#[from] DockerError),
    #[error("the ruleset cannot be read")]
    Egress(#[from] EgressError),
    #[error("the volumes cannot be listed")]
    Volumes(#[from] VolumeError),
}

/// Everything at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) instances: BTreeMap<InstanceId, Seen>,
    /// Here, but in no order.
    pub(crate) unknown: BTreeSet<InstanceId>,
}

/// One instance: what decisions need, and what reports add.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) observed: Observed,
    /// Docker's id of the running container.
    pub(crate) running: Option<String>,
    /// When it ended, in Docker's words: tells one ending from the next.
    pub(crate) finished_at: Option<String>,
    pub(crate) image_digest: Option<String>,
    pub(crate) ssh_fingerprint: Option<String>,
}

/// Which bridges are armed: listed from the kernel every period, kept up by arming and disarming in
/// between, since a listing costs as much as arming.
#[derive(Debug, Default)]
pub(crate) struct ArmedCache(Mutex<BTreeSet<String>>);

impl ArmedCache {
    /// Repairs the ruleset and reads what is armed.
    pub(crate) async fn verify(&self, egress: &Egress) -> Result<(), EgressError> {
        if egress.repair().await? {
            tracing::warn!("somebody had changed the egress ruleset or the routing guard; both were put back");
        }
        let armed = egress.armed().await?;
        *self.lock() = armed;
        Ok(())
    }

    /// Notes that a link is armed or not any more.
    pub(crate) fn note(&self, link: &Link, armed: bool) {
        if armed {
            self.lock().insert(link.bridge.clone());
        } else {
            self.lock().remove(&link.bridge);
        }
    }

    fn contains(&self, link: &Link) -> bool {
        self.lock().contains(&link.bridge)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an earlier pass saw under the same order. A running container's files and image are looked at
/// again only when the order or the container is another one, and once a period.
pub(crate) type Earlier = BTreeMap<InstanceId, (Arc<Entry>, Seen)>;

/// Looks at everything once.
pub(crate) async fn observe(
    node: &Node,
    entries: &[Arc<Entry>],
    armed: &ArmedCache,
    earlier: &Earlier,
) -> Result<Snapshot, ObserveError> {
    let docker = node.docker.observe().await?;
    let volumes: BTreeSet<InstanceId> = node.volumes.list().await?.into_iter().collect();
    let mut snapshot = Snapshot::default();
    for entry in entries {
        let earlier = earlier.get(&entry.order.id).filter(|(known, _)| Arc::ptr_eq(known, entry)).map(|(_, seen)| seen);
        let seen = look(node, entry, &docker, &volumes, armed, earlier).await?;
        snapshot.instances.insert(entry.order.id, seen);
    }
    snapshot.unknown = docker.containers.keys().filter(|id| !snapshot.instances.contains_key(id)).copied().collect();
    Ok(snapshot)
}

async fn look(
    node: &Node,
    entry: &Entry,
    docker: &DockerState,
    volumes: &BTreeSet<InstanceId>,
    armed: &ArmedCache,
    earlier: Option<&Seen>,
) -> Result<Seen, ObserveError> {
    let id = entry.order.id;
    let folder = node.folder(entry);
    let network = match docker.networks.get(&id) {
        None => Presence::Absent,
        Some(network) if network.subnet == Some(entry.link.subnet) && network.bridge == entry.link.bridge => Presence::Matches,
        Some(_) => Presence::Differs,
    };
    let mut seen = Seen {
        observed: Observed { volume: volumes.contains(&id), network, armed: armed.contains(&entry.link), ..Observed::default() },
        ..Seen::default()
    };
    if let Some(container) = docker.containers.get(&id) {
        let run = match &container.state {
            ContainerState::Created => Run::Created,
            ContainerState::Running { .. } | ContainerState::Paused => Run::Running,
            ContainerState::Exited { code, oom, .. } => Run::Exited { code: *code, out_of_memory: *oom },
            ContainerState::Removing | ContainerState::Dead => Run::Broken,
        };
        if let ContainerState::Exited { finished_at, .. } = &container.state {
            seen.finished_at = Some(finished_at.to_rfc3339());
        }
        if run == Run::Running {
            seen.running = Some(container.docker_id.clone());
        }
        seen.observed.container = Some(Container {
            docker_id: container.docker_id.clone(),
            generation: container.generation,
            restarts: container.restarts,
            run,
        });
    }
    if let Some(earlier) = earlier.filter(|earlier| earlier.running.is_some() && earlier.running == seen.running) {
        seen.observed.files = earlier.observed.files;
        seen.image_digest.clone_from(&earlier.image_digest);
        seen.ssh_fingerprint.clone_from(&earlier.ssh_fingerprint);
    } else if entry.order.desired == Desired::Running
        && let Some(recipe) = recipe::recipe(&entry.order.spec.service_type)
    {
        seen.observed.files = !files::differs(&folder, &(recipe.files)(&node.recipe_input(entry, &folder)));
        if must_be_made_again(&entry.order, &seen.observed) {
            seen.observed.image = node.docker.image_digest(&entry.order.spec.image).await?.is_some();
        } else {
            seen.image_digest = node.docker.image_digest(&entry.order.spec.image).await?;
            seen.ssh_fingerprint = files::ssh_fingerprint(&folder);
        }
    }
    Ok(seen)
}
