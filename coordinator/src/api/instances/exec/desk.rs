//! Tickets, and how many commands run at a time. In memory: a restart ends what was open, too.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crabshack_shared::{
    exec::{PER_INSTANCE, PER_NODE, Request, Seat, Seats},
    ids::{InstanceId, NodeId, UserId},
    instance::InstanceName,
    problem::Problem,
    secret::Secret,
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A client opens its WebSocket at once.
pub(super) const TICKET_LIFE: Duration = Duration::from_secs(30);

/// What is asked for and not yet opened, and what is open.
#[derive(Debug)]
pub(crate) struct Desk {
    /// By the hash of the ticket.
    pending: Mutex<HashMap<[u8; 32], (Instant, Pending)>>,
    instances: Seats<InstanceId>,
    nodes: Seats<NodeId>,
}

/// A command that may be run.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) name: InstanceName,
    pub(super) instance: InstanceId,
    pub(super) node: NodeId,
    pub(super) request: Request,
    pub(super) who: UserId,
    /// Cancelled with the token of the instance.
    pub(super) session: CancellationToken,
    #[expect(dead_code, reason = "holds its place for as long as it is there")]
    pub(super) seats: (Seat<InstanceId>, Seat<NodeId>),
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            pending: Mutex::default(),
            instances: Seats::new(PER_INSTANCE),
            nodes: Seats::new(PER_NODE),
        }
    }
}

impl Desk {
    /// Says so when as many run as may.
    pub(super) fn take_seats(&self, instance: InstanceId, node: &NodeId) -> Result<(Seat<InstanceId>, Seat<NodeId>), Problem> {
        drop(self.pending());
        let full = |limit: usize, place: &str| {
            Problem::too_many(format!(
                "{limit} commands run {place} already, or have a ticket: end one of them first"
            ))
        };
        let own = self.instances.take(&instance);
        let own = own.ok_or_else(|| full(PER_INSTANCE, "in this instance"))?;
        let shared = self.nodes.take(node).ok_or_else(|| full(PER_NODE, "on its node"))?;
        Ok((own, shared))
    }

    /// The ticket that lets it begin.
    pub(super) fn issue(&self, pending: Pending) -> Secret {
        let ticket = Secret::random();
        self.pending().insert(key(&ticket), (Instant::now() + TICKET_LIFE, pending));
        ticket
    }

    /// Takes a ticket; none: it is not good here.
    pub(super) fn redeem(&self, ticket: &Secret, name: &InstanceName) -> Option<Pending> {
        let (_, pending) = self.pending().remove(&key(ticket))?;
        (pending.name == *name && !pending.session.is_cancelled()).then_some(pending)
    }

    /// Those whose time is not over.
    fn pending(&self) -> MutexGuard<'_, HashMap<[u8; 32], (Instant, Pending)>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        pending.retain(|_, (expires, _)| *expires > now);
        pending
    }
}

fn key(ticket: &Secret) -> [u8; 32] {
    Sha256::digest(ticket.expose()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(desk: &Desk, name: &str, instance: InstanceId) -> Result<Pending, Problem> {
        let node = NodeId::random();
        Ok(Pending {
            name: name.parse().unwrap(),
            instance,
            seats: desk.take_seats(instance, &node)?,
            node,
            request: Request::default(),
            who: UserId::admin(),
            session: CancellationToken::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn ticket__should_be_good_once_soon_and_for_its_instance() {
        let (desk, id) = (Desk::default(), InstanceId::random());
        let issue = || desk.issue(pending(&desk, "one", id).unwrap());
        let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
        let ticket = issue();
        assert!(desk.redeem(&ticket, &one).is_some());
        assert!(desk.redeem(&ticket, &one).is_none(), "used");
        let ticket = issue();
        assert!(desk.redeem(&ticket, &other).is_none());
        assert!(desk.redeem(&ticket, &one).is_none(), "shown for another instance");
        let ticket = issue();
        tokio::time::advance(TICKET_LIFE).await;
        assert!(desk.redeem(&ticket, &one).is_none(), "expired");
        let revoked = pending(&desk, "one", id).unwrap();
        let session = revoked.session.clone();
        let ticket = desk.issue(revoked);
        session.cancel();
        assert!(desk.redeem(&ticket, &one).is_none(), "revoked");
        assert!(desk.redeem(&Secret::random(), &one).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn seats__should_be_held_by_tickets_and_freed_with_them() {
        let (desk, id) = (Desk::default(), InstanceId::random());
        for _ in 0..PER_INSTANCE {
            desk.issue(pending(&desk, "one", id).unwrap());
        }
        let refused = pending(&desk, "one", id).unwrap_err();
        assert_eq!(refused.status(), http::StatusCode::TOO_MANY_REQUESTS);
        assert!(pending(&desk, "two", InstanceId::random()).is_ok());
        tokio::time::advance(TICKET_LIFE).await;
        assert!(pending(&desk, "one", id).is_ok());
    }
}
