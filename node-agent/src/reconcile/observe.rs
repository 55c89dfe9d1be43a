//! What is there: Docker's containers and networks, the armed links, the volumes and the files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use crabshack_shared::{
    agent_api::v1::{Desired, LastExit},
    ids::InstanceId,
    image::ImageReference,
    telemetry::Chain,
};

use super::plan::{Container, LimitsState, Observed, Part, Presence, Run, is_stale, must_be_made_again};
use crate::{
    docker::{self, ContainerState, DockerError, DockerState},
    egress::{Egress, EgressError},
    files,
    ledger::Entry,
    link::Link,
    logs,
    node::Node,
    recipe::{self, Member},
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
    /// Docker's id of the main container while it runs.
    pub(crate) running: Option<String>,
    /// How that one ended, while it is down by itself.
    pub(crate) last_exit: Option<LastExit>,
    pub(crate) image_digest: Option<String>,
    pub(crate) ssh_fingerprint: Option<String>,
}

impl Seen {
    /// Nothing was to be done about its files: what was seen of them may be taken for seen again.
    fn is_settled(&self) -> bool {
        self.observed.files && self.observed.told
    }

    /// The containers that run; none: not all that it has do.
    fn all_running(&self) -> Option<Vec<&str>> {
        let parts = self.observed.parts.iter();
        parts
            .map(|part| {
                let container = part.container.as_ref()?;
                container.run.is_up().then_some(container.docker_id.as_str())
            })
            .collect()
    }
}

/// Which bridges are armed: listed from the kernel every period, kept up by arming and disarming in
/// between, since a listing costs as much as arming.
#[derive(Debug, Default)]
pub(crate) struct ArmedCache(Mutex<Armed>);

/// By bridge, the addresses that may speak there.
type Bridges = BTreeMap<String, BTreeSet<Ipv4Addr>>;

#[derive(Debug, Default)]
struct Armed {
    bridges: Bridges,
    /// What was noted since the last listing began: it may be newer than the listing. No address: disarmed.
    noted: Bridges,
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
    async fn replaced<E>(&self, list: impl AsyncFnOnce() -> Result<Bridges, E>) -> Result<(), E> {
        self.lock().noted.clear();
        let listed = list().await?;
        let mut armed = self.lock();
        armed.bridges = listed;
        for (bridge, addresses) in std::mem::take(&mut armed.noted) {
            armed.set(bridge, addresses);
        }
        Ok(())
    }

    /// Notes that a link is armed or not any more.
    pub(crate) fn note(&self, link: &Link, armed: bool) {
        let mut known = self.lock();
        let addresses: BTreeSet<Ipv4Addr> = link.addresses().filter(|_| armed).collect();
        known.noted.insert(link.bridge.clone(), addresses.clone());
        known.set(link.bridge.clone(), addresses);
    }

    fn contains(&self, link: &Link) -> bool {
        let known = self.lock();
        let addresses = known.bridges.get(&link.bridge);
        addresses.is_some_and(|addresses| link.addresses().all(|address| addresses.contains(&address)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Armed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Armed {
    fn set(&mut self, bridge: String, addresses: BTreeSet<Ipv4Addr>) {
        if addresses.is_empty() {
            self.bridges.remove(&bridge);
        } else {
            self.bridges.insert(bridge, addresses);
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
        .filter(|((id, _), _)| !snapshot.instances.contains_key(id))
        .fold(BTreeMap::new(), |mut unknown, ((id, _), container)| {
            let port: &mut Option<u16> = unknown.entry(*id).or_default();
            *port = port.or(container.published);
            unknown
        });
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
    let recipe = recipe::recipe(&entry.order.spec);
    let network = match docker.networks.get(&id) {
        // Docker died while it made or removed it. Made over that bridge, it would take it for somebody
        // else's and leave it behind, and the next link of these addresses would lead nowhere.
        None if node.egress.has_bridge(&entry.link) => Presence::Differs,
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
    for member in Member::ALL {
        let wanted = recipe.is_none_or(|recipe| recipe.member(member).is_some());
        let found = docker.containers.get(&(id, member));
        let container = match found {
            Some(found) => Some(container(node, entry, found, earlier).await),
            None => None,
        };
        if container.is_some() || recipe.is_some() && wanted {
            let image = false;
            seen.observed.parts.push(Part {
                member,
                wanted,
                image,
                container,
            });
        }
    }
    let running = seen.observed.main().filter(|container| container.run.is_up());
    seen.running = running.map(|container| container.docker_id.clone());
    let same = |earlier: &&Seen| {
        let running = earlier.all_running();
        earlier.is_settled() && running.is_some() && running == seen.all_running()
    };
    if let Some(earlier) = earlier.filter(same).filter(|_| !memory.in_full) {
        seen.observed.files = earlier.observed.files;
        seen.observed.told = earlier.observed.told;
        for (part, before) in seen.observed.parts.iter_mut().zip(&earlier.observed.parts) {
            let pending = before.container.as_ref().is_some_and(|container| container.pending);
            part.container.iter_mut().for_each(|container| container.pending = pending);
        }
        seen.image_digest.clone_from(&earlier.image_digest);
        seen.ssh_fingerprint.clone_from(&earlier.ssh_fingerprint);
    } else if entry.order.desired == Desired::Running
        && let Some(recipe) = recipe
    {
        let input = node.recipe_input(entry, &folder);
        let wanted = (recipe.files)(&input);
        seen.observed.files = !files::differs(&folder, &wanted);
        seen.observed.told = files::is_told(&folder, &wanted);
        for member in recipe.members {
            let spec = (member.container)(&input);
            let made = docker.containers.get(&(id, member.member));
            let pending = made.is_some_and(|made| made.spec_revision < entry.order.spec_revision || made.recipe != spec.recipe);
            let digest = images.digest(node, &spec.image).await?;
            let Some(at) = seen.observed.parts.iter().position(|part| part.member == member.member) else {
                continue;
            };
            if let Some(container) = &mut seen.observed.parts[at].container {
                container.pending = pending;
            }
            let stale = is_stale(&entry.order, &seen.observed, seen.observed.parts[at].container.as_ref());
            seen.observed.parts[at].image = stale && digest.is_some();
            if !stale && member.member.is_main() {
                seen.image_digest = digest;
            }
        }
        if !must_be_made_again(&entry.order, &seen.observed) {
            seen.ssh_fingerprint = files::ssh_fingerprint(&folder);
            seen.last_exit = last_exit(node, entry, &seen, earlier).await;
        }
    }
    Ok(seen)
}

/// A container of Docker's, as far as decisions need it.
async fn container(node: &Node, entry: &Entry, found: &docker::Container, earlier: Option<&Seen>) -> Container {
    let run = match &found.state {
        ContainerState::Created => Run::Created,
        ContainerState::Running { .. } => Run::Running,
        ContainerState::Paused => Run::Paused,
        ContainerState::Exited { code, oom, .. } => Run::Exited {
            code: *code,
            out_of_memory: *oom && *code == KILLED,
        },
        ContainerState::Removing | ContainerState::Dead => Run::Broken,
    };
    Container {
        docker_id: found.docker_id.clone(),
        finished_at: match &found.state {
            ContainerState::Exited { finished_at, .. } => Some(finished_at.to_rfc3339()),
            _ => None,
        },
        generation: found.generation,
        restarts: found.restarts,
        limits: limits(node, entry, found, &run, earlier).await,
        run,
        confined: found.confined,
        pending: false,
    }
}

/// Compares what the container may use with the order. What it uses now is asked only when that matters.
async fn limits(node: &Node, entry: &Entry, container: &docker::Container, run: &Run, earlier: Option<&Seen>) -> LimitsState {
    let recipe = recipe::recipe(&entry.order.spec);
    let Some(recipe) = recipe.and_then(|recipe| recipe.member(container.member)) else {
        return LimitsState::Match;
    };
    let ordered = (recipe.limits)(&entry.order.spec.resources);
    let wanted = node.docker.applied(&ordered);
    if wanted == container.limits {
        return LimitsState::Match;
    }
    if !run.is_up() || wanted.memory >= container.limits.memory {
        return LimitsState::Differ;
    }
    let used = match node.docker.usage(entry.order.id, container.member).await {
        Ok(usage) => usage.map_or(0, |usage| usage.memory_used),
        Err(error) => {
            tracing::warn!(instance = %entry.order.id, error = %Chain(&error), "its memory cannot be looked at, so its limits wait");
            return LimitsState::Match;
        }
    };
    if used < ordered.memory.get() {
        return LimitsState::Differ;
    }
    // The number of the first refusal stays, so that not every breath of it is a change to report.
    let known = earlier.and_then(|earlier| {
        let mut parts = earlier.observed.parts.iter();
        parts.find(|part| part.member == container.member)?.container.as_ref()
    });
    match known.map(|known| known.limits) {
        Some(known @ LimitsState::TooLow { .. }) => known,
        _ => LimitsState::TooLow { used },
    }
}

/// How the container ended, with the end of its log, which is read once per ending.
async fn last_exit(node: &Node, entry: &Entry, seen: &Seen, earlier: Option<&Seen>) -> Option<LastExit> {
    let container = seen.observed.main()?;
    let Run::Exited { code, out_of_memory } = container.run else {
        return None;
    };
    let same = |earlier: &&Seen| {
        let then = earlier.observed.main();
        then.is_some_and(|then| then.docker_id == container.docker_id && then.finished_at == container.finished_at)
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
        let listed = [&disarmed_late, &stays].map(|link| (link.bridge.clone(), link.addresses().collect()));
        let list = async || {
            cache.note(&armed_late, true);
            cache.note(&disarmed_late, false);
            Ok::<_, EgressError>(BTreeMap::from(listed.clone()))
        };
        cache.replaced(list).await?;
        let known = [&armed_late, &disarmed_late, &gone, &stays].map(|link| cache.contains(link));
        assert_eq!(known, [true, false, false, true]);
        // What was noted counts once: the next listing is newer.
        cache.replaced(async || Ok::<_, EgressError>(BTreeMap::new())).await?;
        assert!(!cache.contains(&armed_late));
        cache.note(&stays, true);
        assert!(
            !cache.contains(&stays.shared_by([0, 1])),
            "armed before it had a second container"
        );
        Ok(())
    }
}
