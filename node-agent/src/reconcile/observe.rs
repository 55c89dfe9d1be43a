//! What is there: Docker's containers and networks, the armed links, the volumes and the files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use crabshack_shared::{
    agent_api::v1::{Desired, LastExit},
    ids::InstanceId,
    image::ImageReference,
    telemetry::Chain,
};

use super::plan::{Container, LimitsState, Observed, Presence, Run, must_be_made_again};
use crate::{
    docker::{self, ContainerState, DockerError, DockerState},
    egress::{Egress, EgressError},
    files,
    ledger::Entry,
    link::Link,
    logs,
    node::Node,
    recipe,
    volume::{Volume, VolumeError},
};

/// Exit code of a process that the kernel killed, as an init hands it on.
const KILLED: i64 = 137;

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
    /// Here, but in no order; with the port of the node that each keeps for its SSH.
    pub(crate) unknown: BTreeMap<InstanceId, Option<u16>>,
}

/// One instance: what decisions need, and what reports add.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) observed: Observed,
    /// Docker's id of the running container.
    pub(crate) running: Option<String>,
    /// When it ended, in Docker's words: tells one ending from the next.
    pub(crate) finished_at: Option<String>,
    /// How it ended, while it is down by itself.
    pub(crate) last_exit: Option<LastExit>,
    pub(crate) image_digest: Option<String>,
    pub(crate) ssh_fingerprint: Option<String>,
}

impl Seen {
    /// Nothing was to be done about its files: what was seen of them may be taken for seen again.
    fn is_settled(&self) -> bool {
        self.observed.files && self.observed.told
    }
}

/// Which bridges are armed: listed from the kernel every period, kept up by arming and disarming in
/// between, since a listing costs as much as arming.
#[derive(Debug, Default)]
pub(crate) struct ArmedCache(Mutex<Armed>);

#[derive(Debug, Default)]
struct Armed {
    bridges: BTreeSet<String>,
    /// What was noted since the last listing began: it may be newer than the listing.
    noted: BTreeMap<String, bool>,
}

impl ArmedCache {
    /// Repairs the ruleset and reads what is armed.
    pub(crate) async fn verify(&self, egress: &Egress) -> Result<(), EgressError> {
        if egress.repair().await? {
            tracing::warn!("somebody had changed the egress ruleset or the routing guard; both were put back");
        }
        self.replaced(|| egress.armed()).await
    }

    /// Takes over a listing, except for links that were noted while it was made.
    async fn replaced<E>(&self, list: impl AsyncFnOnce() -> Result<BTreeSet<String>, E>) -> Result<(), E> {
        self.lock().noted.clear();
        let listed = list().await?;
        let mut armed = self.lock();
        armed.bridges = listed;
        for (bridge, is_armed) in std::mem::take(&mut armed.noted) {
            armed.set(bridge, is_armed);
        }
        Ok(())
    }

    /// Notes that a link is armed or not any more.
    pub(crate) fn note(&self, link: &Link, armed: bool) {
        let mut known = self.lock();
        known.noted.insert(link.bridge.clone(), armed);
        known.set(link.bridge.clone(), armed);
    }

    fn contains(&self, link: &Link) -> bool {
        self.lock().bridges.contains(&link.bridge)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Armed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Armed {
    fn set(&mut self, bridge: String, armed: bool) {
        if armed {
            self.bridges.insert(bridge);
        } else {
            self.bridges.remove(&bridge);
        }
    }
}

/// What an earlier pass saw under the same order. A running container's files and image are looked at
/// again only when the order or the container is another one, and when it is its turn.
pub(crate) type Earlier = BTreeMap<InstanceId, (Arc<Entry>, Seen)>;

/// What is remembered of an instance, and whether that may be taken for seen.
#[derive(Clone, Copy)]
struct Memory<'a> {
    earlier: Option<&'a Seen>,
    in_full: bool,
}

/// Looks at everything once; at these instances in full, at others as far as something has changed.
pub(crate) async fn observe(
    node: &Node,
    entries: &[Arc<Entry>],
    armed: &ArmedCache,
    earlier: &Earlier,
    in_full: &BTreeSet<InstanceId>,
) -> Result<Snapshot, ObserveError> {
    let docker = node.docker.observe().await?;
    let volumes = node.volumes.list().await?;
    let pressure = node.disks.pressure();
    let mut images = Images::default();
    let mut snapshot = Snapshot::default();
    for entry in entries {
        let earlier = earlier
            .get(&entry.order.id)
            .filter(|(known, _)| Arc::ptr_eq(known, entry))
            .map(|(_, seen)| seen);
        let memory = Memory {
            earlier,
            in_full: in_full.contains(&entry.order.id),
        };
        let mut seen = look(node, entry, &docker, volumes.get(&entry.order.id), armed, memory, &mut images).await?;
        seen.observed.pressure = pressure;
        snapshot.instances.insert(entry.order.id, seen);
    }
    snapshot.unknown = docker
        .containers
        .iter()
        .filter(|(id, _)| !snapshot.instances.contains_key(id))
        .map(|(id, container)| (*id, container.published))
        .collect();
    Ok(snapshot)
}

async fn look(
    node: &Node,
    entry: &Entry,
    docker: &DockerState,
    volume: Option<&Volume>,
    armed: &ArmedCache,
    memory: Memory<'_>,
    images: &mut Images,
) -> Result<Seen, ObserveError> {
    let (id, earlier) = (entry.order.id, memory.earlier);
    let folder = node.folder(entry);
    let network = match docker.networks.get(&id) {
        None => Presence::Absent,
        Some(network) if network.subnet == Some(entry.link.subnet) && network.bridge == entry.link.bridge => Presence::Matches,
        Some(_) => Presence::Differs,
    };
    let mut seen = Seen {
        observed: Observed {
            volume: volume.cloned(),
            network,
            armed: armed.contains(&entry.link),
            ..Observed::default()
        },
        ..Seen::default()
    };
    if let Some(container) = docker.containers.get(&id) {
        let run = match &container.state {
            ContainerState::Created => Run::Created,
            ContainerState::Running { .. } => Run::Running,
            ContainerState::Paused => Run::Paused,
            ContainerState::Exited { code, oom, .. } => Run::Exited {
                code: *code,
                out_of_memory: *oom && *code == KILLED,
            },
            ContainerState::Removing | ContainerState::Dead => Run::Broken,
        };
        if let ContainerState::Exited { finished_at, .. } = &container.state {
            seen.finished_at = Some(finished_at.to_rfc3339());
        }
        if run.is_up() {
            seen.running = Some(container.docker_id.clone());
        }
        seen.observed.container = Some(Container {
            docker_id: container.docker_id.clone(),
            generation: container.generation,
            restarts: container.restarts,
            limits: limits(node, entry, container, &run, earlier).await,
            run,
            confined: container.confined,
            pending: false,
        });
    }
    let same = |earlier: &&Seen| earlier.is_settled() && earlier.running.is_some() && earlier.running == seen.running;
    if let Some(earlier) = earlier.filter(same).filter(|_| !memory.in_full) {
        seen.observed.files = earlier.observed.files;
        seen.observed.told = earlier.observed.told;
        let pending = earlier.observed.container.as_ref().is_some_and(|container| container.pending);
        seen.observed
            .container
            .iter_mut()
            .for_each(|container| container.pending = pending);
        seen.image_digest.clone_from(&earlier.image_digest);
        seen.ssh_fingerprint.clone_from(&earlier.ssh_fingerprint);
    } else if entry.order.desired == Desired::Running
        && let Some(recipe) = recipe::recipe(&entry.order.spec.service_type)
    {
        let input = node.recipe_input(entry, &folder);
        let wanted = (recipe.files)(&input);
        seen.observed.files = !files::differs(&folder, &wanted);
        seen.observed.told = files::is_told(&folder, &wanted);
        if let (Some(made), Some(container)) = (docker.containers.get(&id), &mut seen.observed.container) {
            container.pending =
                made.spec_revision < entry.order.spec_revision || made.recipe != (recipe.container)(&input).recipe;
        }
        let digest = images.digest(node, &entry.order.spec.image).await?;
        if must_be_made_again(&entry.order, &seen.observed) {
            seen.observed.image = digest.is_some();
        } else {
            seen.image_digest = digest;
            seen.ssh_fingerprint = files::ssh_fingerprint(&folder);
            seen.last_exit = last_exit(node, entry, &seen, earlier).await;
        }
    }
    Ok(seen)
}

/// Compares what the container may use with the order. What it uses now is asked only when that matters.
async fn limits(node: &Node, entry: &Entry, container: &docker::Container, run: &Run, earlier: Option<&Seen>) -> LimitsState {
    let Some(recipe) = recipe::recipe(&entry.order.spec.service_type) else {
        return LimitsState::Match;
    };
    let wanted = node.docker.applied(&recipe.limits(&entry.order.spec));
    if wanted == container.limits {
        return LimitsState::Match;
    }
    if !run.is_up() || wanted.memory >= container.limits.memory {
        return LimitsState::Differ;
    }
    let used = match node.docker.usage(entry.order.id).await {
        Ok(usage) => usage.map_or(0, |usage| usage.memory_used),
        Err(error) => {
            tracing::warn!(instance = %entry.order.id, error = %Chain(&error), "its memory cannot be looked at, so its limits wait");
            return LimitsState::Match;
        }
    };
    if used < entry.order.spec.resources.memory.get() {
        return LimitsState::Differ;
    }
    // The number of the first refusal stays, so that not every breath of it is a change to report.
    match earlier
        .and_then(|earlier| earlier.observed.container.as_ref())
        .map(|container| container.limits)
    {
        Some(known @ LimitsState::TooLow { .. }) => known,
        _ => LimitsState::TooLow { used },
    }
}

/// How the container ended, with the end of its log, which is read once per ending.
async fn last_exit(node: &Node, entry: &Entry, seen: &Seen, earlier: Option<&Seen>) -> Option<LastExit> {
    let container = seen.observed.container.as_ref()?;
    let Run::Exited { code, out_of_memory } = container.run else {
        return None;
    };
    let same = |earlier: &&Seen| {
        let container_then = earlier.observed.container.as_ref().map(|container| &container.docker_id);
        container_then == Some(&container.docker_id) && earlier.finished_at == seen.finished_at
    };
    if let Some(known) = earlier.filter(same).and_then(|earlier| earlier.last_exit.clone()) {
        return Some(known);
    }
    Some(LastExit {
        code,
        out_of_memory,
        log: logs::ending(&node.docker, entry.order.id).await,
    })
}

/// Images that were looked up in this pass: many instances share one.
#[derive(Default)]
struct Images(HashMap<ImageReference, Option<String>>);

impl Images {
    async fn digest(&mut self, node: &Node, image: &ImageReference) -> Result<Option<String>, DockerError> {
        if let Some(known) = self.0.get(image) {
            return Ok(known.clone());
        }
        let digest = node.docker.image_digest(image).await?;
        self.0.insert(image.clone(), digest.clone());
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Pool;

    #[tokio::test]
    async fn armed__should_keep_what_was_noted_while_the_kernel_was_listed() -> anyhow::Result<()> {
        let pool = Pool::new("10.201.0.0/16".parse()?)?;
        let link = |index| pool.link(InstanceId::random(), index);
        let (armed_late, disarmed_late, gone, stays) = (link(1)?, link(2)?, link(3)?, link(4)?);
        let cache = ArmedCache::default();
        cache.note(&gone, true);
        let listed = [&disarmed_late, &stays].map(|link| link.bridge.clone());
        let list = async || {
            cache.note(&armed_late, true);
            cache.note(&disarmed_late, false);
            Ok::<_, EgressError>(BTreeSet::from(listed.clone()))
        };
        cache.replaced(list).await?;
        let known = [&armed_late, &disarmed_late, &gone, &stays].map(|link| cache.contains(link));
        assert_eq!(known, [true, false, false, true]);
        // What was noted counts once: the next listing is newer.
        cache.replaced(async || Ok::<_, EgressError>(BTreeSet::new())).await?;
        assert!(!cache.contains(&armed_late));
        Ok(())
    }
}
