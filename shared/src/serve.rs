//! HTTP/1.1 on a listener whose end refuses nobody.
//!
//! When the stop begins nothing more is accepted: what waits in a listener that somebody else holds
//! is for the next process, what waits in one of our own is still taken. Every accepted connection
//! gets its answer, which says that it is the last one; only a connection that has long been quiet is
//! closed without one (`connection`).

mod connection;
mod refusals;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::Router;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::refusals::Refusals;
use crate::{listen::Listener, telemetry::Chain};

/// After a failed accept, of which the usual reason is that there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client may take for the head of a request.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// For the first one, from the accept or the end of the handshake on.
    pub first: Duration,
    /// For each later one, from the last answer on.
    pub next: Duration,
}

/// The TLS of a listener, to be exchanged while it serves.
#[derive(Debug, Clone)]
pub struct ServerTls(Arc<RwLock<Arc<ServerConfig>>>);

impl ServerTls {
    /// Begins with this one.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(RwLock::new(config)))
    }

    /// For every connection from now on.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An extension of each request that came over TLS: what the client showed, its own certificate first.
#[derive(Debug, Clone, Default)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// One listener with what is served on it. Requests carry `ConnectInfo<SocketAddr>`.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    tls: Option<ServerTls>,
    limits: HeadLimits,
    refusals: Arc<Refusals>,
}

impl Server {
    /// Plain HTTP. What fails is told to `refusals`.
    pub fn new(listener: Listener, limits: HeadLimits, refusals: Arc<Refusals>) -> Self {
        Self {
            listener,
            tls: None,
            limits,
            refusals,
        }
    }

    /// HTTPS.
    #[must_use]
    pub fn with_tls(self, tls: ServerTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Serves until the stop begins, and no longer accepts when this returns.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub async fn serve(self, routes: Router, stop: CancellationToken) -> io::Result<Open> {
        let Listener { socket, is_held } = self.listener;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket)?;
        let open = Open::default();
        let house = Arc::new(connection::House {
            routes,
            tls: self.tls,
            limits: self.limits,
            refusals: self.refusals,
            stop: stop.clone(),
        });
        let take = |stream: TcpStream, client: SocketAddr| {
            let (house, cut) = (Arc::clone(&house), open.cut.clone());
            open.connections
                .spawn(async move { cut.run_until_cancelled(house.serve(stream, client)).await });
        };
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, client)) => take(stream, client),
                Err(error) => {
                    house.refusals.note(None, Chain(&error));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if !is_held && let Ok(listener) = listener.into_std() {
            while let Ok((stream, client)) = listener.accept() {
                match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                    Ok(stream) => take(stream, client),
                    Err(error) => house.refusals.note(Some(client), Chain(&error)),
                }
            }
        }
        Ok(open)
    }
}

/// The connections of a server that accepts no more.
#[derive(Debug, Default)]
pub struct Open {
    connections: TaskTracker,
    cut: CancellationToken,
}

impl Open {
    /// Waits for their ends; what is open after `limit` is cut. False: something was cut.
    pub async fn finish(self, limit: Duration) -> bool {
        self.connections.close();
        if timeout(limit, self.connections.wait()).await.is_ok() {
            return true;
        }
        self.cut.cancel();
        self.connections.wait().await;
        false
    }
}

#[cfg(test)]
mod tests;
