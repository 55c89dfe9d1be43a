//! What a service type needs to run, as data: from an order to a container and its files. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use crabshack_shared::{
    agent_api::v1::{InstanceOrder, InstanceSpec},
    generation::Generation,
    ids::InstanceId,
    image::ImageReference,
    instance::InstanceName,
    resources::{Bytes, Cpus, Resources},
    secret::Secret,
    services::{Profile, Service},
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{link::Link, volume::InstanceFolder};

mod ironclaw;
mod openclaw;
mod parts;

#[cfg(test)]
pub(crate) use openclaw::tests as openclaw_fixture;

/// Raise it when a container must be made differently though its spec is the same: whatever
/// `docker/body.rs` adds on its own is covered by this number only.
///
/// The feature stands for a later product in the tests of upgrades.
const RECIPE_VERSION: u32 = if cfg!(feature = "changed-recipe") { u32::MAX } else { 3 };

/// The port on which an instance's sshd listens.
pub(crate) const SSH_PORT: u16 = 2222;

/// A container of an instance, by what it is for. Most instances have the main one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Member {
    /// The agent.
    Main,
    /// Its SSH server, where the agent's image has none.
    Ssh,
}

impl Member {
    pub(crate) const ALL: [Self; 2] = [Self::Main, Self::Ssh];

    /// Its name in labels and to people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Ssh => "ssh",
        }
    }

    pub(crate) fn is_main(&self) -> bool {
        *self == Self::Main
    }

    /// The position of its address on the link.
    pub(crate) fn position(self) -> u32 {
        match self {
            Self::Main => 0,
            Self::Ssh => 1,
        }
    }
}

/// Every recipe there is.
static RECIPES: [Recipe; 5] = [
    openclaw::STRICT,
    openclaw::COMPATIBLE,
    ironclaw::STRICT,
    ironclaw::COMPATIBLE,
    ironclaw::WITH_DOCKER,
];

/// The recipe of an instance; none: this node does not know its service type in that profile.
pub(crate) fn recipe(spec: &InstanceSpec) -> Option<&'static Recipe> {
    RECIPES
        .iter()
        .find(|recipe| recipe.service.name == spec.service_type.as_str() && recipe.profile == spec.profile)
}

/// The containers that an instance has; of a service type that is not known, all that there can be.
pub(crate) fn members(spec: &InstanceSpec) -> Vec<Member> {
    match recipe(spec) {
        Some(recipe) => recipe.members.iter().map(|recipe| recipe.member).collect(),
        None => Member::ALL.to_vec(),
    }
}

/// Why this node does not run such an instance, whoever asks; none: it does.
pub(crate) fn refusal(spec: &InstanceSpec) -> Option<String> {
    let Some(recipe) = recipe(spec) else {
        return Some(format!(
            "this node knows no recipe for the service type `{}` in the profile `{}`: update its node agent",
            spec.service_type,
            spec.profile.name()
        ));
    };
    let (memory, minimum) = (spec.resources.memory, recipe.service.minimum_memory);
    (memory < minimum).then(|| {
        format!(
            "mem_limit {memory} is too little for `{}`: it needs {minimum}",
            spec.service_type
        )
    })
}

/// How one service type is run.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// What the coordinator knows of it too.
    pub(crate) service: Service,
    /// How tightly its images can be held.
    pub(crate) profile: Profile,
    /// Run in the container after its managed settings changed; exit code 0 is success. Empty: it has
    /// no managed settings.
    pub(crate) reconfigure: &'static [&'static str],
    /// Exit codes of the main container that a further start would only repeat.
    pub(crate) never_restart_exit: &'static [i64],
    /// The containers to make, the main one first.
    pub(crate) members: &'static [MemberRecipe],
    /// The files to put beside it.
    pub(crate) files: fn(&RecipeInput<'_>) -> Files,
}

impl Recipe {
    /// How one container is made; none: instances of this type have no such container.
    pub(crate) fn member(&self, member: Member) -> Option<&'static MemberRecipe> {
        self.members.iter().find(|recipe| recipe.member == member)
    }
}

/// How one container of an instance is run.
#[derive(Debug)]
pub(crate) struct MemberRecipe {
    pub(crate) member: Member,
    /// Its part of what the instance may use.
    pub(crate) limits: fn(&Resources) -> Limits,
    /// How it is asked to end.
    pub(crate) stop: Stop,
    /// The container to make.
    pub(crate) container: fn(&RecipeInput<'_>) -> ContainerSpec,
}

/// How a container is asked to end, before it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) signal: &'static str,
    /// How long it may take.
    pub(crate) grace: Duration,
    /// It misses signals while it is busy, so it gets one every second.
    pub(crate) repeated: bool,
}

/// What a container may use. Changes while it runs, so it is no part of the recipe's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Without swap on top.
    pub(crate) memory: Bytes,
    /// Processor time.
    pub(crate) cpus: Cpus,
    /// Processes and threads.
    pub(crate) pids: i64,
}

/// What a recipe is applied to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecipeInput<'a> {
    /// What is asked for.
    pub(crate) order: &'a InstanceOrder,
    /// The instance's own network.
    pub(crate) link: &'a Link,
    /// Where its volume and files are.
    pub(crate) folder: &'a InstanceFolder,
    /// The one address of the node that it may talk to; resolves names.
    pub(crate) service_address: Ipv4Addr,
    /// The node's address on which its SSH port is published.
    pub(crate) ssh_bind: IpAddr,
    /// The SSH server of instances whose agent has none.
    pub(crate) ssh_image: &'a ImageReference,
}

/// A container to make, without any secret: all of this is readable by whoever may talk to Docker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ContainerSpec {
    /// Whose.
    pub(crate) instance: InstanceId,
    /// Which of its containers.
    #[serde(skip_serializing_if = "Member::is_main")]
    pub(crate) member: Member,
    /// How tightly it is held.
    #[serde(skip_serializing_if = "is_strict")]
    pub(crate) profile: Profile,
    /// Host name inside.
    pub(crate) hostname: InstanceName,
    /// What it is made from.
    pub(crate) image: ImageReference,
    /// Environment; never secrets, those are in [`Files`].
    pub(crate) environment: BTreeMap<String, String>,
    /// Folders of the node.
    pub(crate) mounts: Vec<Mount>,
    /// Folders in memory.
    pub(crate) tmpfs: Vec<Tmpfs>,
    /// Its network and address.
    pub(crate) link: Link,
    /// Ports that the node forwards.
    pub(crate) published: Vec<Published>,
    /// Resolves names.
    pub(crate) dns: Ipv4Addr,
    /// Asks the instance to end.
    pub(crate) stop_signal: &'static str,
    /// How long it may take when somebody else stops it (dockerd going down).
    pub(crate) stop_grace: Duration,
    /// Docker's runtime; none: its default.
    pub(crate) runtime: Option<&'static str>,
    /// What it may use at first.
    #[serde(skip)]
    pub(crate) limits: Limits,
    /// The asked restarts that led to this container.
    #[serde(skip)]
    pub(crate) restarts: u64,
    /// Revision of the specification that led to this container.
    #[serde(skip)]
    pub(crate) spec_revision: u64,
    /// Generation of the order that led to this container.
    #[serde(skip)]
    pub(crate) generation: Generation,
    /// Hash of everything above but what is skipped: differs when the next container is another one.
    #[serde(skip)]
    pub(crate) recipe: String,
}

impl ContainerSpec {
    /// The same with its recipe hash filled in.
    fn hashed(mut self) -> Self {
        // Strings, numbers and maps with string keys always serialise; the fallback never runs.
        let text = serde_json::to_string(&self).unwrap_or_default();
        let digest = Sha256::digest(format!("{RECIPE_VERSION}\n{text}"));
        // 64 bits tell two recipes of one instance apart and stay readable in `docker ps`.
        self.recipe = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self
    }
}

fn is_strict(profile: &Profile) -> bool {
    *profile == Profile::Strict
}

/// A folder of the node inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Mount {
    /// On the node.
    pub(crate) source: PathBuf,
    /// In the container.
    pub(crate) target: &'static str,
    /// The instance may not write.
    pub(crate) read_only: bool,
}

/// A folder in memory, which counts against the instance's limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Tmpfs {
    /// In the container.
    pub(crate) target: &'static str,
    /// Most it can hold.
    pub(crate) size: Bytes,
}

/// A TCP port that the node forwards to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Published {
    /// In the container.
    pub(crate) container_port: u16,
    /// The node's address.
    pub(crate) host_address: IpAddr,
    /// The node's port.
    pub(crate) host_port: u16,
}

/// What stands in `/etc/crabshack` of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    /// Settings that win over the workload's own.
    pub(crate) managed: serde_json::Value,
    /// Environment that must not be seen in `docker inspect`.
    pub(crate) environment: BTreeMap<String, Secret>,
    /// Keys that may log in, one per line; none: nobody.
    pub(crate) authorized_keys: Option<String>,
    /// Whether the instance runs sshd.
    pub(crate) ssh: bool,
}
