//! `GET /instances/{name}/stats` and `GET /instances/{name}/events`: what an instance uses now, and
//! what happened to it.

use std::sync::Arc;

use axum::{Json, extract::State};
use crabshack_shared::{
    agent_api::v1::Stats,
    api::{
        events::InstanceEvents,
        instances::{InstanceStats, Usage, UsageNumbers},
    },
    problem::Problem,
    telemetry::Chain,
};

use super::view;
use crate::{
    agents::connect::ConnectError,
    api::{
        extract::{Named, no_such_instance},
        internal,
    },
    app::App,
    status,
};

/// `GET /instances/{name}/stats`: from its node, now.
pub(crate) async fn stats(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<InstanceStats>, Problem> {
    let found = view::find(&app, &name).map_err(internal)?;
    let found = found.ok_or_else(|| no_such_instance(&name))?;
    let up = status::of(&found.record, found.observation.as_ref(), true).up;
    let node = found.node.as_ref().and_then(|node| node.dial()).filter(|_| up);
    let stats = match node {
        None => Usage::Down {},
        Some(node) => match app.connector.stats(&node, found.record.id).await {
            Ok(numbers) => Usage::Up(Box::new(as_docker_writes(numbers))),
            Err(ConnectError::NotHere { .. }) => Usage::Down {},
            Err(error) => {
                tracing::warn!(instance.name = %name, "its use cannot be fetched: {}", Chain(&error));
                return Err(Problem::unreachable(
                    "the instance's use cannot be fetched from its node: try again",
                ));
            }
        },
    };
    Ok(Json(InstanceStats { name, stats }))
}

/// `GET /instances/{name}/events`: the last transitions, oldest first.
pub(crate) async fn events(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<InstanceEvents>, Problem> {
    let reading = app.store.reading().map_err(internal)?;
    let record = reading.instance_named(&name).map_err(internal)?;
    let record = record.ok_or_else(|| no_such_instance(&name))?;
    let events = reading.events(record.id).map_err(internal)?;
    Ok(Json(InstanceEvents { events }))
}

fn as_docker_writes(numbers: Stats) -> UsageNumbers {
    UsageNumbers {
        cpu: format!("{:.2}%", numbers.cpu_percent),
        memory: format!("{} / {}", binary(numbers.memory_used), binary(numbers.memory_limit)),
        network: format!("{} / {}", decimal(numbers.network_received), decimal(numbers.network_sent)),
        numbers,
    }
}

/// Powers of 1024 with four digits, like `1.465GiB`.
fn binary(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    with_unit(bytes, 1024.0, &units, 4)
}

/// Powers of 1000 with three digits, like `3.46kB`.
fn decimal(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    with_unit(bytes, 1000.0, &units, 3)
}

fn with_unit(bytes: u64, base: f64, units: &[&str], digits: usize) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let whole = if value >= 1.0 { value.log10().floor() as usize + 1 } else { 1 };
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes__should_be_written_as_docker_writes_them() {
        for (bytes, text) in [
            (0, "0B"),
            (512 << 20, "512MiB"),
            (1_573_000_000, "1.465GiB"),
            (2 << 30, "2GiB"),
            (1023, "1023B"),
        ] {
            assert_eq!(binary(bytes), text);
        }
        for (bytes, text) in [(0, "0B"), (3460, "3.46kB"), (10_000, "10kB"), (123_456_789, "123MB")] {
            assert_eq!(decimal(bytes), text);
        }
    }

    #[test]
    fn stats__should_hold_the_numbers_beside_the_texts() {
        let numbers = Stats {
            cpu_percent: 12.5,
            memory_used: 512 << 20,
            memory_limit: 2 << 30,
            network_received: 1_200_000,
            ..Stats::default()
        };
        let value = serde_json::to_value(Usage::Up(Box::new(as_docker_writes(numbers)))).unwrap();
        assert_eq!(value["CPUPerc"], "12.50%");
        assert_eq!(value["MemUsage"], "512MiB / 2GiB");
        assert_eq!(value["NetIO"], "1.2MB / 0B");
        assert_eq!(value["memory_used"], 512 << 20);
        assert_eq!(serde_json::to_value(Usage::Down {}).unwrap(), serde_json::json!({}));
    }
}
