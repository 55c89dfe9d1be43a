//! The only place that knows how to reach a node: today a direct mTLS dial to its data plane. A
//! reverse tunnel for nodes that cannot be dialled would replace this file and nothing else.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use crabshack_shared::{
    agent_api::{
        TUNNEL_PROTOCOL,
        v1::{Logs, Stats},
    },
    exec,
    ids::{InstanceId, NodeId},
    tls,
};
use http::{
    HeaderName, Request, Response, StatusCode,
    header::{CONNECTION, HOST, UPGRADE},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{app::NodeDial, ca::Ca};

/// For the TCP connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For the TLS handshake: while a node agent restarts, connections wait in its listener.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// A node agent that restarts without such a listener refuses for a moment, and one that is killed breaks
/// off: it is dialled again for so long.
const RESTART_LIMIT: Duration = Duration::from_secs(5);
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// For the node's answer; the node itself gives an instance 5 s to accept.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// The most that is taken from a node in one answer, in bytes: all but the logs are far smaller.
const ANSWER_SIZE_LIMIT: usize = 16 * 1024 * 1024;

/// Why a node or an instance on it was not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The dial failed: the machine, the agent or the way to it is down.
    #[error("node {node} cannot be reached at {address}")]
    Unreachable {
        /// Which node.
        node: NodeId,
        /// Where it was dialled.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The agent was reached and broke off.
    #[error("node {node} broke off the conversation")]
    BrokenOff {
        /// Which node.
        node: NodeId,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent does not want this.
    #[error("node {node} refused with status {status}")]
    Refused {
        /// Which node.
        node: NodeId,
        /// What it answered.
        status: StatusCode,
    },
    /// The agent has no such instance, or it has no address now.
    #[error("instance {instance} is not up on node {node}")]
    NotHere {
        /// Which node.
        node: NodeId,
        /// Which instance.
        instance: InstanceId,
    },
    /// The instance does not accept connections.
    #[error("instance {instance} on node {node} does not accept connections")]
    NotAnswering {
        /// Which node.
        node: NodeId,
        /// Which instance.
        instance: InstanceId,
    },
}

/// Bytes to and from a port of an instance, or a command in it.
pub(crate) struct Tunnel(TokioIo<Upgraded>);

/// Dials nodes as the coordinator.
#[derive(Clone)]
pub(crate) struct Connector {
    /// Asked for every dial, so that a renewed certificate is used at once; the same `Arc` between
    /// renewals keeps TLS sessions resumable.
    identity: Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>,
}

impl Connector {
    /// Speaks with the coordinator's certificate.
    pub(crate) fn new(ca: Arc<Ca>) -> Self {
        Self::with_identity(move || ca.client_config())
    }

    /// Speaks with whatever identity is current.
    pub(crate) fn with_identity(identity: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static) -> Self {
        Self {
            identity: Arc::new(identity),
        }
    }

    /// Opens a byte stream to a port of an instance. It is open end to end: the instance accepted.
    pub(crate) async fn tunnel(&self, node: &NodeDial, instance: InstanceId, port: u16) -> Result<Tunnel, ConnectError> {
        self.upgraded(node, instance, &format!("tunnel/{port}"), TUNNEL_PROTOCOL)
            .await
    }

    /// Opens a stream of frames to a command that the first of them asks for.
    pub(crate) async fn exec(&self, node: &NodeDial, instance: InstanceId) -> Result<Tunnel, ConnectError> {
        self.upgraded(node, instance, "exec", exec::PROTOCOL).await
    }

    async fn upgraded(
        &self,
        node: &NodeDial,
        instance: InstanceId,
        what: &str,
        protocol: &'static str,
    ) -> Result<Tunnel, ConnectError> {
        let path = format!("/v1/instances/{instance}/{what}");
        let headers = [(CONNECTION, "Upgrade"), (UPGRADE, protocol)];
        let mut response = self.ask(node, &path, &headers).await?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let stream = hyper::upgrade::on(&mut response).await;
                Ok(Tunnel(TokioIo::new(stream.map_err(|error| broken_off(node, error))?)))
            }
            StatusCode::BAD_GATEWAY => Err(ConnectError::NotAnswering {
                node: node.id.clone(),
                instance,
            }),
            status => Err(refused(node, instance, status)),
        }
    }

    /// The last lines of an instance's log.
    pub(crate) async fn logs(&self, node: &NodeDial, instance: InstanceId, tail: u32) -> Result<String, ConnectError> {
        let answer = self.read(node, instance, &format!("logs?tail={tail}")).await?;
        let Logs { logs } = self.whole(node, answer).await?;
        Ok(logs)
    }

    /// The last lines of an instance's log, then each further one, as text. It ends with the
    /// instance; who drops it hangs up.
    pub(crate) async fn follow_logs(&self, node: &NodeDial, instance: InstanceId, tail: u32) -> Result<Body, ConnectError> {
        let text = self.read(node, instance, &format!("logs?tail={tail}&follow=true")).await?;
        Ok(Body::new(text))
    }

    /// What an instance uses; all zero while it does not run.
    pub(crate) async fn stats(&self, node: &NodeDial, instance: InstanceId) -> Result<Stats, ConnectError> {
        let answer = self.read(node, instance, "stats").await?;
        self.whole(node, answer).await
    }

    /// The answer to a question about an instance.
    async fn read(&self, node: &NodeDial, instance: InstanceId, what: &str) -> Result<Incoming, ConnectError> {
        let response = self.ask(node, &format!("/v1/instances/{instance}/{what}"), &[]).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(refused(node, instance, status)),
        }
    }

    /// An answer that is one JSON value.
    async fn whole<T: DeserializeOwned>(&self, node: &NodeDial, answer: Incoming) -> Result<T, ConnectError> {
        let body = timeout(ANSWER_LIMIT, Limited::new(answer, ANSWER_SIZE_LIMIT).collect())
            .await
            .map_err(|_| broken_off(node, io::Error::from(io::ErrorKind::TimedOut)))?
            .map_err(|error| broken_off(node, error))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| broken_off(node, error))
    }

    /// One request, which changes nothing on the node; again while the node agent restarts.
    async fn ask(&self, node: &NodeDial, path: &str, headers: &[(HeaderName, &str)]) -> Result<Response<Incoming>, ConnectError> {
        let began = Instant::now();
        loop {
            match self.ask_once(node, path, headers).await {
                Err(error) if broke(&error) && began.elapsed() < RESTART_LIMIT => sleep(RESTART_PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// One request on a connection of its own.
    async fn ask_once(
        &self,
        node: &NodeDial,
        path: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<Response<Incoming>, ConnectError> {
        let stream = self.dial(node).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken_off(node, error))?;
        // Ends with the answer, with the upgrade, or when `sender` is dropped.
        tokio::spawn(async move { connection.with_upgrades().await.unwrap_or_default() });
        let request = Request::get(path).header(HOST, tls::node_name(&node.id));
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name, *value))
            .body(Body::empty())
            .map_err(|error| broken_off(node, error))?;
        timeout(ANSWER_LIMIT, sender.send_request(request))
            .await
            .map_err(|_| broken_off(node, io::Error::from(io::ErrorKind::TimedOut)))?
            .map_err(|error| broken_off(node, error))
    }

    async fn dial(&self, node: &NodeDial) -> Result<TlsStream<TcpStream>, ConnectError> {
        self.try_dial(node).await.map_err(|source| ConnectError::Unreachable {
            node: node.id.clone(),
            address: node.address.clone(),
            source,
        })
    }

    async fn try_dial(&self, node: &NodeDial) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(tls::node_name(&node.id)).map_err(io::Error::other)?;
        let stream = timeout(CONNECT_LIMIT, TcpStream::connect(&node.address)).await??;
        stream.set_nodelay(true)?;
        timeout(HANDSHAKE_LIMIT, TlsConnector::from((self.identity)()).connect(name, stream)).await?
    }
}

/// True when nobody was there, or the other side went away before it answered: who comes next may answer.
pub(crate) fn broke(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_canceled() || error.is_closed())
        {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, UnexpectedEof};
            let kinds = [
                ConnectionRefused,
                ConnectionReset,
                ConnectionAborted,
                BrokenPipe,
                UnexpectedEof,
            ];
            if kinds.contains(&error.kind()) {
                return true;
            }
        }
        next = error.source();
    }
    false
}

fn broken_off(node: &NodeDial, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectError {
    ConnectError::BrokenOff {
        node: node.id.clone(),
        source: source.into(),
    }
}

fn refused(node: &NodeDial, instance: InstanceId, status: StatusCode) -> ConnectError {
    let node = node.id.clone();
    match status {
        StatusCode::NOT_FOUND => ConnectError::NotHere { node, instance },
        status => ConnectError::Refused { node, status },
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Connection for Tunnel {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
