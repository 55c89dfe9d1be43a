//! Looks at the network from the inside: tries a connection, asks a name server.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// `GET /connect`
#[derive(Debug, Deserialize)]
pub(crate) struct Connect {
    to: SocketAddr,
    #[serde(default)]
    proto: Option<String>,
    #[serde(default)]
    ms: Option<u64>,
}

/// `GET /resolve`
#[derive(Debug, Deserialize)]
pub(crate) struct Resolve {
    name: String,
    /// Another server than that of resolv.conf.
    #[serde(default)]
    server: Option<SocketAddr>,
    #[serde(default)]
    tcp: Option<u8>,
}

/// `{"result": "ok" | "refused" | "timeout" | "unreachable" | other text}`; over UDP `ok` means
/// that something answered.
pub(crate) async fn connect(request: Connect) -> Value {
    let patience = Duration::from_millis(request.ms.unwrap_or(1500));
    let attempt = async {
        if request.proto.as_deref() == Some("udp") {
            ask_udp(request.to, b"ping").await.map(drop)
        } else {
            TcpStream::connect(request.to).await.map(drop)
        }
    };
    let result = match timeout(patience, attempt).await {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => "refused".to_owned(),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
            _ => error.to_string(),
        },
        Err(_) => "timeout".to_owned(),
    };
    json!({ "result": result })
}

/// `{"addresses": [...], "code": RCODE}` or `{"error": text}`.
pub(crate) async fn resolve(request: Resolve) -> Value {
    let Some(server) = request.server.or_else(|| Some(SocketAddr::from((*resolvers().first()?, 53)))) else {
        return json!({"error": "no name server in /etc/resolv.conf"});
    };
    let query = query(&request.name);
    let asking = async {
        if request.tcp == Some(1) {
            ask_tcp(server, &query).await
        } else {
            ask_udp(server, &query).await
        }
    };
    match timeout(Duration::from_secs(3), asking).await {
        Ok(Ok(answer)) => json!({"addresses": addresses(&answer), "code": answer.get(3).map(|byte| byte & 15)}),
        Ok(Err(error)) => json!({"error": error.to_string()}),
        Err(_) => json!({"error": "timeout"}),
    }
}

/// The name servers of `/etc/resolv.conf`.
pub(crate) fn resolvers() -> Vec<Ipv4Addr> {
    let file = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    file.lines()
        .filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok())
        .collect()
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).unwrap_or_default();
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// A question for A records, recursion wanted.
fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// The A records of an answer to [`query`]; stops at what it does not understand.
fn addresses(message: &[u8]) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let count = message.get(6..8).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let Some(mut at) = after_name(message, 12).map(|end| end + 4) else {
        return found;
    };
    for _ in 0..count {
        let Some(fixed) = after_name(message, at) else { return found };
        let Some(&[kind0, kind1, _, _, _, _, _, _, length0, length1]) = message.get(fixed..fixed + 10) else {
            return found;
        };
        let length = usize::from(u16::from_be_bytes([length0, length1]));
        let data = fixed + 10;
        if let (1, Some(&[a, b, c, d])) = (u16::from_be_bytes([kind0, kind1]), message.get(data..data + length)) {
            found.push(Ipv4Addr::new(a, b, c, d));
        }
        at = data + length;
    }
    found
}

fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
