//! What nodes last said of instances. Written only when it changed.

use crabshack_shared::{
    agent_api::v1::{InstanceReport, Phase},
    ids::{InstanceId, NodeId},
};
use serde::{Deserialize, Serialize};

use super::{Snapshot, Source, StoreError, Writing, tables};

/// The observed state of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Observation {
    /// Who said so.
    pub(crate) node: NodeId,
    pub(crate) report: InstanceReport,
    /// True once it has ever answered.
    pub(crate) ready_once: bool,
}

impl Observation {
    /// What follows from a new report, given what was known before.
    pub(crate) fn after(previous: Option<&Self>, node: &NodeId, report: InstanceReport) -> Self {
        Self {
            node: node.clone(),
            ready_once: report.phase == Phase::Ready || previous.is_some_and(|previous| previous.ready_once),
            report,
        }
    }
}

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// What was last said of an instance.
    pub(crate) fn observation(&self, id: InstanceId) -> Result<Option<Observation>, StoreError> {
        self.record(tables::OBSERVATIONS, &id.to_string())
    }
}

impl Writing {
    /// Writes down what was said of an instance.
    pub(crate) fn put_observation(&self, observation: &Observation) -> Result<(), StoreError> {
        self.put(tables::OBSERVATIONS, &observation.report.id.to_string(), observation)
    }

    /// Forgets what was said of an instance: another node has it now.
    pub(crate) fn drop_observation(&self, id: InstanceId) -> Result<(), StoreError> {
        self.take_out(tables::OBSERVATIONS, &id.to_string()).map(drop)
    }
}
