//! The HTTP client of the gateway: connections to agents run through tunnels to their nodes, and
//! are kept for the next request for a short while.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use crabshack_shared::ids::{InstanceId, NodeId};
use http::{Request, Uri, uri::PathAndQuery};
use hyper_util::{
    client::legacy::{Client, ResponseFuture},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::{
    agents::connect::{ConnectError, Connector, Tunnel},
    app::NodeDial,
};

/// Node.js closes an idle connection after 5 s: we let go first, so that no request runs into that.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// Idle connections kept per instance.
const IDLE_CONNECTIONS: usize = 8;

/// The ways to all nodes. Each has connections of its own, so that they can be let go of together.
pub(super) struct Tunnels {
    connector: Connector,
    stop: CancellationToken,
    ways: Mutex<HashMap<NodeId, Way>>,
}

/// The way to the agents of one node.
#[derive(Clone)]
pub(super) struct Way {
    client: Client<Dialler, Body>,
    /// Cancelled when this process or the node's agent stops: streams without an end should end.
    pub(super) stop: CancellationToken,
}

impl Tunnels {
    /// Dials with the connector.
    pub(super) fn new(connector: Connector, stop: CancellationToken) -> Self {
        Self {
            connector,
            stop,
            ways: Mutex::default(),
        }
    }

    /// The way to a node; to be asked for anew for each request.
    pub(super) fn to(&self, node: &NodeId) -> Way {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = ways.get(node) {
            return way.clone();
        }
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .set_host(false)
            .build(Dialler(self.connector.clone()));
        let way = Way {
            client,
            stop: self.stop.child_token(),
        };
        ways.insert(node.clone(), way.clone());
        way
    }

    /// With the client go its idle connections; one that is in use ends with its request.
    pub(super) fn node_stops(&self, node: &NodeId) {
        let way = self.ways.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        if let Some(way) = way {
            way.stop.cancel();
        }
    }
}

impl Way {
    /// Sends a request whose URI came from [`Destination::uri`].
    pub(super) fn send(&self, request: Request<Body>) -> ResponseFuture {
        self.client.request(request)
    }
}

/// A port of an instance on a node. The client keys its connections by the URI's authority, so the
/// authority holds everything that the dialler needs: it never leaves this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) instance: InstanceId,
    pub(super) port: u16,
    pub(super) node: NodeDial,
}

impl Destination {
    /// The URI of something behind this destination.
    pub(super) fn uri(&self, path: PathAndQuery) -> Result<Uri, http::Error> {
        let address: String = self.node.address.bytes().map(|byte| format!("{byte:02x}")).collect();
        Uri::builder()
            .scheme("http")
            .authority(format!("{}.{}.{address}:{}", self.instance, self.node.id, self.port))
            .path_and_query(path)
            .build()
    }

    fn read(uri: &Uri) -> Option<Self> {
        let mut parts = uri.host()?.splitn(3, '.');
        let instance = parts.next()?.parse().ok()?;
        let id = parts.next()?.parse().ok()?;
        let address = parts.next()?.as_bytes();
        let address = address
            .chunks(2)
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        Some(Self {
            instance,
            port: uri.port_u16()?,
            node: NodeDial {
                id,
                address: String::from_utf8(address).ok()?,
            },
        })
    }
}

/// Why the client got no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The URI was not made by [`Destination::uri`].
    #[error("`{0}` is not a destination")]
    NotADestination(Uri),
    /// The node or the instance was not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

#[derive(Clone)]
struct Dialler(Connector);

impl Service<Uri> for Dialler {
    type Response = TokioIo<Tunnel>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.0.clone();
        Box::pin(async move {
            let to = Destination::read(&uri).ok_or(DialError::NotADestination(uri))?;
            let tunnel = connector.tunnel(&to.node, to.instance, to.port).await?;
            Ok(TokioIo::new(tunnel))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination__should_survive_its_uri_with_the_path_untouched() {
        for address in ["127.0.0.1:7702", "[2001:db8::1]:7702", "node-7.example.com:7702"] {
            let destination = Destination {
                instance: InstanceId::random(),
                port: 18789,
                node: NodeDial {
                    id: NodeId::random(),
                    address: address.to_owned(),
                },
            };
            let path = "//a/../%2e%2E/b%2Fc?x=%20&y";
            let uri = destination.uri(PathAndQuery::from_static(path)).unwrap();
            assert_eq!(uri.path_and_query().unwrap(), path);
            assert_eq!(Destination::read(&uri), Some(destination));
        }
        assert_eq!(Destination::read(&Uri::from_static("http://localhost:80/")), None);
    }
}
