//! What is answered about an instance.

use std::net::IpAddr;

use crabshack_shared::{
    agent_api::v1::InstanceReport,
    api::instances::{InstanceDetails, InstanceSummary, SshAccess},
    instance::InstanceName,
    secret::Secret,
    services,
};

use crate::{
    app::App,
    config::Settings,
    status,
    store::{InstanceRecord, NodeRecord, Observation, StoreError},
};

/// From here on a disk is worth a warning.
const DISK_WARNING_PERCENT: u64 = 90;
/// Who logs in to an instance.
const SSH_USER: &str = "agent";

/// A living instance and what is known around it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) record: InstanceRecord,
    pub(crate) observation: Option<Observation>,
    pub(crate) node: Option<NodeRecord>,
}

/// Looks a living instance up.
pub(crate) fn find(app: &App, name: &InstanceName) -> Result<Option<Found>, StoreError> {
    let reading = app.store.reading()?;
    let Some(record) = reading.instance_named(name)? else {
        return Ok(None);
    };
    let node = match &record.assignment {
        Some(node) => reading.node(node)?,
        None => None,
    };
    Ok(Some(Found {
        observation: reading.observation(record.id)?,
        record,
        node,
    }))
}

/// One line of the list.
pub(crate) fn summary(app: &App, record: &InstanceRecord, observation: Option<&Observation>) -> InstanceSummary {
    let alive = record.assignment.as_ref().is_none_or(|node| app.registry.is_alive(node));
    let status = status::of(record, observation, alive);
    let spec = &record.spec;
    let seen_digest = observation.and_then(|observation| observation.report.image_digest.as_deref());
    InstanceSummary {
        name: record.name.clone(),
        instance_id: record.id,
        status: status.word,
        phase: status.phase.to_owned(),
        reason: status.reason,
        service_type: spec.service_type.clone(),
        image: spec.image.name().to_owned(),
        image_digest: spec.image.digest().or(seen_digest).map(str::to_owned),
        mem_limit: spec.resources.memory.to_string(),
        cpus: spec.resources.cpus.to_string(),
        storage_size: spec.resources.storage.to_string(),
        node_id: record.assignment.clone(),
        owner: record.owner.clone(),
        created_at: record.created_at,
    }
}

/// All of it, for who may open it.
pub(crate) fn details(app: &App, found: &Found, token: Secret) -> InstanceDetails {
    let summary = summary(app, &found.record, found.observation.as_ref());
    let report = found.observation.as_ref().map(|observation| &observation.report);
    let up = status::of(&found.record, found.observation.as_ref(), true).up;
    let ssh = ssh(&app.settings, found);
    let url = format!("{}/?token={}", app.settings.origin(&found.record.name), token.expose());
    InstanceDetails {
        gateway_address: report.filter(|_| up).and_then(|report| report.address),
        gateway_port: services::service(&found.record.spec.service_type)
            .filter(|_| up)
            .map(|service| service.gateway_port),
        ssh_address: ssh.as_ref().filter(|_| up).map(|ssh| ssh.host.clone()),
        ssh_port: up.then_some(found.record.ssh_port),
        ssh_pubkey: found.record.spec.ssh_pubkey.clone(),
        ssh_fingerprint: report.and_then(|report| report.ssh_fingerprint.clone()),
        ssh_command: ssh.map(|ssh| ssh.command),
        instance_url: url.clone(),
        dashboard_url: url,
        pending_change: status::pending_change(&found.record, found.observation.as_ref()),
        profile: found.record.spec.profile,
        protected: found.record.protected,
        on_disconnect: found.record.on_disconnect,
        disk_used: report.and_then(|report| report.disk_used),
        disk_limit: report.and_then(|report| report.disk_limit),
        warning: report.and_then(disk_warning),
        last_exit: report.and_then(|report| report.last_exit.clone()),
        token,
        summary,
    }
}

/// Said before a full disk stops what runs in the instance.
fn disk_warning(report: &InstanceReport) -> Option<String> {
    let (used, limit) = (report.disk_used?, report.disk_limit?);
    let percent = used.get().saturating_mul(100) / limit.get().max(1);
    (percent >= DISK_WARNING_PERCENT)
        .then(|| format!("its disk is {percent} % full ({used} of {limit}): remove files, or give it a larger storage_size"))
}

/// How to log in; none while it is on no node that we know to reach.
pub(crate) fn ssh(settings: &Settings, found: &Found) -> Option<SshAccess> {
    let host = ssh_host(settings, found.node.as_ref()?)?;
    let port = found.record.ssh_port;
    Some(SshAccess {
        command: format!("ssh -p {port} {SSH_USER}@{host}"),
        user: SSH_USER.to_owned(),
        host,
        port,
    })
}

/// Under which host users reach a node.
pub(crate) fn ssh_host(settings: &Settings, node: &NodeRecord) -> Option<String> {
    if let Some(host) = &settings.node_ssh.host {
        return Some(host.clone());
    }
    Some(reachable_host(&node.facts.as_ref()?.data_plane))
}

/// The host of `host:port`; every spelling of the loopback address is the same.
fn reachable_host(data_plane: &str) -> String {
    let host = data_plane.rsplit_once(':').map_or(data_plane, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if loopback { "127.0.0.1".to_owned() } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{instance_report, record};
    use crabshack_shared::{
        agent_api::v1::{Desired, Phase},
        resources::Bytes,
    };

    #[test]
    fn disk_warning__should_come_before_the_disk_is_full_and_only_where_it_is_bounded() {
        let mut report = instance_report(&record(Desired::Running, None), Phase::Ready);
        for (used, limit, warned) in [
            (None, None, false),
            (Some(9), None, false),
            (Some(8), Some(10), false),
            (Some(9), Some(10), true),
            (Some(10), Some(10), true),
            (Some(0), Some(0), false),
        ] {
            (report.disk_used, report.disk_limit) = (used.map(Bytes::gibibytes), limit.map(Bytes::gibibytes));
            assert_eq!(disk_warning(&report).is_some(), warned, "{used:?} of {limit:?}");
        }
        let text = disk_warning(&InstanceReport {
            disk_used: Some(Bytes::gibibytes(9)),
            disk_limit: Some(Bytes::gibibytes(10)),
            ..report
        });
        assert!(text.unwrap().contains("90 % full (9g of 10g)"));
    }

    #[test]
    fn reachable_host__should_be_the_data_planes() {
        for (data_plane, host) in [
            ("127.0.0.1:7702", "127.0.0.1"),
            ("127.0.0.5:7702", "127.0.0.1"),
            ("[::1]:7702", "127.0.0.1"),
            ("localhost:7702", "127.0.0.1"),
            ("10.0.0.7:7702", "10.0.0.7"),
            ("node-1.example.com:7702", "node-1.example.com"),
            ("[2001:db8::1]:7702", "2001:db8::1"),
        ] {
            assert_eq!(reachable_host(data_plane), host);
        }
    }
}
