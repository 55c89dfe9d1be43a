//! What is known of the nodes since this start, in memory only: when each was heard of, and a number
//! that changes with its orders and wakes its long poll.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, SubsecRound as _, Utc};
use crabshack_shared::{
    agent_api::v1::Finding,
    ids::{InstanceId, NodeId},
};
use rand::RngExt as _;
use tokio::sync::watch;

/// A node that was not heard of for so long is down. Nodes report every 10 seconds.
const ALIVE: Duration = Duration::from_secs(40);

/// All nodes that were heard of.
#[derive(Debug)]
pub(crate) struct Registry {
    started: Instant,
    /// Revisions start at a random number, so that a node that polls with one of an earlier start (or
    /// of another store) gets its orders at once. So what settings change in orders arrives, too.
    first_revision: u64,
    nodes: Mutex<HashMap<NodeId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    revision: watch::Sender<u64>,
    heard: Option<(Instant, DateTime<Utc>)>,
    unknown: BTreeSet<InstanceId>,
    foreign: BTreeSet<InstanceId>,
    findings: Vec<Finding>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            // Exact also for readers whose numbers are floating.
            first_revision: u64::from(rand::rng().random::<u32>()) << 20,
            nodes: Mutex::default(),
        }
    }

    /// Says that the orders of a node changed. Call it after the change is on disk.
    pub(crate) fn orders_changed(&self, node: &NodeId) {
        self.entry(&mut self.lock(), node)
            .revision
            .send_modify(|revision| *revision += 1);
    }

    /// Says that the orders of every node changed. Call it after the change is on disk.
    pub(crate) fn all_orders_changed(&self) {
        for entry in self.lock().values() {
            entry.revision.send_modify(|revision| *revision += 1);
        }
    }

    /// The revision of a node's orders, now and later. Read it before the orders.
    pub(crate) fn follow(&self, node: &NodeId) -> watch::Receiver<u64> {
        self.entry(&mut self.lock(), node).revision.subscribe()
    }

    /// Notes that a node spoke to us.
    pub(crate) fn heard(&self, node: &NodeId) {
        self.entry(&mut self.lock(), node).heard = Some((Instant::now(), Utc::now().trunc_subsecs(3)));
    }

    /// When a node last spoke to us.
    pub(crate) fn last_seen(&self, node: &NodeId) -> Option<DateTime<Utc>> {
        self.lock().get(node)?.heard.map(|(_, at)| at)
    }

    /// True for a node that speaks to us, and shortly after our start for all: they need a moment
    /// to come back.
    pub(crate) fn is_alive(&self, node: &NodeId) -> bool {
        self.silence(node) < ALIVE
    }

    /// How long ago a node last spoke to us; at most as long as we have been listening.
    pub(crate) fn silence(&self, node: &NodeId) -> Duration {
        let heard = self.lock().get(node).and_then(|entry| entry.heard);
        heard.map_or(self.started, |(at, _)| at).elapsed()
    }

    /// Makes a node's last word so old, for tests.
    #[cfg(test)]
    pub(crate) fn silent_for(&self, node: &NodeId, silence: Duration) {
        let at = Instant::now().checked_sub(silence).unwrap();
        self.entry(&mut self.lock(), node).heard = Some((at, Utc::now()));
    }

    /// Notes what `doctor` found on a node.
    pub(crate) fn found(&self, node: &NodeId, findings: Vec<Finding>) {
        self.entry(&mut self.lock(), node).findings = findings;
    }

    /// What `doctor` last found on a node.
    pub(crate) fn findings(&self, node: &NodeId) -> Vec<Finding> {
        self.lock().get(node).map(|entry| entry.findings.clone()).unwrap_or_default()
    }

    /// Notes what a node runs that we do not know, and what it runs that belongs to another node.
    /// Returns what is new in each.
    pub(crate) fn strangers(
        &self,
        node: &NodeId,
        unknown: BTreeSet<InstanceId>,
        foreign: BTreeSet<InstanceId>,
    ) -> (Vec<InstanceId>, Vec<InstanceId>) {
        let mut nodes = self.lock();
        let entry = self.entry(&mut nodes, node);
        let new = (
            unknown.difference(&entry.unknown).copied().collect(),
            foreign.difference(&entry.foreign).copied().collect(),
        );
        entry.unknown = unknown;
        entry.foreign = foreign;
        new
    }

    /// What a node runs that we do not know.
    pub(crate) fn unknown(&self, node: &NodeId) -> Vec<InstanceId> {
        let nodes = self.lock();
        nodes
            .get(node)
            .map(|entry| entry.unknown.iter().copied().collect())
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Entry>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<'a>(&self, nodes: &'a mut HashMap<NodeId, Entry>, node: &NodeId) -> &'a mut Entry {
        nodes.entry(node.clone()).or_insert_with(|| Entry {
            revision: watch::Sender::new(self.first_revision),
            heard: None,
            unknown: BTreeSet::new(),
            foreign: BTreeSet::new(),
            findings: Vec::new(),
        })
    }
}
