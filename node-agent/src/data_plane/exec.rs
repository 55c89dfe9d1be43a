//! Commands in instances, for the coordinator: an HTTP upgrade on one end, a command's streams on the
//! other.
//!
//! | file | |
//! |---|---|
//! | `session` | one command from its request to its exit code |
//! | `ending` | ends what a command started when nobody listens any more |

pub(crate) mod ending;
mod session;

use axum::{
    body::Body,
    extract::Request,
    http::{
        StatusCode,
        header::{CONNECTION, UPGRADE},
    },
    response::{IntoResponse as _, Response},
};
use crabshack_shared::{
    exec::{PER_INSTANCE, PER_NODE, PROTOCOL, Seat, Seats},
    ids::InstanceId,
    problem::Problem,
    telemetry::Chain,
};
use hyper_util::rt::TokioIo;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use self::session::Session;
use crate::docker::Docker;

/// How many commands run on this node, and in which instances.
#[derive(Debug)]
pub(super) struct Room {
    instances: Seats<InstanceId>,
    node: Seats<()>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            instances: Seats::new(PER_INSTANCE),
            node: Seats::new(PER_NODE),
        }
    }
}

impl Room {
    fn take(&self, instance: InstanceId) -> Result<(Seat<InstanceId>, Seat<()>), Problem> {
        let full = |limit, place| Problem::too_many(format!("{limit} commands run {place} already: end one of them first"));
        let own = self
            .instances
            .take(&instance)
            .ok_or_else(|| full(PER_INSTANCE, "in this instance"))?;
        let node = self.node.take(&()).ok_or_else(|| full(PER_NODE, "on its node"))?;
        Ok((own, node))
    }
}

/// Answers 101, then runs what the stream asks for; one of `tasks`, which the stop ends.
pub(super) fn open(
    docker: Docker,
    instance: InstanceId,
    room: &Room,
    mut request: Request<Body>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<Response, Problem> {
    let wanted = request.headers().get(UPGRADE);
    if wanted.is_none_or(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes())) {
        return Err(Problem::invalid(format!("a command is an upgrade to `{PROTOCOL}`")));
    }
    let seats = room.take(instance)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tasks.spawn(async move {
        match stop.run_until_cancelled(upgrade).await {
            Some(Ok(stream)) => Session { docker, instance, stop }.run(TokioIo::new(stream)).await,
            Some(Err(error)) => debug!(%instance, "a command was not taken up: {}", Chain(&error)),
            None => {}
        }
        drop(seats);
    });
    Ok((
        StatusCode::SWITCHING_PROTOCOLS,
        [(CONNECTION, "Upgrade"), (UPGRADE, PROTOCOL)],
    )
        .into_response())
}
