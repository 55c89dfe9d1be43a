//! The gateway end to end inside one process: a visitor's socket, the real forwarding, a node that
//! speaks the data plane's protocol, and a small agent behind it.

mod agent;
mod node;
mod streams;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    response::Response,
};
use crabshack_shared::{
    ids::InstanceId,
    instance::{InstanceStatus, ServiceType},
    secret::Secret,
    shutdown::Shutdown,
};
use http::uri::PathAndQuery;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{
    Gateway, host,
    proxy::{Door, Visit},
};
use crate::app::{GatewayTarget, NodeDial};

const MEBIBYTE: usize = 1024 * 1024;

/// A gateway in front of one agent.
struct House {
    gateway: Gateway,
    admin: Secret,
    target: GatewayTarget,
    _folder: tempfile::TempDir,
}

/// Who serves the visitor.
#[derive(Clone, Copy)]
enum Listener {
    Ui,
    Api,
}

struct Running {
    house: Arc<House>,
    node: node::FakeNode,
    ui: SocketAddr,
    api: SocketAddr,
}

impl Running {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut GatewayTarget)) -> Self {
        let agent = agent::start().await;
        let node = node::FakeNode::start(agent).await;
        let folder = tempfile::tempdir().unwrap();
        let mut target = GatewayTarget {
            id: InstanceId::random(),
            service_type: ServiceType::new(ServiceType::OPENCLAW),
            token: Secret::random(),
            agent_token: Secret::random(),
            profile: Default::default(),
            origin: "http://a.localhost:3000".to_owned(),
            node: Some(NodeDial {
                id: node.id.clone(),
                address: node.address.to_string(),
            }),
            status: InstanceStatus::Running,
            ready: true,
        };
        change(&mut target);
        let house = Arc::new(House {
            gateway: Gateway::new(folder.path(), node.connector(), Shutdown::default()).unwrap(),
            admin: Secret::random(),
            target,
            _folder: folder,
        });
        Self {
            ui: listen(house.clone(), Listener::Ui).await,
            api: listen(house.clone(), Listener::Api).await,
            house,
            node,
        }
    }

    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.house.target.token.expose())
    }

    /// Sends a request by the host route with the token as a bearer.
    async fn open(&self, line: &str, headers: &str) -> BufReader<TcpStream> {
        send(self.ui, line, &format!("{}{headers}", self.bearer())).await
    }
}

async fn listen(house: Arc<House>, listener: Listener) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let routes = Router::new().fallback(serve).with_state((house, listener));
    let service = routes.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(socket, service).await });
    address
}

async fn serve(
    State((house, listener)): State<(Arc<House>, Listener)>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    match listener {
        Listener::Ui => host::answer(&house.gateway, &house.admin, Some(&house.target), client, request).await,
        Listener::Api => {
            let path = request.uri().path_and_query().cloned();
            let visit = Visit {
                client: client.ip(),
                door: Door::Api,
                path: path.unwrap_or(PathAndQuery::from_static("/")),
            };
            let outcome = host::carry(&house.gateway, &house.target, visit, request).await;
            outcome.unwrap_or_else(|refusal| refusal.answer(false))
        }
    }
}

async fn send(to: SocketAddr, line: &str, headers: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let text = format!("{line} HTTP/1.1\r\nHost: a.localhost:3000\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    BufReader::new(stream)
}

/// Status line and headers, as they came.
async fn head(stream: &mut BufReader<TcpStream>) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        assert_ne!(
            stream.read_line(&mut text).await.unwrap(),
            0,
            "the answer ended in its head: {text}"
        );
    }
    text
}

/// Everything until the server closes; ask with `Connection: close`.
async fn rest(stream: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn text(stream: &mut BufReader<TcpStream>) -> String {
    String::from_utf8(rest(stream).await).unwrap()
}

#[tokio::test]
async fn request__should_reach_the_agent_without_credentials_or_claims() {
    let running = Running::start().await;
    let headers = "Connection: close\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-User: root\r\nX-OpenClaw-Scopes: all\r\nCookie: a=1; crabshack_gateway=x\r\nOrigin: http://elsewhere.example\r\n";
    let seen = text(&mut running.open("GET /show//x%2Fy?q=%20", headers).await).await;
    for expected in [
        "GET /show//x%2Fy?q=%20",
        "host: a.localhost:3000",
        "origin: http://a.localhost:3000",
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-host: a.localhost:3000",
        "x-forwarded-proto: http",
        "x-forwarded-user: crabshack-owner",
        "cookie: a=1",
    ] {
        assert!(seen.lines().any(|line| line == expected), "{expected} is not in {seen}");
    }
    for leaked in [
        "authorization",
        "crabshack_gateway",
        "1.2.3.4",
        "root",
        "openclaw",
        running.house.target.token.expose(),
    ] {
        assert!(!seen.contains(leaked), "{leaked} is in {seen}");
    }
    assert!(
        seen.contains("set-cookie: own=1; Path=/\r\n") && !seen.contains("planted"),
        "{seen}"
    );
    assert!(
        seen.starts_with("HTTP/1.1 200") && !seen.to_lowercase().contains("x-hop"),
        "{seen}"
    );
}

#[tokio::test]
async fn api__should_pass_neither_credentials_nor_cookies() {
    let running = Running::start().await;
    let headers = "Connection: close\r\nAuthorization: Bearer admin\r\nCookie: a=1\r\n";
    let seen = text(&mut send(running.api, "DELETE /show", headers).await).await;
    assert!(
        seen.contains("DELETE /show") && seen.contains("host: a.localhost:3000"),
        "{seen}"
    );
    assert!(!seen.contains("authorization") && !seen.contains("cookie"), "{seen}");
}

#[tokio::test]
async fn visitor__should_get_a_cookie_for_the_token_and_nothing_without() {
    let running = Running::start().await;
    let token = running.house.target.token.expose();
    let line = format!("GET /show?token={token}&x=1");
    let exchanged = text(&mut send(running.ui, &line, "Connection: close\r\n").await).await;
    assert!(exchanged.starts_with("HTTP/1.1 303"), "{exchanged}");
    assert!(exchanged.contains("location: /show?x=1\r\n"), "{exchanged}");
    let cookie = exchanged.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let seen = text(
        &mut send(
            running.ui,
            "GET /show?x=1",
            &format!("Connection: close\r\nCookie: {cookie}\r\n"),
        )
        .await,
    )
    .await;
    assert!(seen.contains("GET /show?x=1") && !seen.contains(cookie), "{seen}");
    let refused = text(&mut send(running.ui, "GET /show", "Connection: close\r\nAccept: text/html\r\n").await).await;
    assert!(
        refused.starts_with("HTTP/1.1 401") && refused.contains("<!doctype html>"),
        "{refused}"
    );
    let wrong = text(&mut send(running.ui, "GET /show?token=wrong", "Connection: close\r\n").await).await;
    assert!(
        wrong.starts_with("HTTP/1.1 401") && wrong.contains(r#""code":"unauthorized""#),
        "{wrong}"
    );
    assert_eq!(running.node.tunnels(), 1, "only the one admitted request was dialled");
}

#[tokio::test]
async fn changed_token__should_close_what_the_old_one_opened() {
    let running = Running::start().await;
    let mut events = running.open("GET /events", "Accept: text/event-stream\r\n").await;
    head(&mut events).await;
    let mut upgraded = running
        .open("GET /echo", "Connection: Upgrade\r\nUpgrade: anything/1\r\n")
        .await;
    head(&mut upgraded).await;
    let mut waiting = running.open("GET /silent", "").await;
    // Through the API's door nobody showed the token.
    let mut other_door = send(running.api, "GET /events", "").await;
    head(&mut other_door).await;
    running.node.opened(4).await;

    running.house.gateway.rotated(running.house.target.id, &Secret::random());
    let within = std::time::Duration::from_secs(1);
    let closed = async {
        upgraded.read_to_end(&mut Vec::new()).await.unwrap();
        // Cut, not ended: the last chunk is missing.
        let rest = rest(&mut events).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"));
        assert!(head(&mut waiting).await.starts_with("HTTP/1.1 401"));
    };
    tokio::time::timeout(within, closed).await.expect("within a second");
    // The house still believes in the old token: it was read before the change.
    let late = text(&mut running.open("GET /show", "Connection: close\r\n").await).await;
    assert!(late.starts_with("HTTP/1.1 401"), "{late}");
    agent::next_event(running.node.agent).await;
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        assert_ne!(other_door.read_line(&mut line).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn tunnels__should_be_used_again() {
    let running = Running::start().await;
    for _ in 0..5 {
        let answer = text(&mut running.open("GET /show", "Connection: close\r\n").await).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(running.node.tunnels(), 1);
}

#[tokio::test]
async fn request__should_be_sent_again_when_its_tunnel_breaks_if_it_changes_nothing() {
    let running = Running::start().await;
    for (broken, line, status, tunnels) in [
        (2, "GET /show", 200, 3),
        (1, "DELETE /show", 502, 4),
        (9, "GET /show", 502, 7),
    ] {
        // The kept ones go, so that a new one is opened.
        running.house.gateway.node_stops(&running.node.id);
        running.node.break_tunnels(broken);
        let answer = text(&mut running.open(line, "Connection: close\r\n").await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        assert_eq!(running.node.tunnels(), tunnels, "{line}");
    }
}

#[tokio::test]
async fn node_that_stops__should_be_left_by_everybody_in_good_order() {
    let running = Running::start().await;
    let mut events = running.open("GET /events", "Connection: close\r\n").await;
    head(&mut events).await;
    agent::next_event(running.node.agent).await;
    let mut socket = running
        .open("GET /echo", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
        .await;
    head(&mut socket).await;
    let frame = [0x81, 2, b'h', b'i'];
    socket.write_all(&frame).await.unwrap();
    let mut echoed = [0; 4];
    socket.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, frame);
    let mut asked = running
        .open("POST /count", "Content-Length: 5\r\nConnection: close\r\n")
        .await;
    running.node.opened(3).await;

    running.house.gateway.node_stops(&running.node.id);
    assert!(text(&mut events).await.ends_with("data: 0\n\n\r\n0\r\n\r\n"));
    let goodbye = rest(&mut socket).await;
    assert_eq!(goodbye, [0x88, 2, 0x03, 0xf4], "a close frame that says to come back");
    drop((events, socket));
    // What was asked before is answered; what comes now takes another tunnel.
    let answer = text(&mut running.open("GET /show", "Connection: close\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    asked.write_all(b"12345").await.unwrap();
    let answer = text(&mut asked).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("5 length"), "{answer}");
    assert_eq!(running.node.tunnels(), 4);
    running.house.gateway.node_stops(&running.node.id);
    running.node.all_closed().await;
}

#[tokio::test]
async fn instance_that_cannot_answer__should_be_explained() {
    let get = async |running: &Running, accept: &str| {
        let headers = format!("Connection: close\r\nAccept: {accept}\r\n");
        text(&mut running.open("GET /show", &headers).await).await
    };
    for (status, ready, code, retry_after) in [
        (InstanceStatus::Creating, false, "not_ready", 3),
        (InstanceStatus::Running, false, "not_ready", 3),
        (InstanceStatus::Stopped, false, "stopped", 30),
        (InstanceStatus::Error, false, "unreachable", 30),
    ] {
        let running = Running::with(|target| (target.status, target.ready) = (status, ready)).await;
        let problem = get(&running, "*/*").await;
        assert!(
            problem.starts_with("HTTP/1.1 503") && problem.contains(&format!(r#""code":"{code}""#)),
            "{problem}"
        );
        assert!(problem.contains(&format!("retry-after: {retry_after}\r\n")), "{problem}");
        let page = get(&running, "text/html,*/*").await;
        assert!(page.starts_with("HTTP/1.1 503") && page.contains("</html>"), "{page}");
        assert_eq!(running.node.tunnels(), 0);
    }
    let lost = Running::with(|target| {
        if let Some(node) = &mut target.node {
            node.address = "127.0.0.1:1".to_owned();
        }
    });
    assert!(get(&lost.await, "*/*").await.starts_with("HTTP/1.1 502"));
    let impostor = Running::with(|target| {
        if let Some(node) = &mut target.node {
            node.id = crabshack_shared::ids::NodeId::random();
        }
    });
    assert!(get(&impostor.await, "*/*").await.starts_with("HTTP/1.1 502"));
    let closed = Running::start().await;
    closed.node.refuse(502);
    let answer = get(&closed, "*/*").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 3\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn connector__should_say_what_failed() {
    use crate::agents::connect::ConnectError;

    let running = Running::start().await;
    let (connector, dial) = (running.node.connector(), running.house.target.node.clone().unwrap());
    let id = running.house.target.id;
    assert_eq!(connector.logs(&dial, id, 7).await.unwrap(), "7 lines");
    assert_eq!(connector.logs(&dial, id, 8).await.unwrap(), "8 lines");
    assert_eq!(running.node.resumed_sessions(), 1);
    running.node.refuse(404);
    assert!(matches!(
        connector.tunnel(&dial, id, 1).await,
        Err(ConnectError::NotHere { .. })
    ));
    assert!(matches!(
        connector.logs(&dial, id, 7).await,
        Err(ConnectError::NotHere { .. })
    ));
    running.node.refuse(502);
    assert!(matches!(
        connector.tunnel(&dial, id, 1).await,
        Err(ConnectError::NotAnswering { .. })
    ));
    running.node.refuse(403);
    assert!(matches!(
        connector.tunnel(&dial, id, 1).await,
        Err(ConnectError::Refused { .. })
    ));
}
