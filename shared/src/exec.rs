//! A command in a running instance: what is asked, what is said while it runs, and the frames that carry
//! it between the coordinator and a node.
//!
//! A frame on the stream between both is four bytes of length (big endian), then that many: one byte
//! that names the stream, and what it carries. The same bytes after the length are a client's
//! WebSocket message, so that nothing is copied on the way. A node's stream begins with one message,
//! the [`Request`]; what follows towards the command is [`ToCommand`] and standard input, what comes
//! back is [`FromCommand`] and its output.

mod frame;
mod request;
mod seats;
mod transport;

use serde::{Deserialize, Serialize};

pub use self::{
    frame::{BadFrame, FRAME_LIMIT, Frame, PIECE_LIMIT, Stream, put, take},
    request::{Request, Size},
    seats::{Seat, Seats},
    transport::{FrameReader, FrameWriter},
};

/// The `Upgrade` protocol of such a stream.
pub const PROTOCOL: &str = "crabshack-exec";
/// Commands that may run in one instance at a time.
pub const PER_INSTANCE: usize = 16;
/// Commands that may run on one node at a time.
pub const PER_NODE: usize = 256;

/// Lets one WebSocket in, once and soon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ticket {
    /// The ticket.
    pub ticket: crate::secret::Secret,
    /// Where the WebSocket is opened, the ticket included.
    pub path: String,
    /// Seconds for which it is good.
    pub expires_in: u64,
}

/// What a client says to a running command, besides standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToCommand {
    /// The terminal has another size.
    Resize(Size),
    /// Standard input ends; a terminal gets Ctrl-D.
    StdinEnd,
}

/// What a client is told of a command, besides its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromCommand {
    /// It is being started: standard input is taken from now on.
    Started,
    /// It ended. Nothing follows.
    Exit {
        /// Its exit code; 128 + signal when it was killed, 126 or 127 when it could not be started.
        code: i64,
    },
    /// It was not started, or it was let go of. Nothing follows.
    Error {
        /// For people.
        error: String,
        /// For programs.
        code: crate::problem::Code,
    },
}

impl From<&crate::problem::Problem> for FromCommand {
    fn from(problem: &crate::problem::Problem) -> Self {
        Self::Error {
            error: problem.to_string(),
            code: problem.code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages__should_have_the_documented_form() {
        let said: ToCommand = serde_json::from_value(json!({"type": "resize", "rows": 24, "cols": 80})).unwrap();
        assert_eq!(said, ToCommand::Resize(Size { rows: 24, cols: 80 }));
        assert_eq!(
            serde_json::to_value(ToCommand::StdinEnd).unwrap(),
            json!({"type": "stdin_end"})
        );
        let told = FromCommand::Exit { code: 3 };
        assert_eq!(serde_json::to_value(told).unwrap(), json!({"type": "exit", "code": 3}));
        let told = FromCommand::from(&crate::problem::Problem::invalid("no"));
        assert_eq!(
            serde_json::to_value(told).unwrap(),
            json!({"type": "error", "error": "no", "code": "invalid_request"})
        );
    }
}
