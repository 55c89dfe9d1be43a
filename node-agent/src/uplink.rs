//! The node's side of the conversation with the coordinator: enrol once, pull orders, send reports,
//! renew the certificate. When the coordinator is away everything here waits and tries again, and
//! nothing else on the node notices.

pub(crate) mod client;
pub(crate) mod enrol;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum_server::tls_rustls::RustlsConfig;
use crabshack_shared::{
    agent_api::v1::{InstanceReport, NodeFacts, Phase, Report},
    ids::InstanceId,
    shutdown::Shutdown,
    telemetry::Chain,
};
use tokio::sync::{Notify, watch};

use crate::{identity::NodeIdentity, ledger::Ledger};
use client::{Client, UplinkError};

/// A report goes out at least that often, so that the coordinator knows the node alive.
const HEARTBEAT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the uplink works with.
pub(crate) struct Uplink {
    pub(crate) client: Client,
    pub(crate) identity: Arc<NodeIdentity>,
    pub(crate) ledger: Arc<Ledger>,
    /// Starts a pass of the reconciler.
    pub(crate) wake: Arc<Notify>,
    pub(crate) reports: watch::Receiver<Arc<Vec<InstanceReport>>>,
    pub(crate) adopted: watch::Receiver<bool>,
    pub(crate) facts: watch::Receiver<NodeFacts>,
    pub(crate) data_plane: RustlsConfig,
    pub(crate) connected: watch::Sender<bool>,
}

impl Uplink {
    /// Starts the three conversations.
    pub(crate) fn spawn(self: Arc<Self>, shutdown: &Shutdown) {
        shutdown.spawn(Arc::clone(&self).pull_orders());
        shutdown.spawn(Arc::clone(&self).send_reports());
        shutdown.spawn(self.renew());
    }

    async fn pull_orders(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        // Asked once without a revision: a coordinator that was restored may hold an older one.
        let mut revision = None;
        loop {
            match self.client.orders(revision).await {
                Ok(Some(orders)) => {
                    self.note_connected(true);
                    pause = FIRST_PAUSE;
                    match self.ledger.receive(&orders, &self.gone()) {
                        Ok(refused) => {
                            revision = Some(orders.revision);
                            for id in refused {
                                tracing::warn!(instance = %id, "an order older than the one held was refused");
                            }
                            self.wake.notify_one();
                            continue;
                        }
                        Err(error) => {
                            tracing::error!(error = %Chain(&error), "orders cannot be kept; the node goes on with those it has")
                        }
                    }
                }
                Ok(None) => {
                    self.note_connected(true);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Err(error) => self.note_failure(&error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn send_reports(self: Arc<Self>) {
        let mut reports = self.reports.clone();
        let mut adopted = self.adopted.clone();
        // Before everything was seen once, a report would make instances look lost.
        if adopted.wait_for(|adopted| *adopted).await.is_err() {
            return;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let report = Report {
                highest_generation: self.ledger.highest_generation(),
                facts: self.facts.borrow().clone(),
                instances: reports.borrow_and_update().as_ref().clone(),
                events: Vec::new(),
                findings: Vec::new(),
            };
            match self.client.report(&report).await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        changed = reports.changed() => if changed.is_err() { return },
                        () = tokio::time::sleep(HEARTBEAT) => {}
                    }
                }
                Err(error) => {
                    self.note_failure(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn renew(self: Arc<Self>) {
        loop {
            if self.identity.wants_renewal() {
                match self.renew_once().await {
                    Ok(()) => tracing::info!("the node's certificate was renewed"),
                    Err(error) => tracing::warn!(error = %Chain(&*error), "the node's certificate cannot be renewed yet"),
                }
            }
            // A small part of the life: a renewal that fails is tried many times before the end.
            let pause = (self.identity.lifetime() / 60).clamp(Duration::from_millis(500), Duration::from_secs(3600));
            tokio::time::sleep(pause).await;
        }
    }

    async fn renew_once(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let answer = self.client.renew(self.identity.request()?).await?;
        self.identity.renew(&answer.certificate)?;
        self.client.reload(self.identity.client()?)?;
        self.data_plane.reload_from_config(Arc::new(self.identity.server()?));
        Ok(())
    }

    /// Deleted instances of which nothing is left here.
    fn gone(&self) -> BTreeSet<InstanceId> {
        self.reports
            .borrow()
            .iter()
            .filter(|report| report.phase == Phase::Deleted)
            .map(|report| report.id)
            .collect()
    }

    fn note_connected(&self, connected: bool) {
        self.connected.send_if_modified(|known| {
            let differs = *known != connected;
            if differs && connected {
                tracing::info!("connected to the coordinator");
            }
            *known = connected;
            differs
        });
    }

    /// Logged when it begins, not on every try.
    fn note_failure(&self, error: &UplinkError) {
        let began = self
            .connected
            .send_if_modified(|connected| std::mem::replace(connected, false));
        if began || error.is_refusal() {
            tracing::warn!(error = %Chain(error), at = ?SystemTime::now(), "the coordinator cannot be reached or refuses; the node goes on alone");
        }
    }
}
