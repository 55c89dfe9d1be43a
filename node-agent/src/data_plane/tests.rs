//! The real data plane on a socket, dialled with certificates of a test authority.

use crabshack_shared::{
    ids::NodeId,
    problem::{Code, Problem},
    shutdown::Shutdown,
    tls::{self, COORDINATOR_NAME},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener as AsyncListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;

type Identified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> Identified {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }
}

/// One instance on loopback that may be dialled on one port.
struct OneInstance {
    id: InstanceId,
    ports: [u16; 1],
}

impl Instances for OneInstance {
    fn address(&self, instance: InstanceId) -> Option<(Ipv4Addr, &[u16])> {
        (instance == self.id).then_some((Ipv4Addr::LOCALHOST, &self.ports))
    }

    fn engine(&self, instance: InstanceId) -> Result<Docker, Problem> {
        if instance == self.id {
            Docker::connect("/nonexistent/docker.sock").map_err(|_| Problem::internal())
        } else {
            Err(Problem::not_found("no such instance"))
        }
    }

    async fn logs(&self, instance: InstanceId, tail: u32) -> Result<String, Problem> {
        if instance == self.id {
            Ok(format!("{tail} lines"))
        } else {
            Err(Problem::new(http::StatusCode::NOT_FOUND, Code::NotFound, "no such instance"))
        }
    }

    async fn follow(&self, instance: InstanceId, tail: u32) -> Result<LogStream, Problem> {
        let first = self.logs(instance, tail).await?;
        let never_ends = futures_util::stream::pending();
        Ok(Box::pin(futures_util::stream::iter([Bytes::from(first)]).chain(never_ends)))
    }

    async fn stats(&self, instance: InstanceId) -> Result<Stats, Problem> {
        self.logs(instance, 0).await?;
        Ok(Stats {
            pids: 7,
            ..Stats::default()
        })
    }
}

struct Node {
    id: NodeId,
    authority: Authority,
    address: SocketAddr,
    instance: InstanceId,
    tls: ServerTls,
    refusals: Arc<Refusals>,
    shutdown: Shutdown,
}

impl Node {
    async fn start(instance_port: u16) -> Self {
        tls::install_provider();
        let (id, authority) = (NodeId::random(), Authority::new());
        let (chain, key) = authority.issue(&tls::node_name(&id));
        let config = tls::server_requiring_clients(authority.0.der(), chain, key).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let node = Self {
            id,
            authority,
            address: listener.local_addr().unwrap(),
            instance: InstanceId::random(),
            tls: ServerTls::new(Arc::new(config)),
            refusals: Arc::new(Refusals::new("data plane")),
            shutdown: Shutdown::default(),
        };
        let instances = Arc::new(OneInstance {
            id: node.instance,
            ports: [instance_port],
        });
        let door = Door {
            listener: listener.into(),
            tls: node.tls.clone(),
            refusals: Arc::clone(&node.refusals),
        };
        let served = serve(door, instances, node.shutdown.token.clone(), std::future::ready(()));
        node.shutdown.tasks.spawn(async { served.await.unwrap() });
        node
    }

    async fn dial(&self, identity: Option<Identified>) -> std::io::Result<TlsStream<TcpStream>> {
        let config = tls::client(self.authority.0.der(), identity).unwrap();
        let name = ServerName::try_from(tls::node_name(&self.id)).unwrap();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Asks as whoever the certificate says; the connection closes after an answer that is no 101.
    async fn ask(&self, identity: Option<Identified>, path: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut stream = self.dial(identity).await?;
        let text = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: crabshack-tunnel\r\n\r\n");
        stream.write_all(text.as_bytes()).await?;
        Ok(stream)
    }

    async fn ask_as_coordinator(&self, path: &str) -> TlsStream<TcpStream> {
        self.ask(Some(self.authority.issue(COORDINATOR_NAME)), path).await.unwrap()
    }

    fn tunnel(&self, port: u16) -> String {
        format!("/v1/instances/{}/tunnel/{port}", self.instance)
    }
}

async fn head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

/// An instance that sends back what it gets, and ends when its peer does.
async fn echo() -> u16 {
    let listener = AsyncListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    port
}

/// A port that nobody listens on.
async fn closed_port() -> u16 {
    AsyncListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn tunnel__should_carry_bytes_and_the_end_of_each_half() {
    let port = echo().await;
    let node = Node::start(port).await;
    let mut stream = node.ask_as_coordinator(&node.tunnel(port)).await;
    let answer = head(&mut stream).await;
    assert!(
        answer.starts_with("http/1.1 101") && answer.contains("upgrade: crabshack-tunnel"),
        "{answer}"
    );
    let sent: Vec<u8> = (0..4 * 1024 * 1024).map(|at| (at % 251) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut received = Vec::new();
    let send = async {
        writer.write_all(&sent).await?;
        writer.shutdown().await
    };
    tokio::try_join!(send, reader.read_to_end(&mut received)).unwrap();
    assert!(sent == received);
}

#[tokio::test]
async fn stranger__should_be_refused() {
    let port = echo().await;
    let node = Node::start(port).await;
    // With TLS 1.3 a client learns of its refusal when it reads.
    let refused = async |identity| match node.ask(identity, &node.tunnel(port)).await {
        Ok(mut stream) => stream.read_u8().await.is_err(),
        Err(_) => true,
    };
    assert!(refused(None).await, "without a certificate");
    assert!(
        refused(Some(Authority::new().issue(COORDINATOR_NAME))).await,
        "of a foreign authority"
    );
    for name in [
        tls::node_name(&NodeId::random()),
        tls::node_name(&node.id),
        "someone.example".to_owned(),
    ] {
        let identity = node.authority.issue(&name);
        for path in [
            node.tunnel(port),
            format!("/v1/instances/{}/logs", node.instance),
            "/".to_owned(),
        ] {
            let mut stream = node.ask(Some(identity_clone(&identity)), &path).await.unwrap();
            assert!(head(&mut stream).await.starts_with("http/1.1 403"), "{name} {path}");
        }
    }
}

fn identity_clone((chain, key): &Identified) -> Identified {
    (chain.clone(), key.clone_key())
}

#[tokio::test]
async fn tunnel__should_lead_to_known_ports_of_known_instances_only() {
    let port = echo().await;
    let node = Node::start(port).await;
    let other_port = echo().await;
    let stranger = InstanceId::random();
    for (path, status) in [
        (node.tunnel(other_port), 403),
        (node.tunnel(0), 403),
        (format!("/v1/instances/{}/tunnel/65536", node.instance), 400),
        (format!("/v1/instances/{stranger}/tunnel/{port}"), 404),
        (format!("/v1/instances/..%2f..%2fx/tunnel/{port}"), 404),
        ("/v1/instances".to_owned(), 404),
    ] {
        let mut stream = node.ask_as_coordinator(&path).await;
        let answer = head(&mut stream).await;
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{path}: {answer}");
        assert!(answer.contains("content-type: application/json"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn tunnel__should_open_only_when_the_instance_accepts() {
    let port = closed_port().await;
    let node = Node::start(port).await;
    let mut stream = node.ask_as_coordinator(&node.tunnel(port)).await;
    assert!(head(&mut stream).await.starts_with("http/1.1 502"));
}

#[tokio::test]
async fn logs__should_be_asked_from_the_caller() {
    let node = Node::start(closed_port().await).await;
    for (query, lines) in [("", 100), ("?tail=7", 7), ("?tail=4000000000", 10_000)] {
        let mut stream = node
            .ask_as_coordinator(&format!("/v1/instances/{}/logs{query}", node.instance))
            .await;
        assert!(head(&mut stream).await.starts_with("http/1.1 200"));
        let expected = format!(r#"{{"logs":"{lines} lines"}}"#);
        let mut body = vec![0; expected.len()];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), expected);
    }
    let stranger = InstanceId::random();
    let mut stream = node.ask_as_coordinator(&format!("/v1/instances/{stranger}/logs")).await;
    assert!(head(&mut stream).await.starts_with("http/1.1 404"));
}

#[tokio::test]
async fn certificate__should_be_exchanged_while_serving() {
    let port = echo().await;
    let node = Node::start(port).await;
    let mut before = node.ask_as_coordinator(&node.tunnel(port)).await;
    head(&mut before).await;
    let (chain, key) = node.authority.issue(&tls::node_name(&node.id));
    let renewed = chain[0].clone();
    let config = tls::server_requiring_clients(node.authority.0.der(), chain, key).unwrap();
    node.tls.replace(Arc::new(config));
    let after = node.dial(Some(node.authority.issue(COORDINATOR_NAME))).await.unwrap();
    assert_eq!(after.get_ref().1.peer_certificates().unwrap()[0], renewed);
    before.write_all(b"x").await.unwrap();
    assert_eq!(before.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn shutdown__should_let_tunnels_end_and_cut_those_that_do_not() {
    let port = echo().await;
    let node = Node::start(port).await;
    let mut used = node.ask_as_coordinator(&node.tunnel(port)).await;
    let mut endless = node.ask_as_coordinator(&node.tunnel(port)).await;
    for stream in [&mut used, &mut endless] {
        head(stream).await;
    }
    let early = node.dial(Some(node.authority.issue(COORDINATOR_NAME))).await.unwrap();
    node.shutdown.token.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(TcpStream::connect(node.address).await.is_err(), "the port is free");
    let mut early = early;
    early.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
    assert!(head(&mut early).await.starts_with("http/1.1 404"));
    used.write_all(b"x").await.unwrap();
    assert_eq!(used.read_u8().await.unwrap(), b'x');
    used.shutdown().await.unwrap();
    assert!(matches!(used.read(&mut [0]).await, Ok(0)));
    assert!(node.shutdown.finish(Duration::from_secs(10)).await);
    assert!(matches!(endless.read(&mut [0]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn refused__should_be_counted() {
    let node = Node::start(closed_port().await).await;
    drop(TcpStream::connect(node.address).await.unwrap());
    let stranger = node.authority.issue("someone.example");
    let mut stream = node.ask(Some(stranger), "/").await.unwrap();
    assert!(head(&mut stream).await.starts_with("http/1.1 403"));
    assert_eq!(node.refusals.total(), 2);
}

#[tokio::test]
async fn followed_logs__should_stream_as_text_until_the_agent_stops() {
    let node = Node::start(closed_port().await).await;
    let path = format!("/v1/instances/{}/logs?tail=7&follow=true", node.instance);
    let mut stream = node.ask_as_coordinator(&path).await;
    let answer = head(&mut stream).await;
    assert!(
        answer.starts_with("http/1.1 200") && answer.contains("transfer-encoding: chunked"),
        "{answer}"
    );
    let expected = b"7\r\n7 lines\r\n";
    let mut chunk = vec![0; expected.len()];
    stream.read_exact(&mut chunk).await.unwrap();
    assert_eq!(chunk, expected);
    node.shutdown.token.cancel();
    let mut end = [0; 5];
    stream.read_exact(&mut end).await.unwrap();
    assert_eq!(&end, b"0\r\n\r\n");
}

#[tokio::test]
async fn stats__should_be_of_known_instances() {
    let node = Node::start(closed_port().await).await;
    for (instance, status) in [(node.instance, 200), (InstanceId::random(), 404)] {
        let mut stream = node.ask_as_coordinator(&format!("/v1/instances/{instance}/stats")).await;
        assert!(head(&mut stream).await.starts_with(&format!("http/1.1 {status}")));
    }
}
