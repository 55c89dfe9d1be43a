//! What anybody who finds a port can cause must not fill the log: it is counted, and told once a minute.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

const PERIOD: Duration = Duration::from_secs(60);

/// Connections and requests that a listener refused.
#[derive(Debug)]
pub struct Refusals {
    listener: &'static str,
    total: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    waiting: u64,
}

impl Told {
    /// How many to tell of now, if any.
    fn another(&mut self, now: Instant) -> Option<u64> {
        self.waiting += 1;
        if self.at.is_some_and(|at| now.duration_since(at) < PERIOD) {
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.waiting))
    }
}

impl Refusals {
    /// Of the listener with that name.
    pub fn new(listener: &'static str) -> Self {
        Self {
            listener,
            total: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    /// One more. No client: nobody could be accepted.
    pub fn note(&self, client: Option<SocketAddr>, why: impl Display) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let listener = self.listener;
        tracing::debug!(listener, ?client, "refused: {why}");
        let count = self
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .another(Instant::now());
        if let Some(count) = count {
            tracing::warn!(listener, count, last_client = ?client, "refused since the last such line; the last one: {why}");
        }
    }

    /// Since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals__should_be_told_once_a_minute_with_their_number() {
        let mut told = Told::default();
        let start = Instant::now();
        assert_eq!(told.another(start), Some(1));
        assert_eq!(told.another(start), None);
        assert_eq!(told.another(start + Duration::from_secs(59)), None);
        assert_eq!(told.another(start + PERIOD), Some(3));
        assert_eq!(told.another(start + PERIOD), None);
    }
}
