//! `GET /health` and `GET /metrics`, which need no secret: the API is bound to the loopback address.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use crabshack_shared::problem::Problem;
use serde_json::{Value, json};

use super::internal;
use crate::{app::App, metrics::NodeCounts, status};

/// Says that we serve.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

/// All numbers, as of now.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let reading = app.store.reading().map_err(internal)?;
    let mut statuses = Vec::new();
    for record in reading.instances().map_err(internal)? {
        if record.is_living() {
            let observation = reading.observation(record.id).map_err(internal)?;
            statuses.push(status::of(&record, observation.as_ref(), true).word);
        }
    }
    let mut nodes = NodeCounts::default();
    for node in reading.nodes().map_err(internal)?.iter().filter(|node| !node.revoked) {
        if app.registry.is_alive(&node.id) {
            nodes.active += 1;
        } else {
            nodes.down += 1;
        }
    }
    let text = app.metrics.render(statuses.into_iter(), nodes).map_err(internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}
