//! Frames. Pure.

use bytes::{Buf as _, Bytes, BytesMut};

/// Most bytes of standard input or output in one frame.
pub const PIECE_LIMIT: usize = 64 << 10;
/// Most bytes of any frame, its stream's byte included: a request with every character escaped fits.
pub const FRAME_LIMIT: usize = 512 << 10;
const LENGTH: usize = 4;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Towards the command.
    Stdin = 0,
    /// From it; all of a terminal's output.
    Stdout = 1,
    /// From it; nothing on a terminal.
    Stderr = 2,
    /// JSON, either way.
    Message = 3,
}

impl Stream {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Message,
            _ => return None,
        })
    }
}

/// What is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// It would not end, or is empty.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// It is for nobody.
    #[error("a frame for stream {0}")]
    Stream(u8),
}

/// One frame without its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub stream: Stream,
    bytes: Bytes,
}

impl Frame {
    /// Reads the stream's byte.
    ///
    /// # Errors
    /// When it is empty, too long or names no stream.
    pub fn new(bytes: Bytes) -> Result<Self, BadFrame> {
        let first = *bytes.first().ok_or(BadFrame::Length(0))?;
        let stream = Stream::of(first).ok_or(BadFrame::Stream(first))?;
        let limit = if stream == Stream::Message {
            FRAME_LIMIT
        } else {
            PIECE_LIMIT + 1
        };
        if bytes.len() > limit {
            return Err(BadFrame::Length(bytes.len()));
        }
        Ok(Self { stream, bytes })
    }

    /// What it carries, without the stream's byte.
    pub fn content(&self) -> &[u8] {
        &self.bytes[1..]
    }

    /// With the stream's byte: what a WebSocket carries.
    pub fn into_whole(self) -> Bytes {
        self.bytes
    }
}

/// Takes the next whole frame off the front; none: more bytes are needed.
///
/// # Errors
/// When what is there cannot be one: nothing that follows makes sense.
pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, BadFrame> {
    let Some(length) = buffer.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if !(1..=FRAME_LIMIT).contains(&length) {
        return Err(BadFrame::Length(length));
    }
    if buffer.len() < LENGTH + length {
        buffer.reserve(LENGTH + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(LENGTH);
    Frame::new(buffer.split_to(length).freeze()).map(Some)
}

/// Appends a frame. Content that is too long for one is for several.
pub fn put(out: &mut Vec<u8>, stream: Stream, content: &[u8]) {
    let length = u32::try_from(content.len() + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.push(stream as u8);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames__should_come_out_as_they_went_in_however_they_are_cut() {
        let mut sent = Vec::new();
        put(&mut sent, Stream::Stdin, b"");
        put(&mut sent, Stream::Stderr, &[7; PIECE_LIMIT]);
        put(&mut sent, Stream::Message, b"{}");
        for step in [1, 3, 1000, usize::MAX] {
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for piece in sent.chunks(step.min(sent.len())) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = take(&mut buffer).unwrap() {
                    found.push((frame.stream, frame.content().len(), frame.into_whole().len()));
                }
            }
            let expected = [
                (Stream::Stdin, 0, 1),
                (Stream::Stderr, PIECE_LIMIT, PIECE_LIMIT + 1),
                (Stream::Message, 2, 3),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn frames__should_be_bounded() {
        let taken = |bytes: &[u8]| take(&mut BytesMut::from(bytes));
        assert_eq!(taken(&[0, 0, 0, 0]), Err(BadFrame::Length(0)));
        assert_eq!(taken(&[255, 255, 255, 255]), Err(BadFrame::Length(u32::MAX as usize)));
        assert_eq!(taken(&[0, 0, 0, 1, 9]), Err(BadFrame::Stream(9)));
        assert_eq!(taken(&[0, 0, 0, 2, 1]), Ok(None));
        let mut long = Vec::new();
        put(&mut long, Stream::Stdout, &[0; PIECE_LIMIT + 1]);
        assert_eq!(taken(&long), Err(BadFrame::Length(PIECE_LIMIT + 2)));
    }
}
