//! `/health`, `/ready`, `/metrics` and `/doctor` of the node agent, on loopback. All but the last
//! answer from what is known already: neither Docker nor the coordinator can make them wait.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use crabshack_shared::{
    agent_api::v1::InstanceReport,
    listen::Listener,
    serve::{HeadLimits, Refusals, Server},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    doctor::{Checkup, Doctor, outside::Outside},
    metrics::Metrics,
};

/// What the answers are made of. Each part fills in as the start goes on.
#[derive(Clone)]
pub(crate) struct Status {
    /// The node's id, once it is enrolled.
    pub(crate) node: watch::Receiver<Option<String>>,
    /// The coordinator answered the last call.
    pub(crate) connected: watch::Receiver<bool>,
    /// Everything on the node has been seen.
    pub(crate) adopted: watch::Receiver<bool>,
    pub(crate) reports: watch::Receiver<Arc<Vec<InstanceReport>>>,
    pub(crate) metrics: Arc<Metrics>,
    /// None: the start is not that far yet.
    pub(crate) doctor: watch::Receiver<Option<Arc<Doctor>>>,
    pub(crate) outside: Outside,
}

const HEAD_LIMITS: HeadLimits = HeadLimits {
    first: Duration::from_secs(10),
    next: Duration::from_secs(75),
};
/// How long an answer may take once the agent is told to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Serves until the stop begins, and answers who was let in by then.
///
/// # Errors
/// When the listener cannot be used.
pub(crate) async fn serve(listener: Listener, status: Status, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/doctor", get(doctor))
        .with_state(status);
    let server = Server::new(listener, HEAD_LIMITS, Arc::new(Refusals::new("health")));
    server.serve(router, stop).await?.finish(STOP_LIMIT).await;
    Ok(())
}

async fn health(State(status): State<Status>) -> Json<serde_json::Value> {
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "node": *status.node.borrow(),
        "coordinator_connected": *status.connected.borrow(),
        "adopted": *status.adopted.borrow(),
        "instances": status.reports.borrow().len(),
    }))
}

async fn ready(State(status): State<Status>) -> Response {
    if *status.adopted.borrow() {
        (StatusCode::OK, Json(json!({"status": "ready"}))).into_response()
    } else {
        let retry = [(header::RETRY_AFTER, "1")];
        (StatusCode::SERVICE_UNAVAILABLE, retry, Json(json!({"status": "starting"}))).into_response()
    }
}

async fn metrics(State(status): State<Status>) -> Response {
    let reports = Arc::clone(&status.reports.borrow());
    // Reading counters asks the kernel: bounded, so that a scrape never hangs.
    match tokio::time::timeout(Duration::from_secs(5), status.metrics.render(&reports)).await {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

async fn doctor(State(status): State<Status>) -> Json<Checkup> {
    let doctor = status.doctor.borrow().clone();
    match doctor {
        Some(doctor) => Json(Checkup::clone(&*doctor.check_up().await)),
        None => {
            let why = "it is starting: its log says what it waits for".to_owned();
            Json(status.outside.check_up(why).await)
        }
    }
}
