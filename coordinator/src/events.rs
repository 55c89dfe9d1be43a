//! Who changed: a broadcast that wakes streams. It carries only the id; what is true now is read from
//! the store, so that a missed or doubled event changes nothing.

use crabshack_shared::ids::InstanceId;
use tokio::sync::broadcast;

/// More than can happen while a stream looks at the store.
const BACKLOG: usize = 1024;

/// Sends and hands out changes.
#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<InstanceId>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::channel(BACKLOG).0,
        }
    }

    /// Says that an instance changed. Call it after the change is on disk.
    pub(crate) fn changed(&self, instance: InstanceId) {
        // An error only says that nobody listens.
        drop(self.sender.send(instance));
    }

    /// Listens from now on. Call it before reading the state that is to be followed.
    pub(crate) fn follow(&self, instance: InstanceId) -> Changes {
        Changes {
            receiver: self.sender.subscribe(),
            instance,
        }
    }
}

/// The changes of one instance.
#[derive(Debug)]
pub(crate) struct Changes {
    receiver: broadcast::Receiver<InstanceId>,
    instance: InstanceId,
}

impl Changes {
    /// Ends at the next change, or when one may have been missed. Never ends when we are stopping.
    pub(crate) async fn next(&mut self) {
        loop {
            match self.receiver.recv().await {
                Ok(instance) if instance == self.instance => return,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn changes__should_wake_for_their_instance_and_when_something_was_missed() {
        let events = Events::new();
        let (mine, other) = (InstanceId::random(), InstanceId::random());
        let mut changes = events.follow(mine);
        events.changed(other);
        assert!(changes.next().now_or_never().is_none());
        events.changed(mine);
        assert!(changes.next().now_or_never().is_some());
        for _ in 0..=BACKLOG {
            events.changed(other);
        }
        assert!(changes.next().now_or_never().is_some());
    }
}
