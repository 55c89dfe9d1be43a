//! Version 1. Append fields with `#[serde(default)]`; never rename or remove one.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    generation::Generation,
    ids::{InstanceId, NodeId},
    image::ImageReference,
    instance::{InstanceName, ServiceType},
    resources::{Bytes, Resources},
    secret::Secret,
    services::Profile,
};

/// Everything one node should run. Absence means nothing: an instance that is not listed keeps
/// running and is reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Changes whenever any order of this node changes.
    pub revision: u64,
    /// One order per instance that the coordinator knows on this node.
    pub instances: Vec<InstanceOrder>,
    /// What the node should know of images; none: an older coordinator does not tell.
    #[serde(default)]
    pub images: Option<ImageOrders>,
}

/// What a node should know of images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOrders {
    /// Instances of these may be asked for, so the node keeps them ready.
    #[serde(default)]
    pub allowed: Vec<ImageReference>,
    /// How to log in to registries.
    #[serde(default)]
    pub registries: Vec<RegistryLogin>,
}

/// How to log in to a registry, for pulling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryLogin {
    /// Host, perhaps with a port, as references name it.
    pub host: String,
    /// As whom.
    pub username: String,
    /// What proves it.
    pub password: Secret,
}

/// What should be true of one instance on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceOrder {
    /// The key of everything.
    pub id: InstanceId,
    /// The label.
    pub name: InstanceName,
    /// A node never acts on an order with a lower one than it has seen for this instance.
    pub generation: Generation,
    /// The state to reach.
    pub desired: Desired,
    /// Rank of the generation that last asked for a restart: a container made for a lower one is made again.
    pub restarts: u64,
    /// Rank of the generation of the last change that only a new container takes on: one made for a lower one runs on and is
    /// reported as `pending_change`.
    #[serde(default)]
    pub spec_revision: u64,
    /// What the node does when the coordinator has been away for long.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// What it is.
    pub spec: InstanceSpec,
    /// What must not be printed.
    pub secrets: InstanceSecrets,
}

/// The state to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Desired {
    /// Up and answering.
    Running,
    /// Down, everything kept.
    Stopped,
    /// Another node has it: stop this copy, keep the disk.
    Elsewhere,
    /// Gone.
    Deleted {
        /// The volume too.
        purge: bool,
    },
}

/// What a node does with an instance while it cannot reach the coordinator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum OnDisconnect {
    /// It runs on: the node lives alone.
    #[default]
    Keep,
    /// The node stops it by its own monotonic clock; only then may another node have it without an
    /// operator's word.
    StopAfter {
        /// Since the coordinator last answered.
        seconds: u32,
    },
}

/// What an instance is, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Which recipe.
    pub service_type: ServiceType,
    /// Which image.
    pub image: ImageReference,
    /// Limits.
    pub resources: Resources,
    /// The port of the node that leads to the instance's SSH.
    pub ssh_port: u16,
    /// The key that may log in, in OpenSSH's one-line form; none: nobody.
    pub ssh_pubkey: Option<String>,
    /// Base URL of the model API.
    pub nearai_api_url: String,
    /// How tightly its containers are held.
    #[serde(default)]
    pub profile: Profile,
    /// Scheme, host and port under which browsers see the instance, like `http://agent-1.localhost:3000`.
    pub public_origin: String,
}

/// What an instance needs and nobody else may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSecrets {
    /// Opens the instance's gateway.
    pub token: Secret,
    /// Key of the model API.
    pub nearai_api_key: Secret,
    /// More environment; may hold keys.
    pub extra_env: BTreeMap<String, Secret>,
    /// What an agent that asks for a token is given instead of the instance's: only the gateway and it
    /// know it, and it never changes. None: the instance is older than this.
    #[serde(default)]
    pub workload_token: Option<Secret>,
    /// What the agent seals its user's secrets with: made once, kept for life. None: it seals none.
    #[serde(default)]
    pub master_key: Option<Secret>,
}

impl InstanceSecrets {
    /// The token that the agent itself asks for, where it asks for one.
    pub fn agent_token(&self) -> &Secret {
        self.workload_token.as_ref().unwrap_or(&self.token)
    }
}

/// What a node observes: always everything, so that a lost report costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The highest generation the node has seen. Higher than the coordinator's own: the
    /// coordinator started from an older state.
    pub highest_generation: Generation,
    /// The machine.
    pub facts: NodeFacts,
    /// Every instance the node knows of, ordered or not.
    pub instances: Vec<InstanceReport>,
    /// What happened since the last event that the coordinator acknowledged, oldest first.
    #[serde(default)]
    pub events: Vec<NodeEvent>,
    /// What `doctor` found on the node.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// The coordinator's answer to a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// Every event up to this one is kept: the node may forget them.
    #[serde(default)]
    pub events_kept: u64,
}

/// A change of phase, as the node saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// Rises by one with each event of the node, across restarts of the node agent.
    pub sequence: u64,
    /// The node's clock.
    pub at: DateTime<Utc>,
    /// Whose.
    pub instance: InstanceId,
    /// Where it is from then on.
    pub phase: Phase,
    /// Why, for people.
    pub reason: Option<String>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, like `egress ruleset` or `container limits`.
    pub subject: String,
    /// Of which instance; none: of the node.
    pub instance: Option<InstanceId>,
    /// What is wrong and, when it is not ours to repair, what to do.
    pub text: String,
    /// It was ours and has been put right.
    pub repaired: bool,
}

/// What a node observes of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Which.
    pub id: InstanceId,
    /// Generation of the order that this observation answers; none: never ordered here.
    pub generation: Option<Generation>,
    /// Where it is.
    pub phase: Phase,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// `sha256:...` of the image its container was made from.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// Address on its link.
    #[serde(default)]
    pub address: Option<std::net::Ipv4Addr>,
    /// Fingerprint of its SSH host key, `SHA256:...`.
    #[serde(default)]
    pub ssh_fingerprint: Option<String>,
    /// What its volume holds, in whole MiB; none: the node cannot tell.
    #[serde(default)]
    pub disk_used: Option<Bytes>,
    /// What its volume may hold; none: nothing bounds it.
    #[serde(default)]
    pub disk_limit: Option<Bytes>,
    /// Its container was made from an earlier recipe or specification; the next restart changes that.
    #[serde(default)]
    pub pending_change: bool,
    /// How it last ended, while it is down by itself.
    #[serde(default)]
    pub last_exit: Option<LastExit>,
    /// The port of the node that leads to its SSH; none: it has none, or an older node agent does not
    /// tell.
    #[serde(default)]
    pub ssh_port: Option<u16>,
    /// How far its image has come, while it is being pulled.
    #[serde(default)]
    pub pull: Option<PullProgress>,
}

/// How far an image has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Bytes that are here.
    pub done: u64,
    /// Bytes of the layers that the node knows of by now; grows in the beginning.
    pub total: u64,
}

/// How a container ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// Its exit code.
    pub code: i64,
    /// The kernel ended it at its memory limit.
    pub out_of_memory: bool,
    /// The last lines it printed.
    pub log: String,
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time since the container started, in nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Processors used over the last second, in percent of one.
    pub cpu_percent: f64,
    /// Memory that cannot be given back, in bytes.
    pub memory_used: u64,
    /// Its limit, in bytes.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received on its link.
    pub network_received: u64,
    /// Bytes sent on its link.
    pub network_sent: u64,
    /// Bytes read from disks.
    pub disk_read: u64,
    /// Bytes written to disks.
    pub disk_written: u64,
    /// Size of its volume's content, where the volume can tell.
    pub volume_used: Option<u64>,
    /// The volume's limit, where one is enforced.
    pub volume_limit: Option<u64>,
}

/// Where an instance is on its way to the desired state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its network, volume and container are being made.
    Creating,
    /// Its image is being pulled.
    Pulling,
    /// The container runs and does not answer yet.
    Starting,
    /// It answers.
    Ready,
    /// It answered before and does not now.
    Unhealthy,
    /// It ended by itself and waits for its next start.
    Waiting,
    /// It needs a person: the reason says why.
    Failed,
    /// It is being stopped or removed.
    Stopping,
    /// It is down, as asked.
    Stopped,
    /// Nothing is left of it but perhaps its volume.
    Deleted,
    /// It is here, but was never ordered (or its order was lost): it is left alone.
    Unknown,
}

/// Facts of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its host name.
    pub hostname: String,
    /// Where the coordinator dials the data plane, `host:port`.
    pub data_plane: String,
    /// Memory in all.
    pub memory: Bytes,
    /// Processors.
    pub cpus: u32,
    /// Docker's version.
    pub docker_version: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// The agent's version.
    pub agent_version: String,
    /// Runtimes Docker offers, like `runc`.
    pub runtimes: Vec<String>,
    /// What the node cannot do and people should know.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The disk behind the volumes; none: an older node agent does not tell.
    #[serde(default)]
    pub storage: Option<StorageFacts>,
    /// What the node does not do because its disks are nearly full.
    #[serde(default)]
    pub pressure: Pressure,
    /// Images it has by name, whoever brought them; none: an older node agent does not tell.
    #[serde(default)]
    pub images: Option<Vec<HeldImage>>,
}

/// An image that a node has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldImage {
    /// `repository:tag` as the node's Docker writes it, without the tag when it was pulled by digest.
    pub name: String,
    /// `sha256:...` as its registry knows it; of one that came from none, its id on the node.
    pub digest: String,
    /// It was built or imported on the node: no registry knows it.
    #[serde(default)]
    pub local: bool,
}

/// The disk behind a node's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageFacts {
    /// How volumes are kept.
    pub kind: StorageKind,
    /// Size of the filesystem.
    pub total: Bytes,
    /// What is used of it, by anybody.
    pub used: Bytes,
    /// The sum of the instances' limits, where there are limits.
    #[serde(default)]
    pub promised: Option<Bytes>,
    /// The kernel keeps every volume within its `storage_size`.
    pub promised_limit_enforced: bool,
}

/// How volumes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageKind {
    /// Subvolumes with quotas.
    Btrfs,
    /// Plain folders.
    Directory,
}

/// What a node stops doing while its disks are nearly full. Running instances are left alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pressure {
    /// Nothing: there is room.
    #[default]
    None,
    /// It makes no new instances.
    Creates,
    /// It pulls no images either.
    Pulls,
}

/// Asks for a node's first certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The secret part of the join token.
    pub join_secret: Secret,
    /// Certificate request, PEM; only its public key is used.
    pub request: String,
    /// Host name, for people.
    pub hostname: String,
}

/// A node's first certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// Who the node is from now on.
    pub node: NodeId,
    /// Certificate, PEM.
    pub certificate: String,
}

/// Asks for the next certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate request, PEM; only its public key is used.
    pub request: String,
}

/// The next certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// Certificate, PEM.
    pub certificate: String,
}

/// Lines of an instance's log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Logs {
    /// Standard output and standard error, oldest first.
    pub logs: String,
}
