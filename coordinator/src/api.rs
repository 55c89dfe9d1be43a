//! The public API's handlers, one file per resource: read the request, ask or change the store, answer.
//! No handler waits for a node, except to fetch logs.

pub(crate) mod extract;
pub(crate) mod health;
pub(crate) mod images;
pub(crate) mod instances;
pub(crate) mod nodes;
pub(crate) mod registries;

use std::error::Error;

use crabshack_shared::{problem::Problem, telemetry::Chain};

/// Logs what is our fault, and answers that it is.
pub(crate) fn internal(error: impl Error) -> Problem {
    tracing::error!("a request failed: {}", Chain(&error));
    Problem::internal()
}
