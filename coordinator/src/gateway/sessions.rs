//! What an instance's token has opened, so that it can be closed with the token.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use crabshack_shared::{ids::InstanceId, secret::Secret};
use http::{
    HeaderMap,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The instances that had visitors, each with its token as far as is known here. Its lock makes a
/// visitor who shows a token and the end of that token come one after the other.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<InstanceId, Opened>>);

#[derive(Debug)]
struct Opened {
    token: Secret,
    end: CancellationToken,
}

impl Sessions {
    /// Cancelled when the token with which somebody was let in ends; at once when it has ended since.
    pub(super) fn enter(&self, instance: InstanceId, token: &Secret) -> CancellationToken {
        let mut opened = self.lock();
        let entry = opened.entry(instance).or_insert_with(|| Opened::new(token));
        if entry.token == *token {
            return entry.end.clone();
        }
        // Every new token passes through `rotated`, so this is one that was read before.
        let ended = CancellationToken::new();
        ended.cancel();
        ended
    }

    /// Ends all that earlier tokens of an instance have opened.
    pub(super) fn rotated(&self, instance: InstanceId, token: &Secret) {
        if let Some(before) = self.lock().insert(instance, Opened::new(token)) {
            before.end.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Opened>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    fn new(token: &Secret) -> Self {
        Self {
            token: token.clone(),
            end: CancellationToken::new(),
        }
    }
}

/// An answer that breaks off when its session ends.
pub(super) struct UntilEnd {
    body: Incoming,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    events: Option<EventStream>,
}

impl UntilEnd {
    pub(super) fn new(body: Incoming, end: CancellationToken, events: Option<EventStream>) -> Self {
        Self {
            body,
            end: Box::pin(end.cancelled_owned()),
            events,
        }
    }
}

/// Server-sent events have no end of their own, and a browser takes the end for a reason to come back. So
/// they end well, between two events, when this process or the node's agent stops.
pub(super) struct EventStream {
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The last bytes that were sent.
    tail: [u8; 2],
}

impl EventStream {
    /// None: something else.
    pub(super) fn of(headers: &HeaderMap, stop: CancellationToken) -> Option<Self> {
        let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let is_events = kind.to_ascii_lowercase().starts_with("text/event-stream") && !headers.contains_key(CONTENT_LENGTH);
        is_events.then(|| Self {
            stop: Box::pin(stop.cancelled_owned()),
            tail: *b"\n\n",
        })
    }

    fn sent(&mut self, bytes: &[u8]) {
        // Lines may end in CR LF.
        for byte in bytes[bytes.len().saturating_sub(4)..].iter().filter(|byte| **byte != b'\r') {
            self.tail = [self.tail[1], *byte];
        }
    }

    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        self.stop.as_mut().poll(context).is_ready() && self.tail == *b"\n\n"
    }
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutOff {
    /// The token that opened it is no longer good.
    #[error("the token was changed")]
    Ended,
    /// The agent broke it off.
    #[error(transparent)]
    Agent(#[from] hyper::Error),
}

impl Body for UntilEnd {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(CutOff::Ended)));
        }
        if self.events.as_mut().is_some_and(|events| events.is_over(context)) {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(events)) = (&frame, &mut self.events)
            && let Some(bytes) = frame.data_ref()
        {
            events.sent(bytes);
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(CutOff::Agent)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events__should_end_between_two_of_them() {
        let kind = |kind: &'static str| HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
        let stop = CancellationToken::new();
        assert!(EventStream::of(&kind("text/plain"), stop.clone()).is_none());
        let mut events = EventStream::of(&kind("text/event-stream; charset=utf-8"), stop.clone()).unwrap();
        let mut is_over = async || std::future::poll_fn(|context| Poll::Ready(events.is_over(context))).await;
        assert!(!is_over().await);
        stop.cancel();
        assert!(is_over().await);
        for (bytes, over) in [
            ("data: 1", false),
            ("\r\n", false),
            ("\r\n", true),
            ("x\n", false),
            ("\n", true),
        ] {
            events.sent(bytes.as_bytes());
            let is_over = std::future::poll_fn(|context| Poll::Ready(events.is_over(context))).await;
            assert_eq!(is_over, over, "{bytes:?}");
        }
    }

    #[test]
    fn sessions__should_end_with_their_token_and_no_other() {
        let sessions = Sessions::default();
        let (one, other) = (InstanceId::random(), InstanceId::random());
        let (first, second) = (Secret::random(), Secret::random());
        let (opened, neighbour) = (sessions.enter(one, &first), sessions.enter(other, &first));
        sessions.rotated(one, &second);
        assert!(opened.is_cancelled() && !neighbour.is_cancelled());
        assert!(sessions.enter(one, &first).is_cancelled(), "it was read before the change");
        assert!(!sessions.enter(one, &second).is_cancelled());
        // Also when nobody was there before.
        let third = InstanceId::random();
        sessions.rotated(third, &second);
        assert!(sessions.enter(third, &first).is_cancelled());
    }
}
