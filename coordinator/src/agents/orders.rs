//! `GET /v1/orders`: a long poll that answers when the node's orders differ from those it has.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use crabshack_shared::{
    agent_api::{
        LONG_POLL_SECONDS,
        v1::{Desired, InstanceOrder, InstanceSpec, Orders},
    },
    ids::NodeId,
    problem::Problem,
    telemetry::Chain,
};
use serde::Deserialize;

use super::identity::{self, Node};
use crate::{
    api::internal,
    app::App,
    images,
    store::{InstanceRecord, StoreError},
};

/// What the node has already.
#[derive(Debug, Deserialize)]
pub(crate) struct Poll {
    revision: Option<u64>,
}

/// Answers at once when the revision differs, when it changes, or after a while with 204.
pub(crate) async fn poll(
    State(app): State<Arc<App>>,
    Node(node): Node,
    query: Result<Query<Poll>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(poll) = query.map_err(|error| Problem::invalid(error.body_text()))?;
    let mut revisions = app.registry.follow(&node);
    let waiting = tokio::time::sleep(Duration::from_secs(LONG_POLL_SECONDS));
    tokio::pin!(waiting);
    loop {
        let revision = *revisions.borrow_and_update();
        if poll.revision != Some(revision) {
            let orders = orders_of(&app, &node, revision).map_err(internal)?;
            return Ok(match orders {
                Some(orders) => Json(orders).into_response(),
                None => identity::revoked(&node).into_response(),
            });
        }
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() { return Ok(StatusCode::NO_CONTENT.into_response()) },
            () = &mut waiting => return Ok(StatusCode::NO_CONTENT.into_response()),
            () = app.shutdown.token.cancelled() => return Ok(StatusCode::NO_CONTENT.into_response()),
        }
    }
}

/// Everything the node should run or let go of. None: it was revoked meanwhile.
pub(crate) fn orders_of(app: &App, node: &NodeId, revision: u64) -> Result<Option<Orders>, StoreError> {
    let reading = app.store.reading()?;
    if reading.node(node)?.is_some_and(|record| record.revoked) {
        return Ok(None);
    }
    // Of a deleted one whose disk is kept, only those that it left behind hear: they must not go on.
    let left_behind = reading
        .retired_instances()?
        .into_iter()
        .filter(|record| record.left.contains(node));
    let instances = reading
        .instances()?
        .into_iter()
        .filter(|record| record.was_on(node))
        .chain(left_behind)
        .filter_map(|record| readable(order(app, node, record)))
        .collect();
    Ok(Some(Orders {
        revision,
        instances,
        images: Some(images::orders(app, &reading)?),
    }))
}

/// One record that cannot be read must not keep a node from its other orders: what is missing from them
/// means nothing to it.
fn readable(order: Result<InstanceOrder, StoreError>) -> Option<InstanceOrder> {
    order
        .inspect_err(|error| tracing::error!(error = %Chain(error), "an instance's record cannot be read; it stays as it is"))
        .ok()
}

/// What a node should do about an instance that it has or had.
fn desired(record: &InstanceRecord, node: &NodeId) -> Desired {
    match record.desired {
        _ if record.assignment.as_ref() == Some(node) => record.desired,
        // A copy of the disk that was left behind goes with it.
        Desired::Deleted { purge: true } => record.desired,
        _ => Desired::Elsewhere,
    }
}

fn order(app: &App, node: &NodeId, record: InstanceRecord) -> Result<InstanceOrder, StoreError> {
    let secrets = app.store.secrets(&record)?;
    Ok(InstanceOrder {
        id: record.id,
        generation: record.generation,
        desired: desired(&record, node),
        restarts: record.restarts,
        spec_revision: record.spec_revision,
        on_disconnect: record.on_disconnect,
        spec: InstanceSpec {
            service_type: record.spec.service_type,
            image: record.spec.image,
            resources: record.spec.resources,
            ssh_port: record.ssh_port,
            ssh_pubkey: record.spec.ssh_pubkey,
            nearai_api_url: record.spec.nearai_api_url,
            profile: record.spec.profile,
            public_origin: app.settings.origin(&record.name),
        },
        secrets,
        name: record.name,
    })
}
