//! What a container uses, in one question without waiting.

use std::collections::HashMap;

use bollard::{models::ContainerStatsResponse, query_parameters::StatsOptionsBuilder};
use crabshack_shared::ids::InstanceId;
use futures_util::TryStreamExt as _;

use super::{Docker, DockerError, NORMAL, container_name, error::status};
use crate::recipe::Member;

/// What a running container uses now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Docker's id of the container.
    pub(crate) docker_id: String,
    /// Processor time since its start, in nanoseconds.
    pub(crate) cpu_nanoseconds: u64,
    /// Bytes that cannot be given back.
    pub(crate) memory_used: u64,
    /// Bytes.
    pub(crate) memory_limit: u64,
    /// Processes and threads.
    pub(crate) pids: u64,
    /// Bytes.
    pub(crate) network_received: u64,
    /// Bytes.
    pub(crate) network_sent: u64,
    /// Bytes read and written; none: this engine does not find them in the kernel's files.
    pub(crate) disk: Option<(u64, u64)>,
}

impl Docker {
    /// What the container uses; none: there is none, or it does not run.
    pub(crate) async fn usage(&self, instance: InstanceId, member: Member) -> Result<Option<Usage>, DockerError> {
        // One shot: else the engine waits a second for a second sample.
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let result = self
            .call(NORMAL, |client| async move {
                let mut stats = client.stats(&container_name(instance, member), Some(options));
                stats.try_next().await
            })
            .await;
        match result {
            Ok(stats) => Ok(stats.and_then(read)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(DockerError::of("say what the container uses", error)),
        }
    }

    /// The node's process id of a running container's first process.
    pub(crate) async fn process_id(&self, instance: InstanceId, member: Member) -> Result<Option<u32>, DockerError> {
        let found = self.inspect(&container_name(instance, member)).await?;
        let pid = found.and_then(|found| found.state?.pid);
        Ok(pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0))
    }
}

/// None: a container that does not run, for which the engine fills in nothing.
fn read(stats: ContainerStatsResponse) -> Option<Usage> {
    let cpu_nanoseconds = stats.cpu_stats?.cpu_usage?.total_usage.filter(|total| *total != 0)?;
    let memory = stats.memory_stats.unwrap_or_default();
    let pids = stats.pids_stats.and_then(|pids| pids.current);
    let networks = stats.networks.unwrap_or_default();
    let network = |field: fn(&bollard::models::ContainerNetworkStats) -> Option<u64>| networks.values().filter_map(field).sum();
    let blocks = stats.blkio_stats.and_then(|blocks| blocks.io_service_bytes_recursive);
    let blocks = blocks.filter(|entries| !entries.is_empty());
    let disk = blocks.map(|entries| {
        // `Read` on cgroup v1, `read` on v2.
        let sum = |wanted: &str| {
            let of = entries
                .iter()
                .filter(|entry| entry.op.as_deref().is_some_and(|op| op.eq_ignore_ascii_case(wanted)));
            of.filter_map(|entry| entry.value).sum()
        };
        (sum("read"), sum("write"))
    });
    Some(Usage {
        docker_id: stats.id.unwrap_or_default(),
        cpu_nanoseconds,
        memory_used: memory
            .usage
            .unwrap_or_default()
            .saturating_sub(inactive_file(memory.stats.as_ref())),
        memory_limit: memory.limit.unwrap_or_default(),
        pids: pids.unwrap_or_default(),
        network_received: network(|network| network.rx_bytes),
        network_sent: network(|network| network.tx_bytes),
        disk,
    })
}

/// Page cache that the kernel drops before it kills: `total_inactive_file` on cgroup v1 (there
/// `inactive_file` leaves out the groups below), `inactive_file` on v2.
fn inactive_file(stats: Option<&HashMap<String, u64>>) -> u64 {
    let get = |name: &str| stats.and_then(|stats| stats.get(name)).copied();
    get("total_inactive_file")
        .or_else(|| get("inactive_file"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage__should_be_read_from_either_cgroup_version() {
        let v1 = r#"{"id":"c","pids_stats":{"current":2,"limit":99},"blkio_stats":{"io_service_bytes_recursive":[]},
            "cpu_stats":{"cpu_usage":{"total_usage":52915282,"percpu_usage":[8157040,44758242]}},
            "memory_stats":{"usage":105877504,"limit":157286400,"stats":{"inactive_file":1,"total_inactive_file":4096}},
            "networks":{"eth0":{"rx_bytes":10,"tx_bytes":20}}}"#;
        let expected = Usage {
            docker_id: "c".to_owned(),
            cpu_nanoseconds: 52_915_282,
            memory_used: 105_873_408,
            memory_limit: 157_286_400,
            pids: 2,
            network_received: 10,
            network_sent: 20,
            disk: None,
        };
        assert_eq!(read(serde_json::from_str(v1).unwrap()), Some(expected.clone()));

        let v2 = r#"{"id":"c","pids_stats":{"current":2},"blkio_stats":{"io_service_bytes_recursive":[
            {"major":8,"minor":0,"op":"read","value":4096},{"major":8,"minor":0,"op":"write","value":8192},
            {"major":8,"minor":16,"op":"write","value":1}]},
            "cpu_stats":{"cpu_usage":{"total_usage":52915282}},
            "memory_stats":{"usage":105877504,"limit":157286400,"stats":{"inactive_file":4096}},
            "networks":{"eth0":{"rx_bytes":10,"tx_bytes":20}}}"#;
        let disk = Some((4096, 8193));
        assert_eq!(read(serde_json::from_str(v2).unwrap()), Some(Usage { disk, ..expected }));
    }

    #[test]
    fn usage__should_be_nothing_for_a_container_that_does_not_run() {
        let stopped = r#"{"id":"c","cpu_stats":{"cpu_usage":{"total_usage":0}},"memory_stats":{},"pids_stats":{}}"#;
        assert_eq!(read(serde_json::from_str(stopped).unwrap()), None);
    }
}
