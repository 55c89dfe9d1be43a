//! Figures for Prometheus. The kernel and the reconciler hold the numbers; each scrape reads them
//! anew, so that there is no second copy that could be wrong.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use crabshack_shared::{
    agent_api::v1::{InstanceReport, Phase},
    telemetry::Chain,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    egress::{Egress, EgressCounters},
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

/// Renders the figures of the node.
#[derive(Default)]
pub(crate) struct Metrics {
    egress: OnceLock<Arc<Egress>>,
}

impl Metrics {
    /// From now on the ruleset's counters are shown too.
    pub(crate) fn watch_egress(&self, egress: Arc<Egress>) {
        // Set once, at the start; a second time would be the same one.
        drop(self.egress.set(egress));
    }

    /// The figures in OpenMetrics text.
    pub(crate) async fn render(&self, reports: &[InstanceReport]) -> String {
        let mut registry = Registry::with_prefix("crabshack");
        instances(&mut registry, reports);
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
