//! When the coordinator last answered, kept over a restart of the node agent: leases count from it.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crabshack_shared::{agent_api::v1::InstanceOrder, ids::InstanceId, seal::SealError};
use tokio::sync::Notify;

use super::{
    Ledger, LedgerError,
    schema::{ANSWERED, RECORDS},
};
use crate::lease::{self, Moment, Silence};

/// What the coordinator answered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// The node has its orders as they are now.
    Orders,
    /// It is there, and may have other orders for the node.
    Report,
}

#[derive(Debug, Default)]
pub(super) struct Contact {
    last: Mutex<Option<Moment>>,
    renewed: Notify,
}

impl Contact {
    pub(super) fn of(last: Option<Moment>) -> Self {
        Self {
            last: Mutex::new(last),
            renewed: Notify::new(),
        }
    }

    pub(super) fn silence(&self, now: &Moment) -> Silence {
        lease::silence(self.lock().as_ref(), now)
    }

    /// Wakes who waits for [`Ledger::answered`].
    pub(super) fn look_again(&self) {
        self.renewed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Moment>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// The coordinator answered a call that was sent at this moment: from then on it counts, since
    /// the answer may be older than its arrival. Written down where an instance has a lease.
    ///
    /// # Errors
    /// When it cannot be written down; it counts until the node agent ends.
    pub(crate) fn note_answer(&self, sent: &Moment, call: Call) -> Result<(), LedgerError> {
        let shortest = lease::shortest(self.leased().iter());
        // What was stopped by its lease may have been placed elsewhere meanwhile: only orders bring it back.
        if call == Call::Report && self.has_lapsed() {
            return Ok(());
        }
        {
            let mut last = self.contact.lock();
            if last.as_ref().is_some_and(|last| !sent.is_after(last)) {
                return Ok(());
            }
            *last = Some(sent.clone());
        }
        self.contact.look_again();
        if shortest.is_none() {
            return Ok(());
        }
        let text = serde_json::to_string(sent).map_err(SealError::Content)?;
        self.write(|transaction| {
            transaction.open_table(RECORDS)?.insert(ANSWERED, text.as_str())?;
            Ok(())
        })
    }

    /// How long the coordinator has been silent.
    pub(crate) fn silence(&self) -> Silence {
        self.contact.silence(&Moment::now())
    }

    /// Ends when the coordinator answers or orders arrive.
    pub(crate) async fn answered(&self) {
        self.contact.renewed.notified().await;
    }

    /// Whether the shortest lease is over: then the node must ask for its orders before it goes on.
    pub(crate) fn has_lapsed(&self) -> bool {
        let shortest = lease::shortest(self.leased().iter());
        shortest.is_some_and(|shortest| self.silence().is_none_or(|silence| silence >= shortest))
    }

    /// Instances whose lease is over.
    pub(crate) fn leases_over(&self) -> BTreeSet<InstanceId> {
        let silence = self.silence();
        let orders = self.leased();
        let over = orders.iter().filter(|order| lease::is_over(order, silence));
        over.map(|order| order.id).collect()
    }

    /// The orders of instances that have a lease, as they were given.
    pub(crate) fn leased(&self) -> Vec<InstanceOrder> {
        let state = self.lock();
        let leased = state.entries.values().filter(|held| held.lapsed.is_some());
        leased.map(|held| held.entry.order.clone()).collect()
    }
}
