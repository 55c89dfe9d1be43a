//! Where an instance runs. One trait; the embedded placement serves one machine or a handful.

pub(crate) mod choose;
mod embedded;

use crabshack_shared::{
    agent_api::v1::Pressure,
    ids::{InstanceId, NodeId},
    resources::Resources,
    services,
};

pub(crate) use embedded::Embedded;

use crate::{
    agents::registry::Registry,
    service_types,
    store::{InstanceRecord, NodeRecord},
};

/// What an instance takes from a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Bytes that are reserved.
    pub(crate) memory: u64,
    /// Processors in thousandths: a node must have so many, but they are shared.
    pub(crate) cpus: u32,
    /// Bytes of disk that are promised.
    pub(crate) storage: u64,
    /// A runtime that the node's Docker must offer.
    pub(crate) runtime: Option<&'static str>,
}

impl Need {
    /// What a service with these limits takes: its limit, and never less than it needs to start.
    pub(crate) fn of(service_type: &crabshack_shared::instance::ServiceType, resources: &Resources) -> Self {
        let minimum = service_types::minimum_memory(service_type).get();
        Self {
            memory: resources.memory.get().max(minimum),
            cpus: resources.cpus.milli(),
            storage: resources.storage.get(),
            runtime: services::service(service_type).and_then(|service| service.runtime),
        }
    }

    /// What must be looked for when one thing becomes another: only what grows.
    pub(crate) fn growth(before: Self, after: Self) -> Self {
        let grown = |before: u64, after: u64| if after > before { after } else { 0 };
        Self {
            memory: grown(before.memory, after.memory),
            cpus: if after.cpus > before.cpus { after.cpus } else { 0 },
            storage: grown(before.storage, after.storage),
            // It is on a node that has it.
            runtime: None,
        }
    }
}

/// A node that may take instances, and what is taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node: NodeId,
    /// Bytes it has.
    pub(crate) memory: u64,
    /// Bytes that are reserved.
    pub(crate) reserved: u64,
    /// Processors in thousandths.
    pub(crate) cpus: u32,
    /// Bytes of disk; none: promises of disk are not kept there, so they are not counted.
    pub(crate) storage: Option<u64>,
    /// Bytes of disk that are promised.
    pub(crate) promised: u64,
    /// Its disks are nearly full: it makes nothing new.
    pub(crate) pressed: bool,
    /// Runtimes that its Docker offers.
    pub(crate) runtimes: Vec<String>,
}

impl Candidate {
    /// A node as a place for instances; none before its first report. `claims` are those of all
    /// instances, and of disks whose instance is gone.
    pub(crate) fn of<'a>(node: &NodeRecord, claims: impl Iterator<Item = &'a InstanceRecord>) -> Option<Self> {
        let facts = node.facts.as_ref()?;
        let taken = taken(&node.id, claims);
        Some(Self {
            node: node.id.clone(),
            memory: facts.memory.get(),
            reserved: taken.memory,
            cpus: facts.cpus.saturating_mul(1000),
            storage: facts
                .storage
                .as_ref()
                .filter(|storage| storage.promised_limit_enforced)
                .map(|storage| storage.total.get()),
            promised: taken.storage,
            pressed: facts.pressure != Pressure::None,
            runtimes: facts.runtimes.clone(),
        })
    }
}

/// Nobody has room: what would be needed, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error("no node is connected")]
    NoNode,
    #[error("no node that is connected has the Docker runtime `{0}`: install it on one, then restart its Docker")]
    Runtime(&'static str),
    #[error("the disks of every node that is connected are nearly full")]
    Pressed,
    #[error("no node has {} of unreserved memory", mebibytes(*.0))]
    Memory(u64),
    #[error("no node has {} processors", f64::from(*.0) / 1000.0)]
    Processors(u32),
    #[error("no node has {} of storage that is not promised", mebibytes(*.0))]
    Storage(u64),
}

impl NoRoom {
    /// The same about the one node that an instance is on.
    pub(crate) fn on_its_node(&self) -> String {
        match self {
            Self::NoNode => "its node is not connected".to_owned(),
            Self::Runtime(name) => format!("its node does not have the Docker runtime `{name}`"),
            Self::Pressed => "the disks of its node are nearly full".to_owned(),
            Self::Memory(bytes) => format!("its node does not have {} of unreserved memory", mebibytes(*bytes)),
            Self::Processors(count) => format!("its node does not have {} processors", f64::from(*count) / 1000.0),
            Self::Storage(bytes) => format!("its node does not have {} of storage that is not promised", mebibytes(*bytes)),
        }
    }
}

/// Decides where instances run.
pub(crate) trait Placement: Send + Sync {
    /// Chooses a node and reserves what is needed on it among the candidates.
    fn choose(&self, candidates: &mut [Candidate], need: Need) -> Result<NodeId, NoRoom>;
}

/// The nodes that may take instances: not revoked, alive, known machines.
pub(crate) fn candidates(nodes: &[NodeRecord], claims: &[InstanceRecord], registry: &Registry) -> Vec<Candidate> {
    nodes
        .iter()
        .filter(|node| !node.revoked && registry.is_alive(&node.id))
        .filter_map(|node| Candidate::of(node, claims.iter()))
        .collect()
}

/// What instances take from a node, also those that are not gone yet. Of some only the disk is left.
pub(crate) fn taken<'a>(node: &NodeId, claims: impl Iterator<Item = &'a InstanceRecord>) -> Need {
    claims
        .filter(|record| record.assignment.as_ref() == Some(node))
        .fold(Need::default(), |sum, record| {
            let need = Need::of(&record.spec.service_type, &record.spec.resources);
            let memory = if record.disk_only { 0 } else { need.memory };
            Need {
                memory: sum.memory.saturating_add(memory),
                cpus: 0,
                runtime: None,
                storage: sum.storage.saturating_add(need.storage),
            }
        })
}

/// Whether the node that an instance is on has room for a need that replaces the instance's own.
pub(crate) fn fits(
    placement: &dyn Placement,
    node: &NodeRecord,
    claims: &[InstanceRecord],
    instance: InstanceId,
    need: Need,
) -> Result<(), NoRoom> {
    let others = claims.iter().filter(|record| record.id != instance);
    // A node that never reported promises nothing and refuses nothing.
    let Some(mut candidate) = Candidate::of(node, others) else {
        return Ok(());
    };
    // What is there already is nothing new.
    candidate.pressed = false;
    placement.choose(&mut [candidate], need).map(drop)
}

/// Gives those that wait for a node their place among the candidates, oldest first: what
/// is left is what a newcomer can have.
pub(crate) fn seat_waiting(
    placement: &dyn Placement,
    candidates: &mut [Candidate],
    records: &[InstanceRecord],
) -> Vec<(InstanceId, Result<NodeId, NoRoom>)> {
    let mut waiting: Vec<&InstanceRecord> = records
        .iter()
        .filter(|record| record.assignment.is_none() && record.is_living())
        .collect();
    waiting.sort_by_key(|record| record.generation);
    waiting
        .into_iter()
        .map(|record| {
            let need = Need::of(&record.spec.service_type, &record.spec.resources);
            (record.id, placement.choose(candidates, need))
        })
        .collect()
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
