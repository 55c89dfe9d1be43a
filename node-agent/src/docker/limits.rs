//! What a container may use: read from Docker, and changed while it runs.

use bollard::models::{ContainerUpdateBody, HostConfig};
use crabshack_shared::ids::InstanceId;

use super::{Docker, DockerError, NORMAL, container_name, error::status};
use crate::recipe::{Limits, Member};

/// Docker measures CPU time in slices of 100 ms.
const CPU_PERIOD_MICROSECONDS: i64 = 100_000;

/// Limits in Docker's units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AppliedLimits {
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes, memory included: the same number means no swap.
    pub(crate) memory_swap: i64,
    /// Microseconds.
    pub(crate) cpu_period: i64,
    /// Microseconds per period.
    pub(crate) cpu_quota: i64,
    /// Processes and threads.
    pub(crate) pids: i64,
}

/// What an engine can bound: of the rest it warns, and leaves it out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) memory: bool,
    pub(crate) swap: bool,
    pub(crate) cpu: bool,
    pub(crate) pids: bool,
}

impl Bounds {
    /// In words, for people.
    pub(super) fn missing(self) -> Vec<&'static str> {
        let all = [
            (self.memory, "memory"),
            (self.swap, "swap"),
            (self.cpu, "processor time"),
            (self.pids, "processes"),
        ];
        all.into_iter().filter_map(|(has, name)| (!has).then_some(name)).collect()
    }
}

impl AppliedLimits {
    /// What remains of them in an engine that cannot bound everything.
    fn within(self, bounds: Bounds) -> Self {
        Self {
            memory: if bounds.memory { self.memory } else { 0 },
            memory_swap: if bounds.memory && bounds.swap { self.memory_swap } else { -1 },
            cpu_period: if bounds.cpu { self.cpu_period } else { 0 },
            cpu_quota: if bounds.cpu { self.cpu_quota } else { 0 },
            pids: if bounds.pids { self.pids } else { 0 },
        }
    }

    /// As the recipe wants them.
    pub(crate) fn of(limits: &Limits) -> Self {
        // In range: parsed sizes fit into signed 64 bits.
        let memory = i64::try_from(limits.memory.get()).unwrap_or(i64::MAX);
        Self {
            memory,
            memory_swap: memory,
            cpu_period: CPU_PERIOD_MICROSECONDS,
            cpu_quota: i64::from(limits.cpus.milli()) * CPU_PERIOD_MICROSECONDS / 1000,
            pids: limits.pids,
        }
    }

    /// As a container has them. What Docker does not say reads as 0, which is nobody's limit.
    pub(super) fn read(host: Option<&HostConfig>) -> Self {
        let get = |field: fn(&HostConfig) -> Option<i64>| host.and_then(field).unwrap_or_default();
        Self {
            memory: get(|host| host.memory),
            memory_swap: get(|host| host.memory_swap),
            cpu_period: get(|host| host.cpu_period),
            cpu_quota: get(|host| host.cpu_quota),
            pids: get(|host| host.pids_limit),
        }
    }
}

impl Docker {
    /// How a container that was given these limits looks here.
    pub(crate) fn applied(&self, limits: &Limits) -> AppliedLimits {
        AppliedLimits::of(limits).within(self.abilities().bounds)
    }

    /// Gives the container other limits, running or not; nothing in it is restarted. Idempotent.
    pub(crate) async fn update_limits(&self, instance: InstanceId, member: Member, limits: &Limits) -> Result<(), DockerError> {
        let limits = AppliedLimits::of(limits);
        let body = ContainerUpdateBody {
            memory: Some(limits.memory),
            memory_swap: Some(limits.memory_swap),
            cpu_period: Some(limits.cpu_period),
            cpu_quota: Some(limits.cpu_quota),
            pids_limit: Some(limits.pids),
            ..ContainerUpdateBody::default()
        };
        let result = self
            .call(NORMAL, |client| async move {
                client.update_container(&container_name(instance, member), body).await
            })
            .await;
        self.forget(|known| known == instance);
        result.map_err(|error| match status(&error) {
            Some(404) => DockerError::NoSuchContainer { instance },
            _ => DockerError::of("change the container's limits", error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits__should_read_from_docker_as_they_were_given() {
        let limits = Limits {
            memory: "2g".parse().unwrap(),
            cpus: "1.5".parse().unwrap(),
            pids: 512,
        };
        let host = r#"{"Memory":2147483648,"MemorySwap":2147483648,"CpuPeriod":100000,"CpuQuota":150000,"PidsLimit":512}"#;
        assert_eq!(
            AppliedLimits::read(Some(&serde_json::from_str(host).unwrap())),
            AppliedLimits::of(&limits)
        );
        assert_eq!(AppliedLimits::read(None), AppliedLimits::default());
        let no_swap = Bounds {
            memory: true,
            swap: false,
            cpu: true,
            pids: true,
        };
        let applied = AppliedLimits::of(&limits).within(no_swap);
        assert_eq!(
            (applied.memory, applied.memory_swap),
            (2 << 30, -1),
            "else it would be set again for ever"
        );
    }
}
