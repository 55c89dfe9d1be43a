//! Servers that stop while clients come, on sockets that others hold as a service manager does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::routing::get;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const LIMITS: HeadLimits = HeadLimits {
    first: Duration::from_secs(15),
    next: Duration::from_secs(75),
};
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// What serves, with a handler that waits until it is let go on.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    asked: Arc<Notify>,
    go_on: Arc<Notify>,
    ended: JoinHandle<bool>,
}

fn bound() -> Listener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()
}

fn start(listener: Listener, tls: Option<ServerTls>) -> Running {
    let (asked, go_on, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()), CancellationToken::new());
    let slow = {
        let (asked, go_on) = (Arc::clone(&asked), Arc::clone(&go_on));
        async move || {
            asked.notify_one();
            go_on.notified().await;
            "slow"
        }
    };
    let routes = Router::new().route("/", get(async || "quick")).route("/slow", get(slow));
    let address = listener.address().unwrap();
    let mut server = Server::new(listener, LIMITS, Arc::new(Refusals::new("test")));
    server.tls = tls;
    let token = stop.clone();
    Running {
        address,
        stop,
        asked,
        go_on,
        ended: tokio::spawn(async move { server.serve(routes, token).await.unwrap().finish(STOP_LIMIT).await }),
    }
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.to_lowercase()
}

/// An answer of a kept connection: to the end of its body.
async fn kept(stream: &mut TcpStream) {
    let mut text = Vec::new();
    while !text.ends_with(b"quick") {
        text.push(stream.read_u8().await.unwrap());
    }
}

#[tokio::test]
async fn connection__should_be_answered_that_was_accepted_before_the_stop_and_asks_after_it() {
    let server = start(bound(), None);
    let mut early = TcpStream::connect(server.address).await.unwrap();
    let mut kept_open = TcpStream::connect(server.address).await.unwrap();
    kept_open.write_all(REQUEST).await.unwrap();
    kept(&mut kept_open).await;
    server.stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    kept_open.write_all(REQUEST).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    early.write_all(REQUEST).await.unwrap();
    for stream in [&mut early, &mut kept_open] {
        let answer = rest(stream).await;
        assert!(
            answer.starts_with("http/1.1 200") && answer.contains("connection: close"),
            "{answer}"
        );
    }
    assert!(server.ended.await.unwrap());
}

#[tokio::test]
async fn answer__should_be_finished_after_the_stop() {
    let server = start(bound(), None);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.asked.notified().await;
    server.stop.cancel();
    // Longer than any quiet connection without a request is waited for.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    server.go_on.notify_one();
    let answer = rest(&mut stream).await;
    assert!(
        answer.starts_with("http/1.1 200") && answer.contains("connection: close") && answer.ends_with("slow"),
        "{answer}"
    );
    assert!(server.ended.await.unwrap());
}

#[tokio::test]
async fn stop__should_not_wait_for_the_long_quiet() {
    let server = start(bound(), None);
    let mut never_asks = TcpStream::connect(server.address).await.unwrap();
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(REQUEST).await.unwrap();
    kept(&mut idle).await;
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let began = Instant::now();
    server.stop.cancel();
    assert_eq!(never_asks.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    assert!(server.ended.await.unwrap());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn connection__should_be_cut_that_goes_on_for_too_long() {
    let server = start(bound(), None);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.asked.notified().await;
    server.stop.cancel();
    assert!(!server.ended.await.unwrap());
    assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn queue__should_be_answered_here_or_left_to_who_holds_it() {
    let own = start(bound(), None);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let held = Listener {
        socket: listener.try_clone().unwrap(),
        is_held: true,
    };
    let held = start(held, None);
    // Nobody accepts between these: the runtime has one thread, and this is it.
    own.stop.cancel();
    held.stop.cancel();
    let mut to_own = TcpStream::from_std(connected(own.address)).unwrap();
    let mut to_held = TcpStream::from_std(connected(held.address)).unwrap();
    to_own.write_all(REQUEST).await.unwrap();
    assert!(rest(&mut to_own).await.contains("connection: close"));
    assert!(own.ended.await.unwrap() && held.ended.await.unwrap());
    let next = start(
        Listener {
            socket: listener,
            is_held: true,
        },
        None,
    );
    to_held.write_all(REQUEST).await.unwrap();
    kept(&mut to_held).await;
    next.stop.cancel();
}

fn connected(address: SocketAddr) -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

fn tls() -> (ServerTls, TlsConnector) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["node".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (ServerTls::new(Arc::new(server)), TlsConnector::from(Arc::new(client)))
}

#[tokio::test]
async fn handshake__should_be_finished_and_what_follows_answered() {
    let (tls, connector) = tls();
    let server = start(bound(), Some(tls));
    let stream = TcpStream::connect(server.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut stream = connector
        .connect(ServerName::try_from("node").unwrap(), stream)
        .await
        .unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(server.ended.await.unwrap());
}

/// A process after the other on one socket, under clients who each open a connection, hesitate, and ask;
/// some ask twice. Nobody is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts__should_refuse_nobody() {
    const RESTARTS: usize = 40;
    let (tls, connector) = tls();
    for tls in [None, Some(tls)] {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for number in 0..8_u64 {
            let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
            let connector = tls.is_some().then(|| connector.clone());
            clients.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let stream = TcpStream::connect(address).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(number * 3)).await;
                    match &connector {
                        None => ask(stream).await,
                        Some(connector) => {
                            let name = ServerName::try_from("node").unwrap();
                            ask(connector.connect(name, stream).await.unwrap()).await;
                        }
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for restart in 0..RESTARTS {
            let before = asked.load(Ordering::Relaxed);
            let held = Listener {
                socket: socket.try_clone().unwrap(),
                is_held: true,
            };
            let server = start(held, tls.clone());
            while asked.load(Ordering::Relaxed) < before + 8 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(137 * restart as u64)).await;
            server.stop.cancel();
            assert!(server.ended.await.unwrap(), "restart {restart}");
        }
        let last = start(
            Listener {
                socket: socket.try_clone().unwrap(),
                is_held: true,
            },
            tls,
        );
        over.store(true, Ordering::Relaxed);
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        last.stop.cancel();
    }
}

/// Asks, and asks again unless told that the answer is the last one.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    for _ in 0..2 {
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"quick") {
            answer.push(stream.read_u8().await.unwrap());
        }
        if String::from_utf8(answer).unwrap().contains("connection: close") {
            return;
        }
    }
}
