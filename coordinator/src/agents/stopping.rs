//! `POST /v1/stopping`: a node agent is about to restart. It accepts nothing any more, so whatever comes
//! now waits for its successor; what is open here ends as soon as nobody is served by it.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};

use super::identity::Node;
use crate::app::App;

/// Answered when no new request takes an open tunnel to the node.
pub(crate) async fn stopping(State(app): State<Arc<App>>, Node(node): Node) -> StatusCode {
    tracing::debug!(node.id = %node, "a node agent stops");
    app.gateway.node_stops(&node);
    StatusCode::NO_CONTENT
}
