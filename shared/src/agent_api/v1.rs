//! Version 1. Append fields with `#[serde(default)]`; never rename or remove one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    generation::Generation,
    ids::{InstanceId, NodeId},
    image::ImageReference,
    instance::{InstanceName, ServiceType},
    resources::{Bytes, Resources},
    secret::Secret,
};

/// Everything one node should run. Absence means nothing: an instance that is not listed keeps
/// running and is reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Changes whenever any order of this node changes.
    pub revision: u64,
    /// One order per instance that the coordinator knows on this node.
    pub instances: Vec<InstanceOrder>,
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
    /// Counts asked restarts: a container made for a lower count is made again.
    pub restarts: u64,
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
