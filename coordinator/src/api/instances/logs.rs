//! `GET /instances/{name}/logs`: the last lines from its node, or all that come from then on as
//! server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response, sse::Event},
};
use bytes::BytesMut;
use crabshack_shared::{
    api::instances::{InstanceLogs, LogLine},
    ids::InstanceId,
    problem::{Code, Problem},
    telemetry::Chain,
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Deserialize;

use super::{stream::sse, view};
use crate::{
    agents::connect::ConnectError,
    api::{
        extract::{Named, Parameters, no_such_instance},
        internal,
    },
    app::App,
    events::Changes,
    status,
};

/// Longest line that is sent in one piece, in bytes.
const LINE_LIMIT: usize = 64 << 10;
/// A node that is not reached is asked again after this, says the answer.
const RETRY_SECONDS: u32 = 5;
/// What is left in the node's pipe when an instance is deleted has this long to come.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Parameters of `GET /instances/{name}/logs`.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    tail: Option<u32>,
    #[serde(default)]
    follow: bool,
}

/// `GET /instances/{name}/logs`.
pub(crate) async fn logs(
    State(app): State<Arc<App>>,
    Named(name): Named,
    Parameters(Wanted { tail, follow }): Parameters<Wanted>,
) -> Result<Response, Problem> {
    let tail = tail.unwrap_or(100);
    if !(1..=10_000).contains(&tail) {
        return Err(Problem::invalid("tail must be from 1 to 10000"));
    }
    let found = view::find(&app, &name).map_err(internal)?;
    let found = found.ok_or_else(|| no_such_instance(&name))?;
    let id = found.record.id;
    let node = found.node.as_ref().and_then(|node| node.dial());
    let unreachable = |error: &ConnectError| {
        tracing::warn!(instance.name = %name, "logs cannot be fetched: {}", Chain(error));
        Problem::unreachable("the logs cannot be fetched from the instance's node: try again")
    };
    if follow {
        let not_yet = || Problem::unavailable(Code::NotReady, "the instance is on no node yet: try again", RETRY_SECONDS);
        let node = node.ok_or_else(not_yet)?;
        // Before the node is asked: a deletion in between must not be missed.
        let changes = app.events.follow(id);
        return match app.connector.follow_logs(&node, id, tail).await {
            Ok(text) => Ok(sse(lines(text, gone(Arc::clone(&app), id, changes)))),
            Err(ConnectError::NotHere { .. }) => Err(not_yet()),
            Err(error) => Err(unreachable(&error)),
        };
    }
    // A container that failed still has its last words.
    let silent = status::of(&found.record, found.observation.as_ref(), true).phase == "stopped" || found.observation.is_none();
    let logs = match node.filter(|_| !silent) {
        Some(node) => {
            let logs = app.connector.logs(&node, id, tail).await;
            logs.map_err(|error| unreachable(&error))?
        }
        None => String::new(),
    };
    Ok(Json(InstanceLogs { name, logs }).into_response())
}

/// Ends when the instance is no longer a living one, or when we stop.
async fn gone(app: Arc<App>, id: InstanceId, mut changes: Changes) {
    loop {
        match app.store.reading().and_then(|reading| reading.instance(id)) {
            Ok(Some(record)) if record.is_living() => tokio::select! {
                () = changes.next() => {}
                () = app.shutdown.token.cancelled() => return,
            },
            Ok(_) => break,
            Err(error) => {
                tracing::error!("a stream cannot read the store: {}", Chain(&error));
                break;
            }
        }
    }
    tokio::time::sleep(LAST_WORDS).await;
}

/// One event for each line. Dropped by who hung up, it drops the connection to the node.
fn lines(text: Body, gone: impl Future<Output = ()> + Send + 'static) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    let pieces = text.into_data_stream().take_until(Box::pin(gone));
    let state = (pieces, Lines::default(), false);
    stream::unfold(state, |(mut pieces, mut lines, ended)| async move {
        if ended {
            return None;
        }
        let (found, ended) = match pieces.next().await {
            Some(Ok(piece)) => (lines.take(&piece), false),
            Some(Err(error)) => {
                tracing::debug!("the log of an instance broke off: {}", Chain(&error));
                (lines.rest(), true)
            }
            None => (lines.rest(), true),
        };
        let events: Vec<_> = found.into_iter().map(|line| Ok(event(line))).collect();
        Some((stream::iter(events), (pieces, lines, ended)))
    })
    .flatten()
}

fn event(line: String) -> Event {
    // Plain texts always become JSON.
    Event::default().event("log").json_data(LogLine { line }).unwrap_or_default()
}

/// Cuts text into lines, however it comes in pieces.
#[derive(Debug, Default)]
struct Lines(BytesMut);

impl Lines {
    fn take(&mut self, piece: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(piece);
        let mut found = Vec::new();
        loop {
            let (length, skip) = match self.0.iter().position(|byte| *byte == b'\n') {
                Some(end) if end <= LINE_LIMIT => (end, 1),
                _ if self.0.len() > LINE_LIMIT => (LINE_LIMIT, 0),
                _ => return found,
            };
            let line = self.0.split_to(length + skip);
            found.push(readable(&line[..length]));
        }
    }

    /// What came after the last line break.
    fn rest(&mut self) -> Vec<String> {
        let line = self.0.split();
        if line.is_empty() { Vec::new() } else { vec![readable(&line)] }
    }
}

fn readable(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines__should_be_cut_however_they_come() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"one\r\ntw"), ["one"]);
        assert_eq!(lines.take("o \u{e4}".as_bytes().split_at(3).0), Vec::<String>::new());
        assert_eq!(lines.take(&[0xa4, b'\n', b'\n']), ["two \u{e4}", ""]);
        assert_eq!(lines.take(b"last"), Vec::<String>::new());
        assert_eq!(lines.rest(), ["last"]);
        assert!(lines.rest().is_empty());
    }

    #[test]
    fn lines__should_not_grow_without_end() {
        let mut lines = Lines::default();
        let pieces = lines.take(&vec![b'x'; 3 * LINE_LIMIT + 5]);
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|piece| piece.len() == LINE_LIMIT));
        assert_eq!(lines.take(b"\n"), ["xxxxx"]);
    }

    #[tokio::test]
    async fn lines__should_end_with_the_instance() {
        let endless = Body::from_stream(stream::pending::<Result<&'static str, Infallible>>());
        assert_eq!(lines(endless, async {}).count().await, 0);
        let text = Body::from("a\nb");
        assert_eq!(lines(text, std::future::pending()).count().await, 2);
    }
}
