//! One connection, and when it may be closed.
//!
//! Between its accept and the first byte of a request a client may need a moment, and so may the next
//! request on a connection that is kept: closing then would refuse what is on its way. So after the
//! stop has begun a connection without a request is closed only once nothing has come for a while.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, Request, StatusCode, header::CONNECTION},
    response::Response,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{HeadLimits, PeerCertificates, Refusals, ServerTls};
use crate::telemetry::Chain;

/// For a TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long after its last byte a connection is waited for whose first request, or part of whose next one, has
/// not come yet.
const ASKING_QUIET: Duration = Duration::from_secs(3);
/// The same for one that is kept for a next request.
const KEPT_QUIET: Duration = Duration::from_millis(500);
/// What is on its way when the stop begins arrives within this, however quiet it was before.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// What all connections of a listener share.
pub(super) struct House {
    pub(super) routes: Router,
    pub(super) tls: Option<ServerTls>,
    pub(super) limits: HeadLimits,
    pub(super) refusals: Arc<Refusals>,
    pub(super) stop: CancellationToken,
}

impl House {
    /// Until the connection ends or is upgraded. Dropping it cuts the connection.
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream, client: SocketAddr) {
        if let Err(error) = self.talk(stream, client).await {
            self.refusals.note(Some(client), Chain(&error));
        }
    }

    /// An error is that of a client who got no further than the handshake.
    async fn talk(&self, stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let activity = Arc::new(Activity::new());
        let stream = Watched {
            stream,
            activity: Arc::clone(&activity),
        };
        let Some(tls) = &self.tls else {
            self.http(stream, client, None, &activity).await;
            return Ok(());
        };
        let handshake = timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(tls.current()).accept(stream));
        let stream = tokio::select! {
            biased;
            accepted = handshake => accepted??,
            () = activity.ends(&self.stop) => return Ok(()),
        };
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = PeerCertificates(certificates.iter().map(|der| der.clone().into_owned()).collect());
        self.http(stream, client, Some(certificates), &activity).await;
        Ok(())
    }

    async fn http<S>(&self, stream: S, client: SocketAddr, certificates: Option<PeerCertificates>, activity: &Activity)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            activity.has_asked.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(client));
            if let Some(certificates) = &certificates {
                request.extensions_mut().insert(certificates.clone());
            }
            self.answer(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.next)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let mut first = pin!(sleep(self.limits.first));
        let mut is_first = true;
        let mut end = pin!(activity.ends(&self.stop));
        // What a connection ends with is the client's business: it hung up, or sent what is no HTTP.
        loop {
            tokio::select! {
                biased;
                _ = &mut connection => return,
                () = &mut first, if is_first => {
                    if !activity.has_asked() {
                        return;
                    }
                    is_first = false;
                }
                () = &mut end => break,
            }
        }
        if activity.has_asked() {
            // Ends at once when it is idle, else with the answer.
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response, Infallible> {
        let mut response = self.routes.clone().oneshot(request).await?;
        if self.stop.is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// What a connection has brought so far.
struct Activity {
    last_byte: Mutex<Instant>,
    /// A request has come.
    has_asked: AtomicBool,
    /// Something has come since we wrote last.
    is_asking: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self {
            last_byte: Mutex::new(Instant::now()),
            has_asked: AtomicBool::new(false),
            is_asking: AtomicBool::new(false),
        }
    }

    fn has_asked(&self) -> bool {
        self.has_asked.load(Ordering::Relaxed)
    }

    fn byte(&self) {
        *self.last_byte.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.is_asking.store(true, Ordering::Relaxed);
    }

    fn answered(&self) {
        self.is_asking.store(false, Ordering::Relaxed);
    }

    /// When it may be closed, if nothing more comes.
    fn end(&self, stopped: Instant) -> Instant {
        let is_kept = self.has_asked() && !self.is_asking.load(Ordering::Relaxed);
        let quiet = if is_kept { KEPT_QUIET } else { ASKING_QUIET };
        let last_byte = *self.last_byte.lock().unwrap_or_else(PoisonError::into_inner);
        (last_byte + quiet).max(stopped + ON_ITS_WAY)
    }

    /// After the stop has begun, once it may be closed.
    async fn ends(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        let stopped = Instant::now();
        loop {
            let end = self.end(stopped);
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// Notes when bytes come and go.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.byte();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.activity.answered();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.activity.answered();
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
