//! From our spec to Docker's request. Pure. A change here changes no recipe hash: raise
//! `RECIPE_VERSION` in `recipe.rs` with it.

use std::{collections::HashMap, iter};

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Ipam,
    IpamConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType, NetworkCreateRequest, NetworkingConfig,
    PortBinding, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use crabshack_shared::services::Profile;

use super::{AppliedLimits, docker_name, labels, seccomp};
use crate::{link::Link, recipe::ContainerSpec, volume::AGENT};

/// Option of a bridge network: name of its interface.
pub(super) const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// When memory runs out on the node, an instance goes before Docker and ourselves.
const OOM_SCORE_ADJUST: i64 = 500;

/// Weight of an instance's disk requests, where other processes have 100 or 500. Not more: the engine
/// turns it into 51 of cgroup v2's `io.weight`, whose default is 100.
const IO_WEIGHT: u16 = 15;
/// `/dev/shm`: in memory, so it counts against the instance's limit.
const SHARED_MEMORY: i64 = 64 << 20;
/// Open files of one process, where the node's own limit is not lower.
pub(super) const OPEN_FILES: u64 = 65_536;

/// What an image needs that starts as root and becomes its user by itself, with an SSH server in it.
/// Nothing that reaches the node or its network.
pub(crate) const COMPATIBLE_CAPABILITIES: [&str; 8] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "KILL",
    "SETGID",
    "SETUID",
    "SYS_CHROOT",
];

/// Reads the environment that `docker inspect` must not show, then does what the image would do.
const WITH_ENVIRONMENT: &str = r#"while IFS= read -r line || [ -n "$line" ]; do
  case "${line%%=*}" in
    "$line" | '' | [0-9]* | *[!A-Za-z0-9_]*) ;;
    *) export "${line%%=*}=${line#*=}" ;;
  esac
done </etc/crabshack/env
exec "$@""#;

/// Lets an image that knows nothing of our files start with the environment in them.
pub(super) fn bring_environment(body: &mut ContainerCreateBody, entrypoint: Vec<String>, command: Vec<String>) {
    let shell = ["/bin/sh", "-c", WITH_ENVIRONMENT, "crabshack"].map(str::to_owned);
    body.entrypoint = Some(shell.to_vec());
    body.cmd = Some([entrypoint, command].concat());
}

/// What the node offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) io_weight: bool,
    pub(super) swappiness: bool,
    pub(super) open_files: u64,
    /// The engine cannot filter system calls, and makes no container that is to have a filter.
    pub(super) unfiltered: bool,
}

/// What Docker is told of a container's security, one option each.
pub(super) fn security(profile: Profile, unfiltered: bool) -> Vec<String> {
    if profile == Profile::Compatible {
        // Docker's own filter, which knows the capabilities that such an image has.
        return Vec::new();
    }
    let filter = (!unfiltered).then(|| seccomp::option().to_owned());
    iter::once("no-new-privileges".to_owned()).chain(filter).collect()
}

/// The network of a link. Masquerading and filtering are our ruleset's, not Docker's.
pub(super) fn network(link: &Link) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: docker_name(link.instance),
        driver: Some("bridge".to_owned()),
        internal: Some(false),
        attachable: Some(false),
        enable_ipv6: Some(false),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(link.subnet.to_string()),
                gateway: Some(link.gateway.to_string()),
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        }),
        options: Some(map([
            (BRIDGE_NAME, link.bridge.clone()),
            ("com.docker.network.bridge.enable_icc", "false".to_owned()),
            ("com.docker.network.bridge.enable_ip_masquerade", "false".to_owned()),
        ])),
        labels: Some(map([(labels::INSTANCE, link.instance.to_string())])),
        ..NetworkCreateRequest::default()
    }
}

/// The container of a spec, made from this image (a reference or an id).
pub(super) fn container(spec: &ContainerSpec, image: String, options: Options) -> ContainerCreateBody {
    let network = docker_name(spec.instance);
    let is_strict = spec.profile == Profile::Strict;
    let endpoint = EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(spec.link.address_at(spec.member.position()).to_string()),
            ..EndpointIpamConfig::default()
        }),
        ..EndpointSettings::default()
    };
    ContainerCreateBody {
        hostname: Some(spec.hostname.to_string()),
        // Without one: whatever the image says, which starts as root.
        user: is_strict.then(|| format!("{}:{}", AGENT.uid, AGENT.gid)),
        image: Some(image),
        env: Some(spec.environment.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        exposed_ports: Some(spec.published.iter().map(|port| tcp(port.container_port)).collect()),
        labels: Some(labels::of(spec)),
        stop_signal: Some(spec.stop_signal.to_owned()),
        stop_timeout: Some(i64::try_from(spec.stop_grace.as_secs()).unwrap_or(i64::MAX)),
        host_config: Some(host(spec, &network, options)),
        networking_config: Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(network, endpoint)])),
        }),
        ..ContainerCreateBody::default()
    }
}

fn host(spec: &ContainerSpec, network: &str, options: Options) -> HostConfig {
    let limits = AppliedLimits::of(&spec.limits);
    let is_strict = spec.profile == Profile::Strict;
    HostConfig {
        network_mode: Some(network.to_owned()),
        port_bindings: Some(ports(spec)),
        dns: Some(vec![spec.dns.to_string()]),
        // Else the node's own search list would be inherited.
        dns_search: Some(vec![".".to_owned()]),
        mounts: Some(mounts(spec)),
        tmpfs: Some(
            spec.tmpfs
                .iter()
                // Docker's default is `noexec`, which breaks builds and stops nobody: the home is executable.
                .map(|tmpfs| {
                    (
                        tmpfs.target.to_owned(),
                        format!("size={},mode=1777,nosuid,nodev,exec", tmpfs.size),
                    )
                })
                .collect(),
        ),
        memory: Some(limits.memory),
        memory_swap: Some(limits.memory_swap),
        memory_swappiness: options.swappiness.then_some(0),
        // Not NanoCpus, which the engine refuses above the machine's own number.
        cpu_period: Some(limits.cpu_period),
        cpu_quota: Some(limits.cpu_quota),
        pids_limit: Some(limits.pids),
        blkio_weight: options.io_weight.then_some(IO_WEIGHT),
        shm_size: Some(SHARED_MEMORY),
        // No `nproc`: that one counts per user id, and all instances share theirs.
        ulimits: Some(vec![ulimit("core", 0), ulimit("nofile", options.open_files)]),
        oom_score_adj: Some(OOM_SCORE_ADJUST),
        init: Some(true),
        privileged: Some(false),
        readonly_rootfs: Some(is_strict),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: (!is_strict).then(|| COMPATIBLE_CAPABILITIES.map(str::to_owned).to_vec()),
        security_opt: Some(security(spec.profile, options.unfiltered)),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        runtime: spec.runtime.map(str::to_owned),
        // Starting again is the reconciler's decision.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            ..RestartPolicy::default()
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(map([("max-size", "10m".to_owned()), ("max-file", "3".to_owned())])),
        }),
        ..HostConfig::default()
    }
}

fn ulimit(name: &str, limit: u64) -> ResourcesUlimits {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(limit),
        hard: Some(limit),
    }
}

fn ports(spec: &ContainerSpec) -> HashMap<String, Option<Vec<PortBinding>>> {
    spec.published
        .iter()
        .map(|port| {
            let binding = PortBinding {
                host_ip: Some(port.host_address.to_string()),
                host_port: Some(port.host_port.to_string()),
            };
            (tcp(port.container_port), Some(vec![binding]))
        })
        .collect()
}

fn mounts(spec: &ContainerSpec) -> Vec<Mount> {
    spec.mounts
        .iter()
        .map(|mount| Mount {
            source: Some(mount.source.to_string_lossy().into_owned()),
            target: Some(mount.target.to_owned()),
            typ: Some(MountType::BIND),
            read_only: Some(mount.read_only),
            // A bind mount (unlike `Binds`) fails on a missing source instead of making it as root.
            bind_options: Some(MountBindOptions {
                propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
                ..MountBindOptions::default()
            }),
            ..Mount::default()
        })
        .collect()
}

fn tcp(port: u16) -> String {
    format!("{port}/tcp")
}

fn map<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::recipe::openclaw_fixture::{link, order, spec};

    #[test]
    fn body__should_be_as_written_down() {
        let order = order();
        let options = Options {
            io_weight: false,
            swappiness: false,
            open_files: OPEN_FILES,
            unfiltered: false,
        };
        let mut body = container(&spec(&order), order.spec.image.to_string(), options);
        for option in body
            .host_config
            .iter_mut()
            .flat_map(|host| host.security_opt.iter_mut().flatten())
        {
            if let Some(profile) = option.strip_prefix("seccomp=") {
                let digest: String = Sha256::digest(profile).iter().map(|byte| format!("{byte:02x}")).collect();
                *option = format!("seccomp with SHA-256 {digest}");
            }
        }
        let made = serde_json::json!({ "container": body, "network": network(&link(order.id)) });
        let written: serde_json::Value = serde_json::from_str(include_str!("expected.json")).unwrap();
        assert_eq!(made, written, "changed: raise RECIPE_VERSION; made:\n{made:#}");
    }

    #[test]
    fn environment__should_reach_an_image_that_knows_nothing_of_it_literally() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        std::fs::write(
            &file,
            "PLAIN=a b\nODD=$(id) `id` \"x'\\n\n1BAD=x\nBAD-NAME=x\nno line\nLAST=1",
        )
        .unwrap();
        let mut body = ContainerCreateBody::default();
        let entry = ["/bin/sh", "-c", r#"printf '%s|' "$PLAIN" "$ODD" "$LAST" "$@""#, "image"];
        bring_environment(&mut body, entry.map(str::to_owned).to_vec(), vec!["one argument".to_owned()]);
        let words = [body.entrypoint.unwrap(), body.cmd.unwrap()].concat();
        let words = words
            .iter()
            .map(|word| word.replace("/etc/crabshack/env", &file.display().to_string()));
        let words: Vec<String> = words.collect();
        let output = std::process::Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, "a b|$(id) `id` \"x'\\n|1|one argument|");
    }
}
