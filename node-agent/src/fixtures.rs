//! Orders and reports for unit tests.

use std::collections::BTreeMap;

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceOrder, InstanceReport, InstanceSecrets, InstanceSpec, Phase},
    generation::Generation,
    ids::InstanceId,
    instance::{InstanceName, ServiceType},
    resources::Resources,
    secret::Secret,
};

/// An order for a new instance.
pub(crate) fn order(desired: Desired, counter: u64) -> InstanceOrder {
    InstanceOrder {
        id: InstanceId::random(),
        name: InstanceName::random(),
        generation: Generation { epoch: 1, counter },
        desired,
        restarts: 0,
        spec_revision: 0,
        on_disconnect: crabshack_shared::agent_api::v1::OnDisconnect::Keep,
        spec: InstanceSpec {
            service_type: ServiceType::new(ServiceType::OPENCLAW),
            image: "example/openclaw:1".parse().unwrap(),
            resources: Resources {
                memory: "2g".parse().unwrap(),
                cpus: "1".parse().unwrap(),
                storage: "10g".parse().unwrap(),
            },
            ssh_port: 19001,
            ssh_pubkey: None,
            nearai_api_url: "https://models.example/v1".to_owned(),
            profile: Default::default(),
            public_origin: "http://agent.localhost:3000".to_owned(),
        },
        secrets: InstanceSecrets {
            token: Secret::random(),
            nearai_api_key: Secret::random(),
            extra_env: BTreeMap::from([("EXTRA".to_owned(), Secret::random())]),
            workload_token: None,
            master_key: None,
        },
    }
}

/// A report that says no more than a phase.
pub(crate) fn report(id: InstanceId, phase: Phase) -> InstanceReport {
    InstanceReport {
        id,
        generation: None,
        phase,
        reason: None,
        image_digest: None,
        address: None,
        ssh_fingerprint: None,
        disk_used: None,
        disk_limit: None,
        pending_change: false,
        last_exit: None,
        ssh_port: None,
        pull: None,
    }
}
