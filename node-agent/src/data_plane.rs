//! What the coordinator dials: byte streams to the ports of instances, their logs and their use. Nobody but
//! the coordinator is served, and no port is dialled that a recipe does not name.

mod tenants;
mod tunnel;

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
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
use axum_server::{
    Handle,
    accept::NoDelayAcceptor,
    tls::TlsInfo,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use bytes::Bytes;
use crabshack_shared::{
    agent_api::v1::{Logs, Stats},
    ids::InstanceId,
    problem::Problem,
    shutdown::Shutdown,
    telemetry::Chain,
    tls::{Identity, Role},
};
use futures_util::{Stream, StreamExt as _};
use hyper_util::rt::TokioTimer;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use tracing::{debug, warn};

pub(crate) use self::tenants::Tenants;
use crate::logs::MOST_LINES;

/// From the end of the handshake to the end of the first request's head, and between requests.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a request may go on once the agent is told to end; tunnels end at once.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Lines of log when nobody says how many.
const DEFAULT_TAIL: u32 = 100;

/// What the data plane needs to know of the instances on this node.
pub(crate) trait Instances: Send + Sync + 'static {
    /// Where an instance's container is, and which of its ports may be dialled. None: no such
    /// instance here, or it is down.
    fn address(&self, instance: InstanceId) -> Option<(Ipv4Addr, &[u16])>;

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
    shutdown: Shutdown,
}

/// Serves until the shutdown begins. The listener is bound by the caller, before anything is
/// served; `tls` is a handle: reload it when the node's certificate is renewed.
///
/// # Errors
/// When the listener cannot be used.
pub(crate) async fn serve<I: Instances>(
    listener: TcpListener,
    instances: Arc<I>,
    tls: RustlsConfig,
    shutdown: Shutdown,
) -> io::Result<()> {
    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listener)?
        .acceptor(RustlsAcceptor::new(tls).acceptor(NoDelayAcceptor::new()))
        .first_request_timeout(HEAD_LIMIT)
        .accept_error_handler(|client: Option<&SocketAddr>, error| {
            warn!(?client, "data plane: a connection was refused: {}", Chain(error));
        })
        .handle(handle.clone());
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT);
    let stop = {
        let token = shutdown.token.clone();
        async move {
            token.cancelled().await;
            handle.graceful_shutdown(Some(STOP_LIMIT));
        }
    };
    let routes = routes(Arc::new(DataPlane { instances, shutdown }));
    let service = routes.into_make_service_with_connect_info::<SocketAddr>();
    let (served, ()) = tokio::join!(
        async {
            let served = server.serve(service).await;
            debug!("data plane: closed");
            served
        },
        stop
    );
    served
}

fn routes<I: Instances>(plane: Arc<DataPlane<I>>) -> Router {
    Router::new()
        .route("/v1/instances/{id}/tunnel/{port}", get(open_tunnel))
        .route("/v1/instances/{id}/logs", get(read_logs))
        .route("/v1/instances/{id}/stats", get(read_stats))
        .fallback(async || Problem::not_found("no such route on a node's data plane"))
        .layer(middleware::from_fn(only_the_coordinator))
        .with_state(plane)
}

/// TLS has checked that the certificate is valid and of our authority; here is checked whose it is.
async fn only_the_coordinator(
    Extension(info): Extension<Arc<TlsInfo>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let certificate = info.peer_certificates.first().map(|der| CertificateDer::from(der.as_slice()));
    let role = certificate
        .and_then(|certificate| Identity::of(&certificate).ok())
        .map(|identity| identity.role);
    if role == Some(Role::Coordinator) {
        return next.run(request).await;
    }
    warn!(%client, ?role, path = request.uri().path(), "data plane: somebody who is not the coordinator was refused");
    Problem::forbidden("only the coordinator may use a node's data plane").into_response()
}

async fn open_tunnel<I: Instances>(
    State(plane): State<Arc<DataPlane<I>>>,
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
            warn!(%instance, port, "data plane: a port that the recipe does not name was refused");
            return Err(Problem::forbidden(format!("port {port} of this instance may not be dialled")));
        }
        address
    };
    tunnel::open((address, port).into(), request, &plane.shutdown).await
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
    let stop = plane.shutdown.token.clone();
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
