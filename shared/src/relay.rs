//! Bytes both ways between two streams, for as long as both live.
//!
//! There is no limit on a quiet stream. A limit exists only once one side has ended: a peer that
//! ignores that must not hold the other half, and its file descriptors, for ever.

use std::{
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    time::timeout,
};

/// How long the second half may stay silent after the first has ended.
pub const LINGER: Duration = Duration::from_secs(10);

/// One TLS record, and small enough for thousands of quiet tunnels.
const BUFFER: usize = 16 * 1024;

/// Copies both ways with back-pressure until both sides have ended, one of them fails, or one has
/// ended and the other stays silent for `linger`. Dropping the future drops both streams.
///
/// # Errors
/// What the failing side says, or `TimedOut` for a half that stayed silent.
pub async fn relay<One, Other>(one: One, other: Other, linger: Duration) -> io::Result<()>
where
    One: AsyncRead + AsyncWrite + Send,
    Other: AsyncRead + AsyncWrite + Send,
{
    let (one_reader, one_writer) = split(one);
    let (other_reader, other_writer) = split(other);
    let moved = AtomicU64::new(0);
    let mut there = pin!(carry(one_reader, other_writer, &moved));
    let mut back = pin!(carry(other_reader, one_writer, &moved));
    let rest: Pin<&mut (dyn Future<Output = io::Result<()>> + Send)> = tokio::select! {
        ended = &mut there => { ended?; back }
        ended = &mut back => { ended?; there }
    };
    drain(rest, &moved, linger).await
}

/// One direction: to the end of the reader, which then ends the writer.
async fn carry(mut reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin, moved: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = reader.read(&mut buffer).await?;
        if count == 0 {
            return writer.shutdown().await;
        }
        writer.write_all(&buffer[..count]).await?;
        writer.flush().await?;
        moved.fetch_add(1, Ordering::Relaxed);
    }
}

/// The other direction, as long as it moves.
async fn drain(
    mut rest: Pin<&mut (dyn Future<Output = io::Result<()>> + Send)>,
    moved: &AtomicU64,
    linger: Duration,
) -> io::Result<()> {
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(linger, rest.as_mut()).await {
            Ok(ended) => return ended,
            Err(_) if moved.load(Ordering::Relaxed) == before => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn relay__should_carry_an_answer_that_follows_the_end_of_the_question() {
        let (mut client, near) = duplex(64);
        let (far, mut server) = duplex(64);
        let relayed = tokio::spawn(relay(near, far, LINGER));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        relayed.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn relay__should_not_wait_for_ever_for_a_peer_that_ignores_the_end() {
        let (client, near) = duplex(64);
        let (far, mut server) = duplex(64);
        let relayed = tokio::spawn(relay(near, far, Duration::from_millis(20)));
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        let error = relayed.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(server.write_all(b"anybody there?").await.is_err());
    }
}
