//! `/nodes`: the machines, as operators see them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    agent_api::v1::{Finding, Pressure, StorageFacts},
    ids::{InstanceId, NodeId},
    instance::InstanceName,
    resources::Bytes,
    secret::Secret,
};

/// Whether a node can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// It reports.
    Active,
    /// It does not.
    Down,
    /// It was thrown out, and instances are still recorded on it.
    Revoked,
}

/// One element of `GET /nodes`, whose answer is a bare array.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node<Instances = usize> {
    /// The key.
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Where operators log in.
    pub ssh_host: String,
    /// Its port.
    pub ssh_port: u16,
    /// As whom.
    pub ssh_user: String,
    /// Whether it can be used.
    pub status: NodeStatus,
    /// Always `local` where placement is embedded.
    pub datacenter: String,
    /// True while nothing new may be placed on it.
    pub drain: bool,
    /// True when Docker there offers `sysbox-runc`.
    pub sysbox_available: bool,
    /// Memory in bytes; null until its first report.
    pub memory: Option<Bytes>,
    /// What instances reserve of it, in bytes.
    pub reserved_memory: Bytes,
    /// Processors.
    pub cpus: Option<u32>,
    /// Docker's version.
    pub docker_version: Option<String>,
    /// `x86_64` or `aarch64`.
    pub architecture: Option<String>,
    /// The node agent's version.
    pub agent_version: Option<String>,
    /// The instances that are assigned to it: in the list their number.
    pub instances: Instances,
    /// The disk behind its volumes; null until it tells.
    pub storage: Option<StorageFacts>,
    /// What instances reserve of its disk, in bytes; deleted ones too until their disk is removed.
    pub reserved_storage: Bytes,
    /// What it does not do because its disks are nearly full.
    pub pressure: Pressure,
    /// What runs there without our knowing it: left alone.
    pub unknown_instances: Vec<InstanceId>,
    /// When it was last heard of by this coordinator.
    pub last_seen: Option<DateTime<Utc>>,
    /// When it enrolled.
    pub enrolled_at: DateTime<Utc>,
    /// What it cannot do and people should know.
    pub warnings: Vec<String>,
}

/// Answer of `GET /nodes/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeDetails {
    /// What the list says too, with the instances themselves instead of their number.
    #[serde(flatten)]
    pub node: Node<Vec<NodeInstance>>,
    /// What `doctor` last found there.
    pub findings: Vec<Finding>,
}

/// An instance of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInstance {
    /// The key.
    pub id: InstanceId,
    /// The label.
    pub name: InstanceName,
    /// Where it is on its way, in one word.
    pub phase: String,
    /// True while something that was changed waits for its next restart.
    pub pending_change: bool,
}

/// Answer of `POST /nodes/join-token`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinTokenAnswer {
    /// Lets one node enrol, once.
    pub token: Secret,
    /// Until then.
    pub expires_at: DateTime<Utc>,
}
