//! What a command prints, as the engine sends it: bare from a terminal, else in pieces that name their
//! stream. Pure. What a tenant prints cannot make us keep more than was read.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use crabshack_shared::exec::{PIECE_LIMIT, Stream};

/// The stream's byte, three of nothing, four of length.
const HEAD: usize = 8;

/// Where in the engine's stream we are.
#[derive(Debug)]
pub(crate) struct Output {
    tty: bool,
    stream: Stream,
    left: usize,
}

impl Output {
    pub(super) fn new(tty: bool) -> Self {
        Self {
            tty,
            stream: Stream::Stdout,
            left: 0,
        }
    }

    /// Takes the next piece off the front; none: more must be read.
    ///
    /// # Errors
    /// When the engine sends something else.
    pub(crate) fn take(&mut self, buffer: &mut BytesMut) -> io::Result<Option<(Stream, Bytes)>> {
        while !self.tty && self.left == 0 {
            let Some(head) = buffer.first_chunk::<HEAD>() else {
                return Ok(None);
            };
            self.stream = match head[0] {
                0 | 1 => Stream::Stdout,
                2 => Stream::Stderr,
                other => {
                    let text = format!("Docker names a stream {other} that no command has");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            };
            self.left = [4, 5, 6, 7].iter().fold(0, |length, &at| length << 8 | usize::from(head[at]));
            buffer.advance(HEAD);
        }
        let length = if self.tty { buffer.len() } else { buffer.len().min(self.left) };
        let length = length.min(PIECE_LIMIT);
        if length == 0 {
            return Ok(None);
        }
        if !self.tty {
            self.left -= length;
        }
        Ok(Some((self.stream, buffer.split_to(length).freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(output: &mut Output, bytes: &[u8]) -> Vec<(Stream, Vec<u8>)> {
        let mut buffer = BytesMut::from(bytes);
        let mut found = Vec::new();
        while let Some((stream, piece)) = output.take(&mut buffer).unwrap() {
            found.push((stream, piece.to_vec()));
        }
        found
    }

    #[test]
    fn output__should_be_told_apart_and_passed_on_before_a_piece_is_whole() {
        let mut output = Output::new(false);
        let head = |stream, length| [stream, 0, 0, 0, 0, 0, 0, length];
        assert_eq!(
            all(
                &mut output,
                &[&head(1, 2)[..], b"ab", &head(2, 0), &head(2, 3), b"e"].concat()
            ),
            [(Stream::Stdout, b"ab".to_vec()), (Stream::Stderr, b"e".to_vec())]
        );
        assert_eq!(all(&mut output, b"rr"), [(Stream::Stderr, b"rr".to_vec())]);
        assert!(Output::new(false).take(&mut BytesMut::from(&head(3, 1)[..])).is_err());
    }

    #[test]
    fn terminal__should_not_be_able_to_pretend_a_piece() {
        let bytes = [1, 0, 0, 0, 255, 255, 255, 255, 2];
        assert_eq!(all(&mut Output::new(true), &bytes), [(Stream::Stdout, bytes.to_vec())]);
    }
}
