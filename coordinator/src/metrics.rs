//! What can be scraped, in OpenMetrics text. The registry is passed down; nothing is global.

use std::fmt;

use crabshack_shared::instance::InstanceStatus;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    listener: &'static str,
    method: String,
    route: String,
    code: u16,
}

/// All numbers of the coordinator.
pub(crate) struct Metrics {
    registry: Registry,
    instances: Family<StatusLabel, Gauge>,
    nodes: Family<StatusLabel, Gauge>,
    requests: Family<RequestLabels, Counter>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("crabshack");
        let (instances, nodes, requests) = (Family::default(), Family::default(), Family::default());
        registry.register("instances", "Living instances by status", Family::clone(&instances));
        registry.register("nodes", "Nodes by status", Family::clone(&nodes));
        registry.register("requests", "Answered requests by route", Family::clone(&requests));
        Self {
            registry,
            instances,
            nodes,
            requests,
        }
    }

    /// Counts an answer. The route is a pattern, so that names do not become labels.
    pub(crate) fn count_request(&self, listener: &'static str, method: &http::Method, route: &str, code: http::StatusCode) {
        let known = matches!(
            method.as_str(),
            "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS"
        );
        self.requests
            .get_or_create(&RequestLabels {
                listener,
                method: if known { method.as_str() } else { "other" }.to_owned(),
                route: route.to_owned(),
                code: code.as_u16(),
            })
            .inc();
    }

    /// The text, with these numbers of the moment.
    pub(crate) fn render(
        &self,
        instances: impl Iterator<Item = InstanceStatus>,
        nodes: NodeCounts,
    ) -> Result<String, fmt::Error> {
        use InstanceStatus::{Creating, Error, Running, Stopped};
        let mut counts = [(Creating, 0_i64), (Running, 0), (Stopped, 0), (Error, 0)];
        for status in instances {
            for (known, count) in &mut counts {
                if *known == status {
                    *count += 1;
                }
            }
        }
        for (status, count) in counts {
            self.instances
                .get_or_create(&StatusLabel { status: status.as_str() })
                .set(count);
        }
        self.nodes.get_or_create(&StatusLabel { status: "active" }).set(nodes.active);
        self.nodes.get_or_create(&StatusLabel { status: "down" }).set(nodes.down);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// How many nodes are in which state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NodeCounts {
    pub(crate) active: i64,
    pub(crate) down: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics__should_count_by_status_and_route() {
        let metrics = Metrics::new();
        metrics.count_request("api", &http::Method::GET, "/instances/{name}", http::StatusCode::OK);
        let nodes = NodeCounts { active: 1, down: 0 };
        let text = metrics.render([InstanceStatus::Running].into_iter(), nodes).unwrap();
        for line in [
            r#"crabshack_instances{status="running"} 1"#,
            r#"crabshack_instances{status="error"} 0"#,
            r#"crabshack_nodes{status="active"} 1"#,
            r#"crabshack_requests_total{listener="api",method="GET",route="/instances/{name}",code="200"} 1"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
