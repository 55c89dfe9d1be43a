//! What the recipes have in common.

use std::{collections::BTreeMap, time::Duration};

use crabshack_shared::{
    agent_api::v1::InstanceOrder,
    environment,
    resources::{Bytes, Cpus, Resources},
    secret::Secret,
    services::Profile,
};

use super::{ContainerSpec, Limits, Member, Mount, Published, RecipeInput, SSH_PORT, Stop, Tmpfs};

/// The home of every image's user.
pub(super) const HOME: &str = "/home/agent";
/// sshd ends at once; its sessions end with it.
const SSH_STOP: Stop = Stop {
    signal: "SIGTERM",
    grace: Duration::from_secs(3),
    repeated: false,
};

/// A container with the home and our files, and nothing else yet.
pub(super) fn container(input: &RecipeInput<'_>, member: Member, stop: Stop, limits: Limits) -> ContainerSpec {
    let order = input.order;
    ContainerSpec {
        instance: order.id,
        member,
        profile: order.spec.profile,
        hostname: order.name.clone(),
        image: order.spec.image.clone(),
        environment: BTreeMap::new(),
        // The whole home: the root of the container is read-only and the workload writes dot files.
        mounts: vec![
            Mount {
                source: input.folder.home.clone(),
                target: HOME,
                read_only: false,
            },
            Mount {
                source: input.folder.etc.clone(),
                target: "/etc/crabshack",
                read_only: true,
            },
        ],
        tmpfs: vec![Tmpfs {
            target: "/tmp",
            size: Bytes::mebibytes(256),
        }],
        link: input.link.clone(),
        published: Vec::new(),
        dns: input.service_address,
        stop_signal: stop.signal,
        stop_grace: stop.grace,
        runtime: None,
        limits,
        restarts: order.restarts,
        spec_revision: order.spec_revision,
        generation: order.generation,
        recipe: String::new(),
    }
}

/// The port of the node that leads to the instance's SSH.
pub(super) fn ssh_port(input: &RecipeInput<'_>) -> Published {
    Published {
        container_port: SSH_PORT,
        host_address: input.ssh_bind,
        host_port: input.order.spec.ssh_port,
    }
}

/// Where the image of the agent has no SSH server: one of ours, on the same home. Always held tightly,
/// for the image is our own.
pub(super) fn ssh_container(input: &RecipeInput<'_>) -> ContainerSpec {
    ContainerSpec {
        image: input.ssh_image.clone(),
        profile: Profile::Strict,
        environment: variables([("HOME", HOME), ("TERM", "xterm-256color")]),
        tmpfs: vec![Tmpfs {
            target: "/tmp",
            size: Bytes::mebibytes(64),
        }],
        published: vec![ssh_port(input)],
        ..container(input, Member::Ssh, SSH_STOP, ssh_limits(&input.order.spec.resources))
    }
    .hashed()
}

/// How the container of [`ssh_container`] is run.
pub(super) const SSH: super::MemberRecipe = super::MemberRecipe {
    member: Member::Ssh,
    limits: ssh_limits,
    stop: SSH_STOP,
    container: ssh_container,
};

/// All of it, for an agent that is alone in its instance.
pub(super) fn whole(resources: &Resources) -> Limits {
    Limits {
        memory: resources.memory,
        cpus: resources.cpus,
        pids: 512,
    }
}

/// What is left for the agent beside [`ssh_container`]: together they never use more than is ordered.
pub(super) fn beside_ssh(resources: &Resources) -> Limits {
    let taken = ssh_limits(resources);
    Limits {
        memory: Bytes::new(resources.memory.get() - taken.memory.get()),
        cpus: at_least(resources.cpus.milli().saturating_sub(taken.cpus.milli())),
        pids: 512,
    }
}

/// A quarter, for what people do in their sessions.
fn ssh_limits(resources: &Resources) -> Limits {
    Limits {
        memory: Bytes::new(resources.memory.get() / 4),
        cpus: at_least(resources.cpus.milli() / 4),
        pids: 128,
    }
}

/// Docker gives no less than a hundredth of a processor.
fn at_least(thousandths: u32) -> Cpus {
    Cpus::thousandths(thousandths.max(10))
}

/// Variables that anybody may see.
pub(super) fn variables<const N: usize, T: ToString>(pairs: [(&str, T); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_string())).into()
}

/// What the instance's owner adds, as far as it is nobody else's, and over it what is ours.
pub(super) fn secrets<'a>(
    order: &InstanceOrder,
    public: &BTreeMap<String, String>,
    ours: impl IntoIterator<Item = (&'a str, Secret)>,
) -> BTreeMap<String, Secret> {
    let extra = order.secrets.extra_env.iter();
    let extra = extra.filter(|(key, _)| !environment::is_managed(key) && !public.contains_key(*key));
    let mut all: BTreeMap<String, Secret> = extra.map(|(key, value)| (key.clone(), value.clone())).collect();
    all.extend(ours.into_iter().map(|(key, value)| (key.to_owned(), value)));
    if let Some(key) = &order.spec.ssh_pubkey {
        all.insert("SSH_PUBKEY".to_owned(), Secret::from(key.trim().to_owned()));
    }
    all
}

/// The keys that may log in, as sshd reads them.
pub(super) fn authorized_keys(order: &InstanceOrder) -> Option<String> {
    order.spec.ssh_pubkey.as_deref().map(|key| format!("{}\n", key.trim()))
}
