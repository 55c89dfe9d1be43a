//! How tightly a container is held, as Docker has it: what the doctor compares.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use bollard::models::{
    ContainerInspectResponse, ContainerUpdateBody, NetworkDisconnectRequest, RestartPolicy, RestartPolicyNameEnum,
};
use crabshack_shared::ids::InstanceId;

use super::{AppliedLimits, Docker, DockerError, NORMAL, container_name, docker_name, error::status, labels};
use crate::recipe::Member;

/// A running container's bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hardening {
    /// Hash of the recipe it was made from.
    pub(crate) recipe: String,
    /// User and group it runs as.
    pub(crate) user: String,
    pub(crate) privileged: bool,
    pub(crate) read_only_root: bool,
    pub(crate) capabilities_added: Vec<String>,
    pub(crate) capabilities_dropped: Vec<String>,
    pub(crate) security_options: Vec<String>,
    /// Namespaces that it shares with the node or with another container, like `pid host`.
    pub(crate) shared_namespaces: Vec<String>,
    /// Devices, device rules and whole classes of devices.
    pub(crate) devices: usize,
    pub(crate) limits: AppliedLimits,
    /// Docker would start it by itself.
    pub(crate) restarts_itself: bool,
    /// Networks it is in.
    pub(crate) networks: BTreeSet<String>,
    pub(crate) mounts: Vec<MountFound>,
    /// What it was made to publish.
    pub(crate) wanted_ports: BTreeSet<PortFound>,
    /// What it does publish.
    pub(crate) ports: BTreeSet<PortFound>,
}

/// A folder of the node in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountFound {
    /// Like `bind`.
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) writable: bool,
}

/// A port of the node that leads into a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortFound {
    /// Like `2222/tcp`.
    pub(crate) inside: String,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

impl Docker {
    /// How a container of an instance is held; none: it has none that runs.
    pub(crate) async fn hardening(&self, instance: InstanceId, member: Member) -> Result<Option<Hardening>, DockerError> {
        let found = self.inspect(&container_name(instance, member)).await?;
        let runs = |found: &ContainerInspectResponse| found.state.as_ref().and_then(|state| state.running).unwrap_or(false);
        Ok(found.filter(runs).map(|found| read(&found)))
    }

    /// Takes a container out of networks that are not its own, and makes Docker leave every start to us.
    /// Nothing in it is restarted. Idempotent.
    pub(crate) async fn confine(&self, instance: InstanceId, member: Member) -> Result<(), DockerError> {
        let Some(found) = self.inspect(&container_name(instance, member)).await? else {
            return Err(DockerError::NoSuchContainer { instance });
        };
        let held = read(&found);
        for network in held.other_networks(instance) {
            self.leave_network(container_name(instance, member), network).await?;
        }
        if held.restarts_itself {
            self.forbid_restarts(container_name(instance, member)).await?;
        }
        self.forget(|known| known == instance);
        Ok(())
    }

    async fn leave_network(&self, container: String, network: &str) -> Result<(), DockerError> {
        let request = NetworkDisconnectRequest {
            container,
            force: Some(true),
        };
        let result = self
            .call(
                NORMAL,
                |client| async move { client.disconnect_network(network, request).await },
            )
            .await;
        match result {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(DockerError::of("take the container out of a network", error)),
        }
    }

    async fn forbid_restarts(&self, container: String) -> Result<(), DockerError> {
        let body = ContainerUpdateBody {
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                ..RestartPolicy::default()
            }),
            ..ContainerUpdateBody::default()
        };
        let result = self
            .call(
                NORMAL,
                |client| async move { client.update_container(&container, body).await },
            )
            .await;
        result.map_err(|error| DockerError::of("change the container's restart policy", error))
    }
}

impl Hardening {
    /// Networks that it was put into beside its own. One that is not even in its own was made otherwise,
    /// and only making it again helps.
    fn other_networks(&self, instance: InstanceId) -> Vec<&String> {
        let own = docker_name(instance);
        let has_own = self.networks.contains(&own);
        self.networks.iter().filter(|name| has_own && **name != own).collect()
    }
}

/// Whether a container is in no network but its own and is started by nobody but us.
pub(super) fn is_confined(found: &ContainerInspectResponse, instance: InstanceId) -> bool {
    let held = read(found);
    !held.restarts_itself && held.other_networks(instance).is_empty()
}

fn read(found: &ContainerInspectResponse) -> Hardening {
    let config = found.config.as_ref();
    let Some(host) = found.host_config.as_ref() else {
        return Hardening::default();
    };
    let settings = found.network_settings.as_ref();
    let labels = config.and_then(|config| config.labels.as_ref());
    let restart = host.restart_policy.as_ref().and_then(|policy| policy.name);
    Hardening {
        recipe: labels::made_from(labels).recipe,
        user: config.and_then(|config| config.user.clone()).unwrap_or_default(),
        privileged: host.privileged.unwrap_or_default(),
        read_only_root: host.readonly_rootfs.unwrap_or_default(),
        capabilities_added: host.cap_add.clone().unwrap_or_default(),
        capabilities_dropped: host.cap_drop.clone().unwrap_or_default(),
        security_options: host.security_opt.clone().unwrap_or_default(),
        shared_namespaces: shared_namespaces(host),
        devices: host.devices.as_ref().map_or(0, Vec::len)
            + host.device_cgroup_rules.as_ref().map_or(0, Vec::len)
            + host.device_requests.as_ref().map_or(0, Vec::len),
        limits: AppliedLimits::read(Some(host)),
        restarts_itself: !matches!(restart, None | Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY)),
        networks: settings
            .and_then(|settings| settings.networks.as_ref())
            .map(|networks| networks.keys().cloned().collect())
            .unwrap_or_default(),
        mounts: found.mounts.iter().flatten().filter_map(mount).collect(),
        wanted_ports: ports(host.port_bindings.as_ref()),
        ports: ports(settings.and_then(|settings| settings.ports.as_ref())),
    }
}

fn shared_namespaces(host: &bollard::models::HostConfig) -> Vec<String> {
    let cgroup = host.cgroupns_mode.map(|mode| mode.to_string());
    [
        ("network", host.network_mode.as_ref()),
        ("pid", host.pid_mode.as_ref()),
        ("ipc", host.ipc_mode.as_ref()),
        ("uts", host.uts_mode.as_ref()),
        ("user", host.userns_mode.as_ref()),
        ("cgroup", cgroup.as_ref()),
    ]
    .into_iter()
    .filter_map(|(name, mode)| Some((name, mode?)))
    .filter(|(_, mode)| *mode == "host" || mode.starts_with("container:"))
    .map(|(name, mode)| format!("{name} {mode}"))
    .collect()
}

/// None: it is in memory, so nothing of the node's.
fn mount(found: &bollard::models::MountPoint) -> Option<MountFound> {
    if found.typ.as_deref() == Some("tmpfs") {
        return None;
    }
    Some(MountFound {
        kind: found.typ.clone().unwrap_or_default(),
        source: found.source.clone().unwrap_or_default().into(),
        target: found.destination.clone().unwrap_or_default(),
        writable: found.rw.unwrap_or(true),
    })
}

fn ports(bindings: Option<&bollard::models::PortMap>) -> BTreeSet<PortFound> {
    let bindings = bindings.into_iter().flatten();
    bindings
        .flat_map(|(inside, bindings)| bindings.iter().flatten().map(move |binding| (inside, binding)))
        .map(|(inside, binding)| PortFound {
            inside: inside.clone(),
            address: binding.host_ip.as_ref().and_then(|address| address.parse().ok()),
            port: binding
                .host_port
                .as_ref()
                .and_then(|port| port.parse().ok())
                .unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening__should_be_read_from_dockers_record() {
        let text = r#"{"State":{"Running":true},
            "Config":{"User":"1000:1000","Labels":{"crabshack.recipe":"ab"}},
            "HostConfig":{"ReadonlyRootfs":true,"CapDrop":["ALL"],"SecurityOpt":["no-new-privileges"],"Memory":7,"PidsLimit":9,
                "NetworkMode":"cs-x","PidMode":"host","IpcMode":"private","CgroupnsMode":"private","RestartPolicy":{"Name":"always"},
                "PortBindings":{"2222/tcp":[{"HostIp":"127.0.0.1","HostPort":"19001"}]}},
            "Mounts":[{"Type":"bind","Source":"/a","Destination":"/b","RW":false},{"Type":"tmpfs","Destination":"/tmp","RW":true}],
            "NetworkSettings":{"Networks":{"cs-x":{},"bridge":{}},"Ports":{"2222/tcp":[{"HostIp":"127.0.0.1","HostPort":"19001"}],"80/tcp":null}}}"#;
        let found = read(&serde_json::from_str(text).unwrap());
        assert_eq!((found.user.as_str(), found.recipe.as_str()), ("1000:1000", "ab"));
        assert!(found.read_only_root && !found.privileged && found.restarts_itself);
        assert_eq!(found.shared_namespaces, ["pid host"]);
        assert_eq!((found.limits.memory, found.limits.pids, found.devices), (7, 9, 0));
        assert_eq!(found.networks.len(), 2);
        assert_eq!(found.mounts.len(), 1);
        assert_eq!(found.ports, found.wanted_ports);
        assert_eq!(found.ports.first().unwrap().port, 19001);
    }

    #[test]
    fn confinement__should_end_with_another_network_or_restarts_by_docker() {
        let id = InstanceId::random();
        let own = docker_name(id);
        let confined = |networks: &str, restarts: &str| {
            let text = format!(
                r#"{{"HostConfig":{{"RestartPolicy":{{"Name":"{restarts}"}}}},"NetworkSettings":{{"Networks":{{{networks}}}}}}}"#
            );
            is_confined(&serde_json::from_str(&text).unwrap(), id)
        };
        let alone = format!(r#""{own}":{{}}"#);
        assert!(confined(&alone, "no") && confined("", "no"));
        assert!(!confined(&alone, "always"));
        assert!(!confined(&format!(r#"{alone},"bridge":{{}}"#), "no"));
        assert!(confined(r#""host":{}"#, "no"), "it cannot leave the node's own network");
    }
}
