//! The node's side of the conversation with the coordinator: enrol once, pull orders, send reports,
//! renew the certificate. When the coordinator is away everything here waits and tries again, and
//! nothing else on the node notices.

pub(crate) mod client;
pub(crate) mod enrol;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crabshack_shared::{
    agent_api::v1::{Finding, InstanceReport, NodeFacts, Phase, Report},
    ids::InstanceId,
    serve::ServerTls,
    shutdown::Shutdown,
    telemetry::Chain,
};
use tokio::sync::{Notify, watch};

use crate::{
    identity::NodeIdentity,
    lease::{self, Moment},
    ledger::{Call, Ledger},
};
use client::{Client, UplinkError};

/// A report goes out at least that often, so that the coordinator knows the node alive.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Leases shorter than that are renewed no oftener.
const SHORTEST_HEARTBEAT: Duration = Duration::from_secs(1);
/// Events in one report.
const EVENTS: usize = 500;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the uplink works with.
pub(crate) struct Uplink {
    pub(crate) client: Arc<Client>,
    pub(crate) identity: Arc<NodeIdentity>,
    pub(crate) ledger: Arc<Ledger>,
    /// Starts a pass of the reconciler.
    pub(crate) wake: Arc<Notify>,
    pub(crate) reports: watch::Receiver<Arc<Vec<InstanceReport>>>,
    pub(crate) adopted: watch::Receiver<bool>,
    pub(crate) facts: watch::Receiver<NodeFacts>,
    pub(crate) findings: watch::Receiver<Vec<Finding>>,
    pub(crate) data_plane: ServerTls,
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
            // Stopped by its lease: what is asked without a revision is answered at once.
            let asked = revision.filter(|_| !self.ledger.has_lapsed());
            let sent = Moment::now();
            match self.client.orders(asked).await {
                Ok(orders) => {
                    self.note_connected(true);
                    pause = FIRST_PAUSE;
                    if let Some(orders) = orders {
                        match self.ledger.receive(&orders, &self.gone()) {
                            Ok(refused) => {
                                for id in refused {
                                    tracing::warn!(instance = %id, "an order older than the one held was refused");
                                }
                                revision = Some(orders.revision);
                                self.wake.notify_one();
                            }
                            Err(error) => {
                                tracing::error!(error = %Chain(&error), "orders cannot be kept; the node goes on with those it has");
                                revision = None;
                                tokio::time::sleep(LONGEST_PAUSE).await;
                                continue;
                            }
                        }
                    }
                    // After the orders are known, never before: they may say that somebody else has it now.
                    self.note_answer(&sent, Call::Orders);
                    if !self.ledger.has_lapsed() {
                        continue;
                    }
                }
                Err(error) => {
                    revision = None;
                    self.note_failure(&error);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn send_reports(self: Arc<Self>) {
        let mut reports = self.reports.clone();
        let mut adopted = self.adopted.clone();
        let mut events = self.ledger.written_events();
        let mut findings = self.findings.clone();
        let mut facts = self.facts.clone();
        // Before everything was seen once, a report would make instances look lost.
        if adopted.wait_for(|adopted| *adopted).await.is_err() {
            return;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            events.mark_unchanged();
            let waiting = self.ledger.events(EVENTS);
            let last = waiting.last().map(|event| event.sequence);
            let report = Report {
                highest_generation: self.ledger.highest_generation(),
                facts: facts.borrow_and_update().clone(),
                instances: reports.borrow_and_update().as_ref().clone(),
                events: waiting,
                findings: findings.borrow_and_update().clone(),
            };
            let sent = Moment::now();
            match self.client.report(&report).await {
                Ok(answer) => {
                    pause = FIRST_PAUSE;
                    self.note_answer(&sent, Call::Report);
                    self.ledger.acknowledge_events(answer.events_kept);
                    // An older coordinator keeps none: they wait for the next one.
                    let all = last.is_none_or(|last| answer.events_kept < last) || self.ledger.events(1).is_empty();
                    if !all {
                        continue;
                    }
                    tokio::select! {
                        changed = reports.changed() => if changed.is_err() { return },
                        Ok(()) = events.changed() => {}
                        Ok(()) = findings.changed() => {}
                        Ok(()) = facts.changed() => {}
                        () = tokio::time::sleep(self.heartbeat()) => {}
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

    /// Often enough that one lost report ends no lease.
    fn heartbeat(&self) -> Duration {
        let shortest = lease::shortest(self.ledger.leased().iter());
        shortest.map_or(HEARTBEAT, |lease| (lease / 3).clamp(SHORTEST_HEARTBEAT, HEARTBEAT))
    }

    fn note_answer(&self, sent: &Moment, call: Call) {
        if let Err(error) = self.ledger.note_answer(sent, call) {
            tracing::error!(error = %Chain(&error), "the time of the coordinator's answer cannot be written down: a restart of the node agent may end leases early");
        }
    }

    async fn renew(self: Arc<Self>) {
        let mut failing = false;
        loop {
            if self.identity.wants_renewal() {
                let result = self.renew_once().await;
                match &result {
                    Ok(()) => tracing::info!("the node's certificate was renewed"),
                    // Said when it begins, not on every try.
                    Err(error) if !failing => {
                        tracing::warn!(error = %Chain(&**error), "the node's certificate cannot be renewed yet");
                    }
                    Err(_) => {}
                }
                failing = result.is_err();
            }
            let pause = (self.identity.lifetime() / 60).clamp(Duration::from_millis(500), Duration::from_secs(3600));
            // A coordinator that was away for long may return to a certificate that is good for renewal only.
            tokio::time::sleep(if failing { pause.min(LONGEST_PAUSE) } else { pause }).await;
        }
    }

    async fn renew_once(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let answer = self.client.renew(self.identity.request()?).await?;
        self.identity.renew(&answer.certificate)?;
        self.client.reload(self.identity.client()?)?;
        self.data_plane.replace(Arc::new(self.identity.server()?));
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
            tracing::warn!(error = %Chain(error), "the coordinator cannot be reached or refuses; the node goes on alone");
        }
    }
}
