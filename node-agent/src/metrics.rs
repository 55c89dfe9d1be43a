//! Figures for Prometheus. Whoever knows a number holds it; each scrape reads them anew, so that there
//! is no second copy that could be wrong.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use crabshack_shared::{
    agent_api::v1::{Finding, InstanceReport, Phase},
    serve::Refusals,
    telemetry::Chain,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::sync::watch;

use crate::{
    egress::{Egress, EgressCounters},
    ledger::Ledger,
    link::BRIDGE_PREFIX,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPhase {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByInstance {
    instance: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySubject {
    subject: String,
    repaired: String,
}

/// Upper bounds of the reconciler's passes, in seconds.
const PASSES: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Renders the figures of the node.
pub(crate) struct Metrics {
    egress: OnceLock<Arc<Egress>>,
    ledger: OnceLock<Arc<Ledger>>,
    findings: OnceLock<watch::Receiver<Vec<Finding>>>,
    data_plane: OnceLock<Arc<Refusals>>,
    /// How long the reconciler's passes take.
    pub(crate) passes: Histogram,
    /// Leases that ended.
    pub(crate) lease_expiries: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            egress: OnceLock::new(),
            ledger: OnceLock::new(),
            findings: OnceLock::new(),
            data_plane: OnceLock::new(),
            passes: Histogram::new(PASSES),
            lease_expiries: Counter::default(),
        }
    }
}

impl Metrics {
    /// From now on the ruleset's counters are shown too.
    pub(crate) fn watch_egress(&self, egress: Arc<Egress>) {
        // Set once, at the start; a second time would be the same one.
        drop(self.egress.set(egress));
    }

    /// From now on the events that wait are shown too.
    pub(crate) fn watch_ledger(&self, ledger: Arc<Ledger>) {
        drop(self.ledger.set(ledger));
    }

    /// From now on what the doctor found is shown too.
    pub(crate) fn watch_findings(&self, findings: watch::Receiver<Vec<Finding>>) {
        drop(self.findings.set(findings));
    }

    /// From now on whom the data plane turned away is shown too.
    pub(crate) fn watch_data_plane(&self, refusals: Arc<Refusals>) {
        drop(self.data_plane.set(refusals));
    }

    /// The figures in OpenMetrics text.
    pub(crate) async fn render(&self, reports: &[InstanceReport]) -> String {
        let mut registry = Registry::with_prefix("crabshack");
        instances(&mut registry, reports);
        self.node(&mut registry);
        if let Some(egress) = self.egress.get() {
            match egress.counters().await {
                Ok(counters) => traffic(registry.sub_registry_with_prefix("egress"), &counters, reports),
                Err(error) => tracing::warn!(error = %Chain(&error), "egress counters cannot be read"),
            }
        }
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            // Writing to a String does not fail.
            Err(_) => String::new(),
        }
    }

    fn node(&self, registry: &mut Registry) {
        if let Some(ledger) = self.ledger.get() {
            let waiting: Gauge = Gauge::default();
            waiting.set(i64::try_from(ledger.events_waiting()).unwrap_or(i64::MAX));
            registry.register(
                "node_events_waiting",
                "Events that the coordinator does not have yet",
                waiting,
            );
        }
        if let Some(findings) = self.findings.get() {
            let family = Family::<BySubject, Gauge>::default();
            for finding in findings.borrow().iter() {
                let repaired = finding.repaired.to_string();
                let subject = finding.subject.clone();
                family.get_or_create(&BySubject { subject, repaired }).inc();
            }
            registry.register("node_findings", "What the doctor last found, by subject", family);
        }
        if let Some(refusals) = self.data_plane.get() {
            let refused: Counter = Counter::default();
            refused.inc_by(refusals.total());
            registry.register(
                "node_data_plane_refused",
                "Connections and requests that the data plane refused",
                refused,
            );
        }
        let passes = "How long the reconciler took to look at the node and to plan, in seconds";
        registry.register("node_reconcile_seconds", passes, self.passes.clone());
        let expiries = "Leases that ended because the coordinator did not answer";
        registry.register("node_lease_expiries", expiries, self.lease_expiries.clone());
    }
}

fn instances(registry: &mut Registry, reports: &[InstanceReport]) {
    let family = Family::<ByPhase, Gauge>::default();
    for report in reports {
        family
            .get_or_create(&ByPhase {
                phase: word(report.phase),
            })
            .inc();
    }
    registry.register("node_instances", "Instances on this node by phase", family);
}

fn word(phase: Phase) -> String {
    // A phase serialises as its word.
    serde_json::to_value(phase)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn traffic(registry: &mut Registry, counters: &EgressCounters, reports: &[InstanceReport]) {
    let names: BTreeMap<String, String> = reports
        .iter()
        .map(|report| (format!("{BRIDGE_PREFIX}{}", report.id.short()), report.id.to_string()))
        .collect();
    let drops_packets = Family::<ByInstance, Counter>::default();
    let drops_bytes = Family::<ByInstance, Counter>::default();
    let allowed_packets = Family::<ByInstance, Counter>::default();
    let allowed_bytes = Family::<ByInstance, Counter>::default();
    for (bridge, counters) in &counters.bridges {
        let label = ByInstance {
            instance: names.get(bridge).unwrap_or(bridge).clone(),
        };
        drops_packets.get_or_create(&label).inc_by(counters.denied.packets);
        drops_bytes.get_or_create(&label).inc_by(counters.denied.bytes);
        allowed_packets.get_or_create(&label).inc_by(counters.allowed.packets);
        allowed_bytes.get_or_create(&label).inc_by(counters.allowed.bytes);
    }
    let refused = Family::<ByReason, Counter>::default();
    for (reason, count) in [
        ("spoofed", counters.spoofed),
        ("ipv6", counters.ipv6),
        ("unknown", counters.unknown),
        ("local", counters.local),
    ] {
        refused
            .get_or_create(&ByReason {
                reason: reason.to_owned(),
            })
            .inc_by(count.packets);
    }
    registry.register("drops_packets", "Packets that an instance's policy refused", drops_packets);
    registry.register("drops_bytes", "Bytes that an instance's policy refused", drops_bytes);
    registry.register("allowed_packets", "Packets let through, in both directions", allowed_packets);
    registry.register("allowed_bytes", "Bytes let through, in both directions", allowed_bytes);
    registry.register("refused_packets", "Packets refused for the whole node, by reason", refused);
}
