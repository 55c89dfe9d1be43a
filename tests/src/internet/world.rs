//! The child's side: addresses, listeners and a name server that knows every name.

use std::{
    io::{self, Write as _},
    net::IpAddr,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::{METADATA, PRIVATE, PUBLIC, PUBLIC6};
use crate::command;

pub(super) const ALIVE: &str = "alive";
pub(super) const READY: &str = "ready";
/// Ports that accept connections, on every address.
const PORTS: [u16; 6] = [22, 25, 80, 443, 5432, 8080];

/// Never returns while the parent lives.
pub(crate) fn run() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve())
}

async fn serve() -> anyhow::Result<()> {
    say(ALIVE)?;
    let mut parent = BufReader::new(tokio::io::stdin()).lines();
    parent.next_line().await?.context("the parent ended")?;
    addresses()?;
    for port in PORTS {
        tokio::spawn(accept(TcpListener::bind(("::", port)).await?));
    }
    for address in ipv4() {
        tokio::spawn(answer_udp(UdpSocket::bind((address, 53)).await?));
        tokio::spawn(answer_tcp(TcpListener::bind((address, 53)).await?));
    }
    say(READY)?;
    while parent.next_line().await?.is_some() {}
    Ok(())
}

fn say(word: &str) -> io::Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{word}")?;
    output.flush()
}

fn ipv4() -> impl Iterator<Item = IpAddr> {
    [PUBLIC, METADATA].into_iter().chain(PRIVATE).map(IpAddr::V4)
}

fn addresses() -> anyhow::Result<()> {
    let mut batch = "link set lo up\nlink set node up\naddress add 198.51.100.1/24 dev node\n\
                     address add 2001:db8:1::1/64 dev node nodad\nroute add default via 198.51.100.2\n"
        .to_owned();
    for address in ipv4() {
        batch.push_str(&format!("address add {address}/32 dev lo\n"));
    }
    batch.push_str(&format!(
        "address add {PUBLIC6}/128 dev lo nodad\nroute add default via 2001:db8:1::2\n"
    ));
    command::run_with_input("ip -batch -", &batch).map(drop)
}

/// Takes connections and reads them to their end; a request that looks like HTTP is answered.
async fn accept(listener: TcpListener) {
    while let Ok((mut connection, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = connection.read(&mut buffer).await {
                let answer: &[u8] = if buffer[..length].starts_with(b"GET ") {
                    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ninternet\n"
                } else {
                    b""
                };
                if connection.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn answer_udp(socket: UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        if let Some(answer) = answer(&buffer[..length]) {
            // Who does not listen any more has lost interest.
            drop(socket.send_to(&answer, client).await);
        }
    }
}

async fn answer_tcp(listener: TcpListener) {
    while let Ok((connection, _)) = listener.accept().await {
        tokio::spawn(async move { drop(answer_stream(connection).await) });
    }
}

async fn answer_stream(mut connection: TcpStream) -> io::Result<()> {
    loop {
        let mut query = vec![0; usize::from(connection.read_u16().await?)];
        connection.read_exact(&mut query).await?;
        let answer = answer(&query).unwrap_or_default();
        let length = u16::try_from(answer.len()).unwrap_or_default();
        connection
            .write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())
            .await?;
    }
}

/// Answers one question for A records with [`PUBLIC`]; other types have no records.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let name_end = 12 + query.get(12..)?.iter().position(|&byte| byte == 0)? + 1;
    let question = query.get(12..name_end + 4)?;
    let wants_address = question.ends_with(&[0, 1, 0, 1]);
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(wants_address), 0, 0, 0, 0]);
    answer.extend(question);
    if wants_address {
        // Name by pointer, type A, class IN, 5 seconds, 4 bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(PUBLIC.octets());
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    #[test]
    fn answer__should_hold_the_public_address() {
        let query = [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
        let answer = super::answer(&query).unwrap();
        assert!(answer.starts_with(&[1, 2]) && answer.ends_with(&[203, 0, 113, 1]));
        assert_eq!(super::answer(&query[..9]), None);
    }
}
