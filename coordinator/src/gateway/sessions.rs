//! What an instance's token has opened, so that it can be closed with the token.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use crabshack_shared::{ids::InstanceId, secret::Secret};
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
}

impl UntilEnd {
    pub(super) fn new(body: Incoming, end: CancellationToken) -> Self {
        Self {
            body,
            end: Box::pin(end.cancelled_owned()),
        }
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
        let frame = Pin::new(&mut self.body).poll_frame(context);
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
