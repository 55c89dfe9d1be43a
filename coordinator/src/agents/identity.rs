//! Which node speaks: its certificate says so, and nothing in a request can say otherwise.

use std::{sync::Arc, time::SystemTime};

use axum::{extract::FromRequestParts, http::request::Parts};
use chrono::{SubsecRound as _, Utc};
use crabshack_shared::{
    ids::NodeId,
    problem::Problem,
    serve::PeerCertificates,
    tls::{Identity, Role},
};

use crate::{
    api::internal,
    app::App,
    store::{NodeRecord, StoreError},
};

/// A node with a valid certificate.
#[derive(Debug)]
pub(crate) struct Node(pub(crate) NodeId);

/// A node whose certificate may have expired: good for nothing but a new one.
#[derive(Debug)]
pub(crate) struct Renewing(pub(crate) NodeId);

impl FromRequestParts<Arc<App>> for Node {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        admit(parts, app, false).await.map(Self)
    }
}

impl FromRequestParts<Arc<App>> for Renewing {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        admit(parts, app, true).await.map(Self)
    }
}

async fn admit(parts: &Parts, app: &Arc<App>, may_be_expired: bool) -> Result<NodeId, Problem> {
    let node = certified(parts.extensions.get::<PeerCertificates>(), SystemTime::now(), may_be_expired)?;
    match app
        .store
        .reading()
        .and_then(|reading| reading.node(&node))
        .map_err(internal)?
    {
        Some(record) if record.revoked => Err(revoked(&node)),
        Some(_) => {
            app.registry.heard(&node);
            Ok(node)
        }
        None => {
            // Our authority certified it, so an earlier state of the store knew it.
            adopt(app, &node).await.map_err(internal)?;
            app.registry.heard(&node);
            Ok(node)
        }
    }
}

/// What a node that was thrown out is told, and the log.
pub(super) fn revoked(node: &NodeId) -> Problem {
    tracing::warn!(node.id = %node, "refused a node that was revoked");
    Problem::forbidden("this node was revoked: remove its agent data folder and join again")
}

/// Whom the TLS layer let in.
pub(super) fn certified(shown: Option<&PeerCertificates>, now: SystemTime, may_be_expired: bool) -> Result<NodeId, Problem> {
    let certificate = shown
        .and_then(|PeerCertificates(shown)| shown.first())
        .ok_or_else(|| Problem::unauthorized("this route needs a node's certificate: enrol first"))?;
    let identity = Identity::of(certificate).map_err(|error| {
        tracing::warn!("refused a certificate: {error}");
        Problem::forbidden(error.to_string())
    })?;
    let Role::Node(node) = &identity.role else {
        tracing::warn!("refused a certificate that is not a node's");
        return Err(Problem::forbidden("this route is for nodes"));
    };
    if identity.is_expired(now) && !may_be_expired {
        tracing::warn!(node.id = %node, "refused an expired certificate");
        return Err(Problem::forbidden(
            "the node's certificate has expired: it may only be renewed",
        ));
    }
    Ok(node.clone())
}

async fn adopt(app: &Arc<App>, node: &NodeId) -> Result<(), StoreError> {
    tracing::warn!(node.id = %node, "took in a node that the store did not know: the store is new or from an older dump");
    let record = NodeRecord {
        id: node.clone(),
        hostname: String::new(),
        facts: None,
        revoked: false,
        enrolled_at: Utc::now().trunc_subsecs(3),
        certificate_serial: None,
    };
    app.store
        .write(move |writing| match writing.node(&record.id)? {
            Some(_) => Ok(()),
            None => writing.put_node(&record),
        })
        .await
}
