//! What can be said of a node whose node agent does not run, or is not through its start.

use std::{path::PathBuf, time::SystemTime};

use super::{COORDINATOR, Checkup, DISK, EGRESS, found, machine, unknown};
use crate::{config::Settings, docker::Docker, egress::Egress, identity::NodeIdentity, pressure::Disks};

const NODE_AGENT: &str = "node agent";

const SUBJECTS: [&str; 8] = [
    NODE_AGENT,
    machine::DOCKER,
    machine::KERNEL,
    EGRESS,
    DISK,
    machine::POOL,
    machine::CERTIFICATE,
    machine::FILES,
];

/// Where to look.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    docker_socket: String,
    data: PathBuf,
}

impl Outside {
    /// As the node agent would.
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            docker_socket: settings.docker_socket.clone(),
            data: settings.data_dir.clone(),
        }
    }

    /// Looks at everything that can be looked at. `why` says why the node agent itself does not answer.
    pub(crate) async fn check_up(&self, why: String) -> Checkup {
        let mut findings = vec![found(NODE_AGENT, None, why)];
        let mut folders = vec![self.data.clone()];
        let facts = match Docker::connect(&self.docker_socket) {
            Ok(docker) => docker.facts().await,
            Err(error) => Err(error),
        };
        match facts {
            Ok(facts) => {
                findings.extend(machine::docker(&facts));
                folders.extend(facts.root);
            }
            Err(error) => findings.push(unknown(machine::DOCKER, &error)),
        }
        let missing = Egress::missing_programs().await;
        findings.extend(missing.into_iter().map(|text| found(EGRESS, None, text)));
        findings.extend(Disks::new(folders).warnings().into_iter().map(|text| found(DISK, None, text)));
        match NodeIdentity::load(&self.data) {
            Ok(Some(identity)) => {
                let (not_before, not_after) = identity.validity();
                findings.extend(machine::certificate(not_before, not_after, SystemTime::now()));
            }
            Ok(None) => findings.push(found(
                COORDINATOR,
                None,
                "this node is not enrolled: run `crabshack join-token` beside the coordinator and pass what it prints as CRABSHACK_JOIN_TOKEN"
                    .to_owned(),
            )),
            Err(error) => findings.push(unknown(machine::CERTIFICATE, &error)),
        }
        findings.extend(machine::pool(&self.data));
        findings.extend(machine::private_files(&self.data));
        Checkup::new(&SUBJECTS, findings)
    }
}
