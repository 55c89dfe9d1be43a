//! One tunnel: an HTTP upgrade on one end, a TCP connection to an instance on the other.

use std::{net::SocketAddr, time::Duration};

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
    agent_api::TUNNEL_PROTOCOL,
    problem::Problem,
    relay::{self, relay},
    telemetry::Chain,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::STOP_LIMIT;

/// How long an instance may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Connects first and answers 101 only then, so that whoever dials learns at once when nobody
/// listens. Once the stop has begun the coordinator ends it with the
/// request that it serves, or it is cut.
pub(super) async fn open(
    address: SocketAddr,
    mut request: Request<Body>,
    tunnels: TaskTracker,
    stop: CancellationToken,
) -> Result<Response, Problem> {
    let wanted = request.headers().get(UPGRADE);
    if wanted.is_none_or(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(TUNNEL_PROTOCOL.as_bytes())) {
        return Err(Problem::invalid(format!("a tunnel is an upgrade to `{TUNNEL_PROTOCOL}`")));
    }
    let instance = connect(address).await.map_err(|error| {
        Problem::unreachable(format!(
            "the instance does not accept connections on port {}: {error}",
            address.port()
        ))
    })?;
    let upgrade = hyper::upgrade::on(&mut request);
    tunnels.spawn(async move {
        let stream = match upgrade.await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => return debug!(%address, "a tunnel was not taken up: {}", Chain(&error)),
        };
        let too_long = async {
            stop.cancelled().await;
            sleep(STOP_LIMIT).await;
        };
        tokio::select! {
            ended = relay(stream, instance, relay::LINGER) => if let Err(error) = ended {
                debug!(%address, "a tunnel broke: {}", Chain(&error));
            },
            () = too_long => debug!(%address, "a tunnel was cut by the stop"),
        }
    });
    Ok((
        StatusCode::SWITCHING_PROTOCOLS,
        [(CONNECTION, "Upgrade"), (UPGRADE, TUNNEL_PROTOCOL)],
    )
        .into_response())
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
