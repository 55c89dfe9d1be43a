//! What the coordinator dials: byte streams to the ports of instances, commands in them, their logs and
//! their use. Nobody but the coordinator is served, and no port is dialled that a recipe does not name.

pub(crate) mod exec;
mod tenants;
mod tunnel;

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{ConnectInfo, Path, Query, Request, State},
    http::header::CONTENT_TYPE,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::Bytes;
use crabshack_shared::{
    agent_api::v1::{Logs, Stats},
    ids::InstanceId,
    listen::Listener,
    problem::Problem,
    serve::{HeadLimits, PeerCertificates, Refusals, Server, ServerTls},
    tls::{Identity, Role},
};
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

pub(crate) use self::tenants::Tenants;
use crate::{docker::Docker, logs::MOST_LINES};

const HEAD_LIMITS: HeadLimits = HeadLimits {
    first: Duration::from_secs(10),
    next: Duration::from_secs(10),
};
/// How long a request or a tunnel may go on once the agent is told to end. New ones wait for that long, and
/// the coordinator waits longer.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Lines of log when nobody says how many.
const DEFAULT_TAIL: u32 = 100;

/// What the data plane needs to know of the instances on this node.
pub(crate) trait Instances: Send + Sync + 'static {
    /// Where an instance's container is, and which of its ports may be dialled. None: no such
    /// instance here, or it is down.
    fn address(&self, instance: InstanceId) -> Option<(Ipv4Addr, &[u16])>;

    /// What runs commands in an instance that is to be up.
    fn engine(&self, instance: InstanceId) -> Result<Docker, Problem>;

    /// The last lines of an instance's log, oldest first.
    fn logs(&self, instance: InstanceId, tail: u32) -> impl Future<Output = Result<String, Problem>> + Send;

    /// As [`Self::logs`], then what comes: ends when the instance goes, not when a container does.
    fn follow(&self, instance: InstanceId, tail: u32) -> impl Future<Output = Result<LogStream, Problem>> + Send;

    /// What an instance uses now; for one that is down, what its volume does.
    fn stats(&self, instance: InstanceId) -> impl Future<Output = Result<Stats, Problem>> + Send;
}

/// A log as it grows.
pub(crate) type LogStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

struct DataPlane<I> {
    instances: Arc<I>,
    refusals: Arc<Refusals>,
    tunnels: TaskTracker,
    stop: CancellationToken,
    room: exec::Room,
}

/// Where it listens, and as whom.
pub(crate) struct Door {
    /// Bound by the caller, before anything is served.
    pub(crate) listener: Listener,
    /// Replaced when the node's certificate is renewed.
    pub(crate) tls: ServerTls,
    /// Counts whom it turns away.
    pub(crate) refusals: Arc<Refusals>,
}

/// Serves until the stop begins. Once nothing is accepted any more `farewell` tells the coordinator, so that
/// tunnels end with the requests they serve; the others are cut after a while. Returns when all have ended.
///
/// # Errors
/// When the listener cannot be used.
pub(crate) async fn serve<I: Instances>(
    door: Door,
    instances: Arc<I>,
    stop: CancellationToken,
    farewell: impl Future<Output = ()>,
) -> io::Result<()> {
    let Door { listener, tls, refusals } = door;
    let tunnels = TaskTracker::new();
    let routes = routes(Arc::new(DataPlane {
        instances,
        refusals: Arc::clone(&refusals),
        tunnels: tunnels.clone(),
        stop: stop.clone(),
        room: exec::Room::default(),
    }));
    let server = Server::new(listener, HEAD_LIMITS, refusals).with_tls(tls);
    let open = server.serve(routes, stop).await?;
    let ends = async {
        open.finish(STOP_LIMIT).await;
        tunnels.close();
        tunnels.wait().await;
    };
    let farewell = async {
        farewell.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ends => debug!("data plane: closed"),
        () = farewell => {}
    }
    Ok(())
}

fn routes<I: Instances>(plane: Arc<DataPlane<I>>) -> Router {
    Router::new()
        .route("/v1/instances/{id}/tunnel/{port}", get(open_tunnel))
        .route("/v1/instances/{id}/exec", get(open_exec))
        .route("/v1/instances/{id}/logs", get(read_logs))
        .route("/v1/instances/{id}/stats", get(read_stats))
        .fallback(async || Problem::not_found("no such route on a node's data plane"))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&plane.refusals),
            only_the_coordinator,
        ))
        .with_state(plane)
}

/// TLS has checked that the certificate is valid and of our authority; here is checked whose it is.
async fn only_the_coordinator(
    State(refusals): State<Arc<Refusals>>,
    Extension(PeerCertificates(shown)): Extension<PeerCertificates>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let role = shown
        .first()
        .and_then(|certificate| Identity::of(certificate).ok())
        .map(|identity| identity.role);
    if role == Some(Role::Coordinator) {
        return next.run(request).await;
    }
    let path = request.uri().path();
    refusals.note(
        Some(client),
        format_args!("{role:?} is not the coordinator and asked for {path:?}"),
    );
    Problem::forbidden("only the coordinator may use a node's data plane").into_response()
}

async fn open_tunnel<I: Instances>(
    State(plane): State<Arc<DataPlane<I>>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Path((id, port)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let instance = known(&id)?;
    let port = port
        .parse()
        .map_err(|_| Problem::invalid("a port is a number from 1 to 65535"))?;
    let address = {
        let (address, ports) = plane
            .instances
            .address(instance)
            .ok_or_else(|| Problem::not_found("the instance is not up on this node"))?;
        if !ports.contains(&port) {
            let why = format_args!("the recipe of instance {instance} does not name port {port}");
            plane.refusals.note(Some(client), why);
            return Err(Problem::forbidden(format!("port {port} of this instance may not be dialled")));
        }
        address
    };
    tunnel::open((address, port).into(), request, plane.tunnels.clone(), plane.stop.clone()).await
}

async fn open_exec<I: Instances>(
    State(plane): State<Arc<DataPlane<I>>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let instance = known(&id)?;
    let docker = plane.instances.engine(instance)?;
    exec::open(docker, instance, &plane.room, request, &plane.tunnels, plane.stop.clone())
}

#[derive(Deserialize)]
struct LogsQuery {
    tail: Option<u32>,
    #[serde(default)]
    follow: bool,
}

async fn read_logs<I: Instances>(
    State(plane): State<Arc<DataPlane<I>>>,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Problem> {
    let (instance, tail) = (known(&id)?, query.tail.unwrap_or(DEFAULT_TAIL).min(MOST_LINES));
    if !query.follow {
        let logs = plane.instances.logs(instance, tail).await?;
        return Ok(Json(Logs { logs }).into_response());
    }
    let stop = plane.stop.clone();
    let text = plane.instances.follow(instance, tail).await?;
    let text = text
        .take_until(async move { stop.cancelled().await })
        .map(Ok::<_, Infallible>);
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(text)).into_response())
}

async fn read_stats<I: Instances>(
    State(plane): State<Arc<DataPlane<I>>>,
    Path(id): Path<String>,
) -> Result<Json<Stats>, Problem> {
    Ok(Json(plane.instances.stats(known(&id)?).await?))
}

fn known(id: &str) -> Result<InstanceId, Problem> {
    id.parse().map_err(|_| Problem::not_found("there is no such instance"))
}

#[cfg(test)]
mod tests;
