//! What machine this is, and whether instances can be run on it.

use crabshack_shared::{agent_api::v1::NodeFacts, resources::Bytes};
use sysinfo::System;

use crate::{docker::DockerFacts, images::Images, pressure::Disks, volume::Storage};

/// The oldest Docker that is supported.
const OLDEST_DOCKER: (u32, u32) = (20, 10);

/// Why this machine cannot be a node. Each says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    #[error("Docker {0} is too old: install 20.10 or later")]
    OldDocker(String),
    #[error("rootless Docker is not supported: run Docker as a system service")]
    Rootless,
    #[error("Podman is not supported: install Docker")]
    Podman,
    #[error("Docker's userns-remap is not supported: volumes belong to uid 1000 of the node; remove it from daemon.json")]
    UserNamespaces,
    #[error("SELinux is enforcing, which is not supported: use Debian or Ubuntu, or set it to permissive")]
    Selinux,
}

/// The host's name.
pub(crate) fn hostname() -> String {
    System::host_name().unwrap_or_else(|_| "unnamed".to_owned())
}

/// Gathers what the coordinator should know.
pub(crate) async fn node_facts(
    docker: &DockerFacts,
    data_plane: &str,
    storage: &Storage,
    disks: &Disks,
    images: &Images,
) -> NodeFacts {
    let memory = System::new().map(|mut system| {
        system.refresh_memory();
        system.total_memory()
    });
    NodeFacts {
        hostname: hostname(),
        data_plane: data_plane.to_owned(),
        // A machine that hides its memory gets nothing placed on it.
        memory: Bytes::new(memory.unwrap_or_default()),
        cpus: u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(u32::MAX),
        docker_version: docker.version.clone(),
        architecture: std::env::consts::ARCH.to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtimes: docker.runtimes.clone(),
        warnings: storage
            .warnings()
            .into_iter()
            .chain(disks.warnings())
            .chain(docker.warnings())
            .chain(images.warnings())
            .chain(std::fs::read_to_string("/etc/passwd").ok().and_then(|users| namesake(&users)))
            .collect(),
        storage: Some(storage.facts()),
        pressure: disks.pressure(),
        images: Some(images.held().await),
    }
}

/// Warns of a user of the node who has the instances' uid and so could read their processes.
fn namesake(users: &str) -> Option<String> {
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some("1000")).then_some(name)
    })?;
    Some(format!(
        "the user `{name}` of this node has uid 1000 like every instance and could read their keys: give people another uid"
    ))
}

/// Refuses what is not supported, by name.
pub(crate) fn check(docker: &DockerFacts) -> Result<(), Unsupported> {
    if docker.podman {
        return Err(Unsupported::Podman);
    }
    if docker.rootless {
        return Err(Unsupported::Rootless);
    }
    if docker.userns {
        return Err(Unsupported::UserNamespaces);
    }
    if docker.selinux {
        return Err(Unsupported::Selinux);
    }
    let mut parts = docker.version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let version = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if version < OLDEST_DOCKER {
        Err(Unsupported::OldDocker(docker.version.clone()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namesake__should_be_whoever_has_the_instances_uid() {
        let users = "root:x:0:0:root:/root:/bin/bash\nanna:x:1000:1000::/home/anna:/bin/bash\n";
        assert!(namesake(users).is_some_and(|warning| warning.contains("`anna`")));
        assert_eq!(namesake("root:x:0:1000:root:/root:/bin/bash\nbroken\n"), None);
    }
}
