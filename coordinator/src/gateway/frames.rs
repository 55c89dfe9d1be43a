//! Says goodbye on a WebSocket whose two ends this process only joins: the frames that the agent sends
//! are counted, not read, so that a close frame can be put between two of them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A close frame with status 1012: the service restarts, come back.
const GOODBYE: [u8; 4] = [0x88, 0x02, 0x03, 0xf4];
/// The opcode of a close frame.
const CLOSE: u8 = 0x8;

/// Where in its frames a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// So many bytes of a frame's head have come.
    Head { bytes: [u8; 14], count: usize },
    /// So many bytes of a frame's body have not.
    Body { left: u64 },
    /// The agent closed by itself.
    Closed,
}

impl Place {
    const START: Self = Self::Head {
        bytes: [0; 14],
        count: 0,
    };

    fn is_between_frames(self) -> bool {
        matches!(self, Self::Head { count: 0, .. })
    }

    /// As many bytes as surely belong to the frame.
    fn to_read(self, most: usize) -> usize {
        match self {
            Self::Head { bytes, count } => head_length(&bytes[..count]).saturating_sub(count).min(most),
            Self::Body { left } => usize::try_from(left).unwrap_or(usize::MAX).min(most),
            Self::Closed => most,
        }
    }

    fn advance(&mut self, mut sent: &[u8]) {
        while !sent.is_empty() {
            let part = self.to_read(sent.len());
            match self {
                Self::Head { bytes, count } => {
                    bytes[*count..*count + part].copy_from_slice(&sent[..part]);
                    *count += part;
                    let head = &bytes[..*count];
                    if *count >= 2 && *count == head_length(head) {
                        *self = after_head(head);
                    }
                }
                Self::Body { left } => {
                    *left -= part as u64;
                    if *left == 0 {
                        *self = Self::START;
                    }
                }
                Self::Closed => return,
            }
            sent = &sent[part..];
        }
    }
}

/// As far as can be said from what is there.
fn head_length(head: &[u8]) -> usize {
    let Some(second) = head.get(1) else { return 2 };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    mask + match second & 0x7f {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

fn after_head(head: &[u8]) -> Place {
    if head[0] & 0x0f == CLOSE {
        return Place::Closed;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let left = match head[1] & 0x7f {
        126 => number(&head[2..4]),
        127 => number(&head[2..10]),
        length => u64::from(length),
    };
    if left == 0 { Place::START } else { Place::Body { left } }
}

/// The agent's side of an upgraded connection, which ends well when it is told to: a WebSocket with a
/// close frame, anything else with the end of the stream.
pub(super) struct Farewell<S> {
    agent: S,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    /// None: no WebSocket.
    place: Option<Place>,
    /// What of the goodbye is to be said, once the end has come.
    goodbye: Option<&'static [u8]>,
}

impl<S> Farewell<S> {
    pub(super) fn new(agent: S, is_websocket: bool, end: CancellationToken) -> Self {
        Self {
            agent,
            end: Box::pin(end.cancelled_owned()),
            place: is_websocket.then_some(Place::START),
            goodbye: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Farewell<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let is_ending = this.goodbye.is_some() || this.end.as_mut().poll(context).is_ready();
        if is_ending && this.goodbye.is_none() {
            this.goodbye = match this.place {
                None => Some(&[]),
                Some(place) if place.is_between_frames() => Some(&GOODBYE),
                Some(_) => None,
            };
        }
        if let Some(goodbye) = &mut this.goodbye {
            let (now, later) = goodbye.split_at(goodbye.len().min(buffer.remaining()));
            buffer.put_slice(now);
            *goodbye = later;
            return Poll::Ready(Ok(()));
        }
        let most = match this.place {
            Some(place) if is_ending => place.to_read(buffer.remaining()),
            _ => buffer.remaining(),
        };
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut this.agent).poll_read(context, &mut part))?;
        if let Some(place) = &mut this.place {
            place.advance(part.filled());
        }
        let count = part.filled().len();
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Farewell<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.agent).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.agent).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.agent).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// Frames of every kind of head.
    fn frames() -> Vec<Vec<u8>> {
        let mut frames = vec![vec![0x81, 2, b'h', b'i'], vec![0x89, 0], vec![0x82, 0x82, 1, 2, 3, 4, 9, 9]];
        let mut medium = vec![0x82, 126, 1, 44];
        medium.resize(4 + 300, 7);
        let mut large = vec![0x82, 127, 0, 0, 0, 0, 0, 1, 17, 112];
        large.resize(10 + 70_000, 7);
        frames.extend([medium, large]);
        frames
    }

    #[test]
    fn place__should_be_between_frames_only_there() {
        for pieces in [1, 3, 1000] {
            let mut place = Place::START;
            for frame in frames() {
                for (number, piece) in frame.chunks(pieces).enumerate() {
                    assert!(number == 0 || !place.is_between_frames());
                    place.advance(piece);
                }
                assert!(place.is_between_frames());
            }
            place.advance(&GOODBYE);
            assert_eq!(place, Place::Closed);
        }
        let mut place = Place::START;
        place.advance(&frames().concat());
        assert!(place.is_between_frames());
    }

    #[tokio::test]
    async fn websocket__should_be_closed_after_the_frame_that_is_being_sent() {
        for frame in frames() {
            let (near, mut agent) = duplex(1 << 20);
            let end = CancellationToken::new();
            let mut stream = Farewell::new(near, true, end.clone());
            agent.write_all(&frame[..1]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), frame[0]);
            end.cancel();
            agent.write_all(&frame[1..]).await.unwrap();
            agent.write_all(b"never sent on").await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, [&frame[1..], &GOODBYE].concat());
        }
    }

    #[tokio::test]
    async fn quiet_stream__should_end_at_once() {
        for (is_websocket, goodbye) in [(true, &GOODBYE[..]), (false, &[])] {
            let (near, _agent) = duplex(64);
            let end = CancellationToken::new();
            let mut stream = Farewell::new(near, is_websocket, end.clone());
            let reader = tokio::spawn(async move {
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                rest
            });
            tokio::task::yield_now().await;
            end.cancel();
            assert_eq!(reader.await.unwrap(), goodbye);
        }
    }
}
