//! `/nodes`: the machines, how they join and how they are thrown out.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, RawPathParams, State},
    http::{StatusCode, request::Parts},
};
use chrono::{SubsecRound as _, Utc};
use crabshack_shared::{
    api::nodes::{JoinTokenAnswer, Node, NodeDetails, NodeInstance, NodeStatus},
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
    placement, status,
    store::{InstanceRecord, NodeRecord, StoreError},
};

/// `GET /nodes`: a bare array, as clients expect it. Revoked nodes are shown while instances are
/// recorded on them.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<Vec<Node>>, Problem> {
    let reading = app.store.reading().map_err(internal)?;
    let claims = reading.claims().map_err(internal)?;
    let nodes = reading.nodes().map_err(internal)?;
    Ok(Json(
        nodes
            .into_iter()
            .map(|node| {
                let instances = assigned(&node.id, &claims).count();
                describe(&app, node, &claims, instances)
            })
            .filter(|node| node.status != NodeStatus::Revoked || node.instances > 0)
            .collect(),
    ))
}

/// `GET /nodes/{id}`: the same of one, with its instances and what was found wrong there. A revoked one
/// is shown, too.
pub(crate) async fn show(State(app): State<Arc<App>>, NodeNamed(id): NodeNamed) -> Result<Json<NodeDetails>, Problem> {
    let details = details(&app, &id).map_err(internal)?;
    details.map(Json).ok_or_else(no_such_node)
}

fn details(app: &App, id: &NodeId) -> Result<Option<NodeDetails>, StoreError> {
    let reading = app.store.reading()?;
    let Some(node) = reading.node(id)? else {
        return Ok(None);
    };
    let claims = reading.claims()?;
    let alive = app.registry.is_alive(id);
    let mut instances = assigned(id, &claims)
        .map(|record| {
            let observation = reading.observation(record.id)?;
            Ok(NodeInstance {
                id: record.id,
                name: record.name.clone(),
                phase: status::of(record, observation.as_ref(), alive).phase.to_owned(),
                pending_change: status::pending_change(record, observation.as_ref()),
            })
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    instances.sort_by(|left, right| left.name.as_str().cmp(right.name.as_str()));
    Ok(Some(NodeDetails {
        findings: app.registry.findings(id),
        node: describe(app, node, &claims, instances),
    }))
}

/// The instances of a node, without those of which only the disk is left.
fn assigned<'a>(node: &NodeId, claims: &'a [InstanceRecord]) -> impl Iterator<Item = &'a InstanceRecord> {
    claims
        .iter()
        .filter(move |record| record.assignment.as_ref() == Some(node) && !record.disk_only)
}

/// The node in the path. Texts that cannot be ids are not found.
#[derive(Debug)]
pub(crate) struct NodeNamed(NodeId);

impl FromRequestParts<Arc<App>> for NodeNamed {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|error| Problem::invalid(error.body_text()))?;
        let text = params.iter().find_map(|(key, value)| (key == "id").then_some(value));
        text.and_then(|text| text.parse().ok()).map(Self).ok_or_else(no_such_node)
    }
}

fn no_such_node() -> Problem {
    Problem::not_found("there is no such node")
}

/// `POST /nodes/join-token`.
pub(crate) async fn join_token(State(app): State<Arc<App>>) -> Result<Json<JoinTokenAnswer>, Problem> {
    let secret = Secret::random();
    let now = Utc::now().trunc_subsecs(3);
    let expires_at = now + app.settings.join_token_life;
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
    NodeNamed(id): NodeNamed,
    Parameters(parameters): Parameters<Revoke>,
) -> Result<StatusCode, Problem> {
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

/// `claims` are those of all instances, and of disks whose instance is gone.
fn describe<Instances>(app: &App, node: NodeRecord, claims: &[InstanceRecord], instances: Instances) -> Node<Instances> {
    let taken = placement::taken(&node.id, claims.iter());
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
        reserved_memory: Bytes::new(taken.memory),
        cpus: facts.map(|facts| facts.cpus),
        docker_version: facts.map(|facts| facts.docker_version.clone()),
        architecture: facts.map(|facts| facts.architecture.clone()),
        agent_version: facts.map(|facts| facts.agent_version.clone()),
        instances,
        storage: facts.and_then(|facts| facts.storage.clone()),
        reserved_storage: Bytes::new(taken.storage),
        pressure: facts.map(|facts| facts.pressure).unwrap_or_default(),
        unknown_instances: app.registry.unknown(&node.id),
        last_seen: app.registry.last_seen(&node.id),
        enrolled_at: node.enrolled_at,
        warnings: facts.map(|facts| facts.warnings.clone()).unwrap_or_default(),
        id: node.id,
    }
}
