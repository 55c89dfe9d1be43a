//! When a WebSocket has been quiet or open for too long.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Marks that both directions leave.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// In milliseconds since the beginning: bytes of the command, either way.
    moved: AtomicU64,
    /// The same: anything from the client, a pong too.
    heard: AtomicU64,
    /// The command does not take what the client says, so the client is not listened to.
    deaf: AtomicBool,
}

/// A limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Idle,
    Length,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            moved: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
        }
    }

    /// For how long it is open.
    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Bytes of the command went through.
    pub(super) fn moved(&self) {
        self.moved.store(self.now(), Ordering::Relaxed);
    }

    /// The client said something.
    pub(super) fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// Whether the client is not listened to now.
    pub(super) fn deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    /// True when the client was listened to and said nothing for so long.
    pub(super) fn is_silent(&self, limit: Duration) -> bool {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        !self.deaf.load(Ordering::Relaxed) && self.age().saturating_sub(heard) > limit
    }

    /// Ends when a limit is reached.
    pub(super) async fn limit(&self, idle: Duration, length: Duration) -> Limit {
        loop {
            let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
            let quiet_until = moved.saturating_add(idle);
            if self.age() >= length {
                return Limit::Length;
            }
            if self.age() >= quiet_until {
                return Limit::Idle;
            }
            sleep_until(self.began + quiet_until.min(length)).await;
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(10);
    const LENGTH: Duration = Duration::from_secs(25);

    #[tokio::test(start_paused = true)]
    async fn limits__should_end_what_is_quiet_and_what_never_ends() {
        let quiet = Activity::new();
        assert_eq!(quiet.limit(IDLE, LENGTH).await, Limit::Idle);
        assert_eq!(quiet.age(), IDLE);

        let busy = Activity::new();
        let moving = async {
            loop {
                tokio::time::sleep(Duration::from_secs(9)).await;
                busy.moved();
            }
        };
        let limit = tokio::select! { limit = busy.limit(IDLE, LENGTH) => limit, () = moving => Limit::Idle };
        assert_eq!((limit, busy.age()), (Limit::Length, LENGTH));
    }

    #[tokio::test(start_paused = true)]
    async fn silence__should_count_only_while_somebody_listens() {
        let activity = Activity::new();
        tokio::time::advance(IDLE * 2).await;
        assert!(activity.is_silent(IDLE));
        activity.deaf(true);
        assert!(!activity.is_silent(IDLE));
        activity.deaf(false);
        activity.heard();
        assert!(!activity.is_silent(IDLE));
    }
}
