//! Asking the resolvers, one after the other, until one answers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{message, tcp};

/// How long one resolver has before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest message that a datagram can carry.
const LARGEST: usize = 65_535;

/// The resolvers in their order.
#[derive(Debug, Clone)]
pub(super) struct Upstreams(Arc<[SocketAddr]>);

impl Upstreams {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses.into())
    }

    /// The first answer, byte for byte; a failure of ours when nobody answers.
    pub(super) async fn ask_by_udp(&self, question: &[u8]) -> Vec<u8> {
        for &upstream in self.0.iter() {
            match timeout(PATIENCE, by_udp(upstream, question)).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "a resolver cannot be asked"),
                Err(_) => tracing::debug!(%upstream, "a resolver does not answer"),
            }
        }
        message::failure(question)
    }

    /// The same over TCP, for what does not fit into a datagram.
    pub(super) async fn ask_by_tcp(&self, question: &[u8]) -> Vec<u8> {
        for &upstream in self.0.iter() {
            match timeout(PATIENCE, by_tcp(upstream, question)).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "a resolver cannot be asked by TCP"),
                Err(_) => tracing::debug!(%upstream, "a resolver does not answer by TCP"),
            }
        }
        message::failure(question)
    }
}

/// A socket per question: its random port is what makes a forged answer hard.
async fn by_udp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = match upstream {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = Vec::with_capacity(LARGEST);
    loop {
        buffer.clear();
        socket.recv_buf(&mut buffer).await?;
        if message::answers(&buffer, question) {
            return Ok(buffer);
        }
    }
}

async fn by_tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    tcp::write_message(&mut stream, question).await?;
    let answer = tcp::read_message(&mut stream).await?;
    if message::answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is to another question",
        ))
    }
}
