//! A node that speaks just enough of the data plane: mTLS, one request, a tunnel to the agent.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use crabshack_shared::{
    ids::NodeId,
    relay::{self, relay},
    tls::{self, COORDINATOR_NAME},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    HandshakeKind,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::agents::connect::Connector;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }
}

/// What the node has done.
#[derive(Clone, Copy, Default)]
struct Count {
    opened: usize,
    closed: usize,
    /// TLS sessions that were taken up again.
    resumed: usize,
}

pub(super) struct FakeNode {
    pub(super) id: NodeId,
    pub(super) address: SocketAddr,
    pub(super) agent: SocketAddr,
    connector: Connector,
    /// 0: open tunnels; else the status to refuse with.
    refuse_with: Arc<AtomicU16>,
    /// So many tunnels break with their first byte.
    to_break: Arc<AtomicUsize>,
    count: watch::Sender<Count>,
}

impl FakeNode {
    pub(super) async fn start(agent: SocketAddr) -> Self {
        tls::install_provider();
        let (id, authority) = (NodeId::random(), Authority::new());
        let (chain, key) = authority.issue(&tls::node_name(&id));
        let config = tls::server_requiring_clients(authority.0.der(), chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = authority.issue(COORDINATOR_NAME);
        let dialled_with = Arc::new(tls::client(authority.0.der(), Some(identity)).unwrap());
        let node = Self {
            id,
            connector: Connector::with_identity(move || dialled_with.clone()),
            address: listener.local_addr().unwrap(),
            agent,
            refuse_with: Arc::default(),
            to_break: Arc::default(),
            count: watch::Sender::default(),
        };
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (refuse_with, to_break, count) = (node.refuse_with.clone(), node.to_break.clone(), node.count.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, refuse_with, count) = (acceptor.clone(), refuse_with.clone(), count.clone());
                let to_break = to_break.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let is_resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                        count.send_modify(|count| count.resumed += usize::from(is_resumed));
                        serve(stream, agent, refuse_with.load(Ordering::Relaxed), &to_break, &count).await;
                    }
                });
            }
        });
        node
    }

    /// Dials this node as the coordinator.
    pub(super) fn connector(&self) -> Connector {
        self.connector.clone()
    }

    pub(super) fn refuse(&self, status: u16) {
        self.refuse_with.store(status, Ordering::Relaxed);
    }

    pub(super) fn break_tunnels(&self, number: usize) {
        self.to_break.store(number, Ordering::Relaxed);
    }

    pub(super) fn tunnels(&self) -> usize {
        self.count.borrow().opened
    }

    pub(super) fn resumed_sessions(&self) -> usize {
        self.count.borrow().resumed
    }

    pub(super) async fn opened(&self, tunnels: usize) {
        self.wait(|count| count.opened >= tunnels).await;
    }

    /// Waits until every tunnel has ended.
    pub(super) async fn all_closed(&self) {
        self.wait(|count| count.opened == count.closed).await;
    }

    async fn wait(&self, until: impl FnMut(&Count) -> bool) {
        let mut count = self.count.subscribe();
        let limit = std::time::Duration::from_secs(5);
        tokio::time::timeout(limit, count.wait_for(until))
            .await
            .expect("in time")
            .unwrap();
    }
}

async fn serve(
    mut stream: TlsStream<TcpStream>,
    agent: SocketAddr,
    refuse_with: u16,
    to_break: &AtomicUsize,
    count: &watch::Sender<Count>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    if refuse_with != 0 {
        let answer = format!("HTTP/1.1 {refuse_with} No\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    } else if let Some(tail) = head.split(' ').nth(1).unwrap().split("logs?tail=").nth(1) {
        let body = format!(r#"{{"logs":"{tail} lines"}}"#);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    } else {
        assert!(head.to_lowercase().contains("upgrade: crabshack-tunnel"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: crabshack-tunnel\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let agent = TcpStream::connect(agent).await.unwrap();
        count.send_modify(|count| count.opened += 1);
        let breaks = to_break.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if breaks.is_ok() {
            stream.read_u8().await.unwrap();
            count.send_modify(|count| count.closed += 1);
            return;
        }
        drop(relay(stream, agent, relay::LINGER).await);
        count.send_modify(|count| count.closed += 1);
    }
}
