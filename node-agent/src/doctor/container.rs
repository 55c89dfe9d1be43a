//! Whether a container is held as tightly as it should be: pure.
//!
//! What may never be otherwise is checked whatever recipe the container was made from; what a recipe
//! decides only when it is the recipe of today, since a change of recipe restarts nobody.

use std::path::Path;

use crabshack_shared::{ids::InstanceId, services::Profile};

use crate::{
    docker::{AppliedLimits, COMPATIBLE_CAPABILITIES, Hardening, MountFound, PortFound, docker_name},
    recipe::ContainerSpec,
};

/// What a container should be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) instance: InstanceId,
    /// What the recipe of today makes.
    pub(super) spec: &'a ContainerSpec,
    /// The ordered limits, as far as this Docker can bound them.
    pub(super) limits: AppliedLimits,
    /// How Docker is told today to hold a container.
    pub(super) security: &'a [String],
    /// Everything of the instance on the node's disk.
    pub(super) folder: &'a Path,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drift {
    pub(super) subject: &'static str,
    pub(super) text: String,
    pub(super) cure: Cure,
}

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cure {
    /// The reconciler's next plan.
    Reconcile,
    /// Docker cannot change it in a running container.
    Restart,
}

pub(super) const FLAGS: &str = "container flags";
pub(super) const LIMITS: &str = "container limits";
pub(super) const NETWORK: &str = "container network";
pub(super) const MOUNTS: &str = "container mounts";
pub(super) const PORTS: &str = "published ports";

/// Everything about a running container that is not as it should be.
pub(super) fn compare(expected: &Expected<'_>, found: &Hardening) -> Vec<Drift> {
    let mut drifts = flags(expected.spec.profile, found);
    drifts.extend(filter(expected, found));
    drifts.extend(limits(expected, found));
    drifts.extend(networks(expected, found));
    drifts.extend(found.mounts.iter().filter_map(|mount| foreign(expected, mount)));
    drifts.extend(ports(expected, found));
    drifts
}

fn restart(subject: &'static str, text: impl Into<String>) -> Drift {
    Drift {
        subject,
        text: text.into(),
        cure: Cure::Restart,
    }
}

fn flags(profile: Profile, found: &Hardening) -> Vec<Drift> {
    // One that starts as root is held by what it cannot reach, not by what it cannot become.
    let may_be_root = profile == Profile::Compatible;
    let added: Vec<&str> = found
        .capabilities_added
        .iter()
        .map(|name| name.strip_prefix("CAP_").unwrap_or(name))
        .filter(|name| !(may_be_root && COMPATIBLE_CAPABILITIES.contains(name)))
        .collect();
    let user = found.user.split(':').next().unwrap_or_default();
    let checks = [
        (!found.privileged, "it is privileged".to_owned()),
        (may_be_root || found.read_only_root, "its root is writable".to_owned()),
        (
            found.capabilities_dropped.iter().any(|name| name.eq_ignore_ascii_case("all")),
            "it keeps Docker's default capabilities".to_owned(),
        ),
        (added.is_empty(), format!("it has the capabilities {}", added.join(", "))),
        (
            may_be_root || found.security_options.iter().any(|option| is_no_new_privileges(option)),
            "its processes may gain privileges".to_owned(),
        ),
        (
            !found.security_options.iter().any(|option| is_unconfined(option)),
            "its system calls are not filtered".to_owned(),
        ),
        (
            found.shared_namespaces.is_empty(),
            format!("it shares namespaces: {}", found.shared_namespaces.join(", ")),
        ),
        (found.devices == 0, "it may use devices of the node".to_owned()),
        (
            may_be_root || !matches!(user, "" | "0" | "root"),
            "it runs as root".to_owned(),
        ),
    ];
    let mut drifts: Vec<Drift> = checks
        .into_iter()
        .filter(|(holds, _)| !holds)
        .map(|(_, text)| restart(FLAGS, text))
        .collect();
    if found.restarts_itself {
        drifts.push(Drift {
            subject: FLAGS,
            text: "Docker would start it by itself".to_owned(),
            cure: Cure::Reconcile,
        });
    }
    drifts
}

/// The filter of today belongs to the recipe of today; one of an earlier recipe had that of its day.
fn filter(expected: &Expected<'_>, found: &Hardening) -> Option<Drift> {
    let differs = found.recipe == expected.spec.recipe
        && !found.security_options.iter().any(|option| is_unconfined(option))
        && filters(&found.security_options).ne(filters(expected.security));
    differs.then(|| restart(FLAGS, "its system calls are filtered otherwise than they should be"))
}

fn filters(options: &[String]) -> impl Iterator<Item = &String> {
    options.iter().filter(|option| option.starts_with("seccomp"))
}

fn is_unconfined(option: &str) -> bool {
    option.ends_with("unconfined")
}

fn is_no_new_privileges(option: &str) -> bool {
    option == "no-new-privileges" || option == "no-new-privileges:true"
}

fn limits(expected: &Expected<'_>, found: &Hardening) -> Option<Drift> {
    (found.limits != expected.limits).then(|| Drift {
        subject: LIMITS,
        text: format!(
            "its limits are not as ordered: memory {} instead of {}, processor quota {} instead of {}, processes {} instead of {}",
            found.limits.memory,
            expected.limits.memory,
            found.limits.cpu_quota,
            expected.limits.cpu_quota,
            found.limits.pids,
            expected.limits.pids
        ),
        cure: Cure::Reconcile,
    })
}

fn networks(expected: &Expected<'_>, found: &Hardening) -> Vec<Drift> {
    let own = docker_name(expected.instance);
    let mut drifts: Vec<Drift> = found
        .networks
        .iter()
        .filter(|name| **name != own)
        .map(|name| Drift {
            subject: NETWORK,
            text: format!("it was put into the network `{name}`, past its egress policy"),
            cure: Cure::Reconcile,
        })
        .collect();
    if !found.networks.contains(&own) {
        drifts.push(restart(NETWORK, "it was taken out of its own network"));
    }
    drifts
}

fn foreign(expected: &Expected<'_>, mount: &MountFound) -> Option<Drift> {
    let (source, target) = (mount.source.display(), &mount.target);
    if mount.kind != "bind" || !mount.source.starts_with(expected.folder) {
        return Some(restart(MOUNTS, format!("{source} of the node is mounted at {target}")));
    }
    let known = expected
        .spec
        .mounts
        .iter()
        .find(|known| known.source == mount.source && known.target == mount.target);
    let writable = mount.writable && known.is_none_or(|known| known.read_only);
    writable.then(|| restart(MOUNTS, format!("it may write to {source} (mounted at {target})")))
}

fn ports(expected: &Expected<'_>, found: &Hardening) -> Vec<Drift> {
    let mut drifts: Vec<Drift> = found
        .wanted_ports
        .difference(&found.ports)
        .map(|lost| restart(PORTS, format!("port {} of the node no longer leads to it", lost.port)))
        .collect();
    let allowed = |port: &&PortFound| {
        expected.spec.published.iter().any(|known| {
            let same_place = known.host_port == port.port && Some(known.host_address) == port.address;
            same_place && port.inside == format!("{}/tcp", known.container_port)
        })
    };
    // One of an earlier recipe may publish as that one said.
    if found.recipe == expected.spec.recipe {
        let extra = found.wanted_ports.union(&found.ports).filter(|port| !allowed(port));
        drifts.extend(extra.map(|port| {
            restart(
                PORTS,
                format!(
                    "port {} of the node leads to its {}, which nobody ordered",
                    port.port, port.inside
                ),
            )
        }));
    }
    drifts
}

#[cfg(test)]
mod tests;
