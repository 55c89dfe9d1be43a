//! Frames on a stream of bytes.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Frame, Stream, put, take};

/// One read: several pieces of a command's output.
const BUFFER: usize = 64 << 10;

/// Takes frames off a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Nothing is read yet.
    pub fn new(from: R) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
        }
    }

    /// The next frame; none at the end. May be dropped while it waits.
    ///
    /// # Errors
    /// When the stream breaks, within a frame too, or holds something else.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.ready()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(BUFFER);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// A frame that has arrived already.
    ///
    /// # Errors
    /// When what arrived is no frame.
    pub fn ready(&mut self) -> io::Result<Option<Frame>> {
        take(&mut self.buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Puts frames on a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    to: W,
    waiting: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Nothing is written yet.
    pub fn new(to: W) -> Self {
        Self { to, waiting: Vec::new() }
    }

    /// Adds a frame to those that [`Self::send`] sends.
    pub fn add(&mut self, stream: Stream, content: &[u8]) {
        put(&mut self.waiting, stream, content);
    }

    /// Sends what was added; waits as long as the other side does not take it.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn send(&mut self) -> io::Result<()> {
        let sent = async {
            self.to.write_all(&self.waiting).await?;
            self.to.flush().await
        }
        .await;
        self.waiting.clear();
        sent
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn message(&mut self, message: &impl serde::Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(message).map_err(io::Error::other)?;
        self.add(Stream::Message, &text);
        self.send().await
    }

    /// Nothing follows.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn end(&mut self) -> io::Result<()> {
        self.to.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames__should_cross_a_narrow_stream_and_be_missed_when_cut() {
        let (near, far) = tokio::io::duplex(7);
        let (mut to, mut from) = (FrameWriter::new(near), FrameReader::new(far));
        let sent = tokio::spawn(async move {
            to.add(Stream::Stdout, &[1; 100]);
            to.add(Stream::Stderr, b"x");
            to.send().await.unwrap();
            to.to.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
        });
        assert_eq!(from.next().await.unwrap().unwrap().content(), [1; 100]);
        assert_eq!(from.next().await.unwrap().unwrap().stream, Stream::Stderr);
        assert_eq!(from.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        sent.await.unwrap();
    }
}
