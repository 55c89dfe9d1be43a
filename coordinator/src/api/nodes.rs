//! `/nodes`: the machines, how they join and how they are thrown out.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawPathParams, State},
    http::StatusCode,
};
use chrono::{SubsecRound as _, TimeDelta, Utc};
use crabshack_shared::{
    api::nodes::{JoinTokenAnswer, Node, NodeStatus},
    ids::NodeId,
    problem::{Code, Problem},
    resources::Bytes,
    secret::Secret,
    tls::JoinToken,
};
use serde::Deserialize;

use super::{extract::Parameters, instances::view, internal};
use crate::{
    app::App,
    placement,
    store::{InstanceRecord, NodeRecord, StoreError},
};

/// How long a join token can be used.
const JOIN_TOKEN_LIFE: TimeDelta = TimeDelta::hours(1);

/// `GET /nodes`: a bare array, as clients expect it. Revoked nodes are shown while instances are
/// recorded on them.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<Vec<Node>>, Problem> {
    let reading = app.store.reading().map_err(internal)?;
    let records = reading.instances().map_err(internal)?;
    let nodes = reading.nodes().map_err(internal)?;
    Ok(Json(
        nodes
            .into_iter()
            .map(|node| describe(&app, node, &records))
            .filter(|node| node.status != NodeStatus::Revoked || node.instances > 0)
            .collect(),
    ))
}

/// `POST /nodes/join-token`.
pub(crate) async fn join_token(State(app): State<Arc<App>>) -> Result<Json<JoinTokenAnswer>, Problem> {
    let secret = Secret::random();
    let now = Utc::now().trunc_subsecs(3);
    let expires_at = now + JOIN_TOKEN_LIFE;
    let kept = secret.clone();
    app.store
        .write(move |writing| writing.put_join_token(&kept, expires_at, now))
        .await
        .map_err(internal)?;
    let token = JoinToken {
        secret,
        authority: app.ca.authority().clone(),
    };
    Ok(Json(JoinTokenAnswer {
        token: token.encode(),
        expires_at,
    }))
}

/// Parameters of `DELETE /nodes/{id}`.
#[derive(Debug, Deserialize)]
pub(crate) struct Revoke {
    #[serde(default)]
    force: bool,
}

/// Why a node was not thrown out.
#[derive(Debug, thiserror::Error)]
enum NotRevoked {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no such node")]
    Unknown,
    #[error("{0} instances are on this node: delete them first, or use ?force=true to give them up")]
    Occupied(usize),
}

/// `DELETE /nodes/{id}`: from now on its certificate is refused.
pub(crate) async fn revoke(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    Parameters(parameters): Parameters<Revoke>,
) -> Result<StatusCode, Problem> {
    let id: NodeId = params
        .iter()
        .find_map(|(key, value)| (key == "id").then_some(value))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Problem::not_found("there is no such node"))?;
    let node = id.clone();
    let revoked = app
        .store
        .write(move |writing| {
            let mut record = writing.node(&node)?.filter(|node| !node.revoked).ok_or(NotRevoked::Unknown)?;
            let instances = writing.instances()?;
            let occupied = instances
                .iter()
                .filter(|instance| instance.assignment.as_ref() == Some(&node))
                .count();
            if occupied > 0 && !parameters.force {
                return Err(NotRevoked::Occupied(occupied));
            }
            record.revoked = true;
            writing.put_node(&record)?;
            Ok(())
        })
        .await;
    match revoked {
        Ok(()) => {
            tracing::warn!(node.id = %id, "a node was revoked");
            // Ends its long poll, and lets go of what was being deleted on it.
            app.registry.orders_changed(&id);
            app.reconciler.wake();
            Ok(StatusCode::NO_CONTENT)
        }
        Err(NotRevoked::Store(error)) => Err(internal(error)),
        Err(error @ NotRevoked::Unknown) => Err(Problem::not_found(error.to_string())),
        Err(error @ NotRevoked::Occupied(_)) => Err(Problem::conflict(Code::Conflict, error.to_string())),
    }
}

fn describe(app: &App, node: NodeRecord, records: &[InstanceRecord]) -> Node {
    let ssh = &app.settings.node_ssh;
    let status = if node.revoked {
        NodeStatus::Revoked
    } else if app.registry.is_alive(&node.id) && node.facts.is_some() {
        NodeStatus::Active
    } else {
        NodeStatus::Down
    };
    let facts = node.facts.as_ref();
    Node {
        hostname: node.hostname().to_owned(),
        ssh_host: view::ssh_host(&app.settings, &node).unwrap_or_else(|| node.hostname().to_owned()),
        ssh_port: ssh.port,
        ssh_user: ssh.user.clone(),
        status,
        datacenter: "local".to_owned(),
        drain: false,
        sysbox_available: facts.is_some_and(|facts| facts.runtimes.iter().any(|runtime| runtime == "sysbox-runc")),
        memory: facts.map(|facts| facts.memory),
        reserved_memory: Bytes::new(placement::reserved(&node.id, records)),
        cpus: facts.map(|facts| facts.cpus),
        docker_version: facts.map(|facts| facts.docker_version.clone()),
        architecture: facts.map(|facts| facts.architecture.clone()),
        agent_version: facts.map(|facts| facts.agent_version.clone()),
        instances: records
            .iter()
            .filter(|record| record.assignment.as_ref() == Some(&node.id))
            .count(),
        unknown_instances: app.registry.unknown(&node.id),
        last_seen: app.registry.last_seen(&node.id),
        enrolled_at: node.enrolled_at,
        warnings: facts.map(|facts| facts.warnings.clone()).unwrap_or_default(),
        id: node.id,
    }
}
