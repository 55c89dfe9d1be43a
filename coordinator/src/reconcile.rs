//! Makes the store's wishes come true as far as the coordinator can: gives instances a node, and lets
//! go of those that are gone. Woken by a signal and by a period; it takes no input and retries nothing:
//! what could not be done is planned again.

mod driver;
mod instances;
mod moves;

use tokio::sync::Notify;

#[cfg(test)]
pub(crate) use driver::pass;
pub(crate) use driver::run;

/// Wakes the reconciler. Waking it twice before it runs is the same as once.
#[derive(Debug, Default)]
pub(crate) struct Signal(Notify);

impl Signal {
    /// Call it after the change that it should see is on disk.
    pub(crate) fn wake(&self) {
        self.0.notify_one();
    }

    async fn woken(&self) {
        self.0.notified().await;
    }
}
