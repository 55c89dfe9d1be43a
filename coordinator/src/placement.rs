//! Where an instance runs. One trait; the embedded placement serves one machine or a handful.

pub(crate) mod choose;
mod embedded;

use crabshack_shared::{ids::NodeId, resources::Resources};

pub(crate) use embedded::Embedded;

use crate::{
    agents::registry::Registry,
    service_types,
    store::{InstanceRecord, NodeRecord},
};

/// What an instance takes from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// Bytes that are reserved.
    pub(crate) memory: u64,
    /// Processors in thousandths: a node must have so many, but they are shared.
    pub(crate) cpus: u32,
}

impl Need {
    /// What a service with these limits takes: its limit, and never less than it needs to start.
    pub(crate) fn of(service_type: &crabshack_shared::instance::ServiceType, resources: &Resources) -> Self {
        let minimum = service_types::minimum_memory(service_type).get();
        Self {
            memory: resources.memory.get().max(minimum),
            cpus: resources.cpus.milli(),
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
}

/// Nobody has room: what would be needed, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error("no node is connected")]
    NoNode,
    #[error("no node has {} of unreserved memory", mebibytes(*.0))]
    Memory(u64),
    #[error("no node has {} processors", f64::from(*.0) / 1000.0)]
    Processors(u32),
}

/// Decides where instances run.
pub(crate) trait Placement: Send + Sync {
    /// Chooses a node and reserves what is needed on it among the candidates.
    fn choose(&self, candidates: &mut [Candidate], need: Need) -> Result<NodeId, NoRoom>;
}

/// The nodes that may take instances: not revoked, alive, known machines.
pub(crate) fn candidates(nodes: &[NodeRecord], records: &[InstanceRecord], registry: &Registry) -> Vec<Candidate> {
    nodes
        .iter()
        .filter(|node| !node.revoked && registry.is_alive(&node.id))
        .filter_map(|node| {
            let facts = node.facts.as_ref()?;
            Some(Candidate {
                node: node.id.clone(),
                memory: facts.memory.get(),
                reserved: reserved(&node.id, records),
                cpus: facts.cpus.saturating_mul(1000),
            })
        })
        .collect()
}

/// What instances reserve on a node, also those that are not gone yet.
pub(crate) fn reserved(node: &NodeId, records: &[InstanceRecord]) -> u64 {
    records
        .iter()
        .filter(|record| record.assignment.as_ref() == Some(node))
        .map(|record| Need::of(&record.spec.service_type, &record.spec.resources).memory)
        .fold(0, u64::saturating_add)
}

/// Gives those that wait for a node their place among the candidates, oldest first: what
/// is left is what a newcomer can have.
pub(crate) fn seat_waiting(
    placement: &dyn Placement,
    candidates: &mut [Candidate],
    records: &[InstanceRecord],
) -> Vec<(crabshack_shared::ids::InstanceId, Result<NodeId, NoRoom>)> {
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
