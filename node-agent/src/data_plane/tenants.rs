//! The instances of the ledger, as the data plane sees them.

use std::{net::Ipv4Addr, sync::Arc};

use crabshack_shared::{
    agent_api::v1::{Desired, Stats},
    ids::InstanceId,
    problem::{Code, Problem},
    telemetry::Chain,
};

use super::{Instances, LogStream, exec};
use crate::{
    docker::{Docker, DockerError},
    ledger::{Entry, Ledger},
    logs, recipe,
    stats::StatsReader,
    volume::Volumes,
};

/// What the data plane may reach: the instances of the ledger, on the ports their recipe names.
pub(crate) struct Tenants {
    ledger: Arc<Ledger>,
    docker: Docker,
    volumes: Arc<Volumes>,
    stats: StatsReader,
}

impl Tenants {
    pub(crate) fn new(ledger: Arc<Ledger>, docker: Docker, volumes: Arc<Volumes>) -> Self {
        let stats = StatsReader::new(docker.clone());
        Self {
            ledger,
            docker,
            volumes,
            stats,
        }
    }

    /// Ends the commands that a node agent which was killed has left behind.
    pub(crate) async fn end_orphans(self: Arc<Self>) {
        for entry in self.ledger.entries() {
            exec::ending::sweep(&self.docker, entry.order.id).await;
        }
    }

    fn entry(&self, id: InstanceId) -> Result<Arc<Entry>, Problem> {
        self.ledger
            .entry(id)
            .ok_or_else(|| Problem::not_found("this node has no such instance"))
    }
}

impl Instances for Tenants {
    fn address(&self, id: InstanceId) -> Option<(Ipv4Addr, &[u16])> {
        let entry = self.ledger.entry(id)?;
        let recipe = recipe::recipe(&entry.order.spec)?;
        Some((entry.link.address, std::slice::from_ref(&recipe.service.gateway_port)))
    }

    fn engine(&self, id: InstanceId) -> Result<Docker, Problem> {
        if self.entry(id)?.order.desired == Desired::Running {
            Ok(self.docker.clone())
        } else {
            Err(Problem::conflict(Code::Stopped, "the instance is not to run on this node"))
        }
    }

    async fn logs(&self, id: InstanceId, tail: u32) -> Result<String, Problem> {
        self.entry(id)?;
        let logs = logs::tail(&self.docker, &self.volumes.folder(id), id, tail).await;
        logs.map_err(|error| unreadable(id, &error, "log"))
    }

    async fn follow(&self, id: InstanceId, tail: u32) -> Result<LogStream, Problem> {
        self.entry(id)?;
        let ledger = Arc::clone(&self.ledger);
        let wanted = move || {
            let entry = ledger.entry(id);
            entry.is_some_and(|entry| matches!(entry.order.desired, Desired::Running | Desired::Stopped))
        };
        let lines = logs::follow(self.docker.clone(), &self.volumes.folder(id), id, tail, wanted).await;
        Ok(Box::pin(lines.map_err(|error| unreadable(id, &error, "log"))?))
    }

    async fn stats(&self, id: InstanceId) -> Result<Stats, Problem> {
        let entry = self.entry(id)?;
        let members = recipe::members(&entry.order.spec);
        let stats = self.stats.read(id, members).await;
        let mut stats = stats.map_err(|error| unreadable(id, &error, "usage"))?;
        if stats.memory_limit == 0 {
            stats.memory_limit = entry.order.spec.resources.memory.get();
        }
        // A volume that cannot be looked at leaves its part open.
        let volumes = self.volumes.list().await.unwrap_or_default();
        if let Some(usage) = volumes.get(&id).and_then(|volume| volume.usage()) {
            stats.volume_used = Some(usage.used.get());
            stats.volume_limit = usage.limit.map(|limit| limit.get());
        }
        Ok(stats)
    }
}

fn unreadable(id: InstanceId, error: &DockerError, what: &'static str) -> Problem {
    tracing::warn!(instance = %id, what, error = %Chain(error), "something of an instance cannot be read");
    Problem::unreachable(format!("the instance's {what} cannot be read on its node"))
}
