//! Nodes: who may speak to us, and what machine it is.

use chrono::{DateTime, Utc};
use crabshack_shared::{agent_api::v1::NodeFacts, ids::NodeId};
use serde::{Deserialize, Serialize};

use super::{Snapshot, Source, StoreError, Writing, tables};
use crate::app::NodeDial;

/// One node. A revoked one stays, so that its certificate stays refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub(crate) id: NodeId,
    /// What it called itself when it enrolled; its facts know better.
    pub(crate) hostname: String,
    /// None until its first report.
    pub(crate) facts: Option<NodeFacts>,
    pub(crate) revoked: bool,
    pub(crate) enrolled_at: DateTime<Utc>,
    /// Serial of its last certificate in hex; none: issued by an earlier store.
    pub(crate) certificate_serial: Option<String>,
}

impl NodeRecord {
    /// How to reach its data plane; none for a revoked or silent one.
    pub(crate) fn dial(&self) -> Option<NodeDial> {
        match &self.facts {
            Some(facts) if !self.revoked => Some(NodeDial {
                id: self.id.clone(),
                address: facts.data_plane.clone(),
            }),
            _ => None,
        }
    }

    /// The machine's name.
    pub(crate) fn hostname(&self) -> &str {
        self.facts.as_ref().map_or(&self.hostname, |facts| &facts.hostname)
    }
}

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// One node.
    pub(crate) fn node(&self, id: &NodeId) -> Result<Option<NodeRecord>, StoreError> {
        self.record(tables::NODES, id.as_str())
    }

    /// All nodes, by id.
    pub(crate) fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        let mut all = Vec::new();
        self.each_record(tables::NODES, |record| all.push(record))?;
        Ok(all)
    }
}

impl Writing {
    /// Writes a new or changed node.
    pub(crate) fn put_node(&self, node: &NodeRecord) -> Result<(), StoreError> {
        self.put(tables::NODES, node.id.as_str(), node)
    }
}
