//! Makes the node as its ledger says, for ever: woken by new orders, by Docker's events, by probes,
//! and by a period. A pass observes everything, plans per instance, and hands each plan to a worker
//! of that instance, so that one hanging stop delays nobody else. There is no other code path.

pub(crate) mod apply;
pub(crate) mod attempts;
pub(crate) mod observe;
pub(crate) mod phase;
pub(crate) mod plan;
pub(crate) mod probe;
mod progress;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crabshack_shared::{agent_api::v1::InstanceReport, halt::Halt, ids::InstanceId, shutdown::Shutdown, telemetry::Chain};
use futures_util::StreamExt as _;
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    doctor::Repairs,
    ledger::{Entry, Ledger},
    node::Node,
    recipe,
};
use observe::{ObserveError, Snapshot};
use plan::{Action, must_be_made_again};
use probe::{Probes, Target};
use progress::Progress;

/// How often everything is looked at even when nothing calls.
const PERIOD: Duration = Duration::from_secs(10);
/// So many instances are looked at in full each period, in turn; of the others only what Docker lists.
/// What happens to a container is seen at once all the same, by Docker's events.
const IN_FULL: usize = 32;
/// How long the node agent waits, after its start, for the first answer of every instance.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);
/// How soon to look again when Docker does not answer.
const WHEN_BLIND: Duration = Duration::from_millis(500);
/// So many workers make Docker work at once; more only makes each slower.
const WORKERS: usize = 4;

/// The reconciler of the node.
pub(crate) struct Reconciler {
    node: Node,
    ledger: Arc<Ledger>,
    probes: Probes,
    halt: Halt,
    wake: Arc<Notify>,
    progress: Progress,
    armed: observe::ArmedCache,
    reports: watch::Sender<Arc<Vec<InstanceReport>>>,
    /// True once everything on the node has been seen after the start.
    adopted: watch::Sender<bool>,
    began: Instant,
    /// True while Docker or the ruleset cannot be looked at.
    blind: watch::Sender<bool>,
    /// How long a pass takes, in seconds.
    passes: Histogram,
    /// Hears of everything that somebody changed and a plan puts right.
    repairs: Arc<Repairs>,
    permits: Semaphore,
    /// Where the last turn of looking in full ended.
    cursor: AtomicUsize,
}

impl Reconciler {
    /// `wake` starts a pass; whoever changes something that a pass reads notifies it.
    pub(crate) fn new(
        node: Node,
        ledger: Arc<Ledger>,
        probes: Probes,
        halt: Halt,
        wake: Arc<Notify>,
        passes: Histogram,
        repairs: Arc<Repairs>,
    ) -> Self {
        Self {
            node,
            ledger,
            probes,
            halt,
            wake,
            progress: Progress::default(),
            armed: observe::ArmedCache::default(),
            reports: watch::channel(Arc::default()).0,
            adopted: watch::channel(false).0,
            began: Instant::now(),
            blind: watch::channel(false).0,
            passes,
            repairs,
            permits: Semaphore::new(WORKERS),
            cursor: AtomicUsize::new(0),
        }
    }

    /// What is observed of every instance, whenever it changes.
    pub(crate) fn reports(&self) -> watch::Receiver<Arc<Vec<InstanceReport>>> {
        self.reports.subscribe()
    }

    /// Becomes true once everything on the node has been seen after the start.
    pub(crate) fn adopted(&self) -> watch::Receiver<bool> {
        self.adopted.subscribe()
    }

    /// True while the node cannot be observed: then nothing is changed, and what was reported last stands.
    pub(crate) fn blind(&self) -> watch::Receiver<bool> {
        self.blind.subscribe()
    }

    /// Runs until the shutdown.
    pub(crate) fn spawn(self: Arc<Self>, shutdown: &Shutdown) {
        shutdown.spawn(Arc::clone(&self).listen());
        shutdown.spawn(self.run());
    }

    async fn run(self: Arc<Self>) {
        let mut workers: JoinSet<()> = JoinSet::new();
        let mut period = tokio::time::interval_at(Instant::now() + PERIOD, PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut verify = true;
        loop {
            let began = Instant::now();
            let look_again = match self.pass(verify, &mut workers).await {
                Ok(look_again) => {
                    self.passes.observe(began.elapsed().as_secs_f64());
                    if self.blind.send_if_modified(|blind| std::mem::replace(blind, false)) {
                        tracing::info!("the node can be observed again");
                    }
                    verify = false;
                    look_again
                }
                Err(error) => {
                    if self.blind.send_if_modified(|blind| !std::mem::replace(blind, true)) {
                        tracing::error!(error = %Chain(&error), "the node cannot be observed; instances run on, nothing is changed until it can");
                    }
                    Some(WHEN_BLIND)
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                _ = period.tick() => verify = true,
                () = tokio::time::sleep(look_again.unwrap_or(PERIOD)) => {}
                Some(_) = workers.join_next() => {}
            }
        }
    }

    /// Wakes the reconciler when Docker reports something of ours.
    async fn listen(self: Arc<Self>) {
        loop {
            let began = Instant::now();
            let mut events = std::pin::pin!(self.node.docker.events());
            while let Some(Ok(happening)) = events.next().await {
                self.node.docker.forget(|id| id == happening.instance);
                if happening.out_of_memory {
                    self.progress.note_memory_kill(happening.instance);
                }
                self.wake.notify_one();
            }
            // Docker is away or restarts: whatever happened meanwhile is seen by a pass.
            tokio::time::sleep(WHEN_BLIND).await;
            self.node.docker.forget(|_| true);
            // One that refuses is not one that was there until now.
            if began.elapsed() > 2 * WHEN_BLIND {
                self.progress.try_again();
            }
            self.wake.notify_one();
        }
    }

    /// Observes, plans, and sends workers off. Returns when to look again.
    async fn pass(self: &Arc<Self>, verify: bool, workers: &mut JoinSet<()>) -> Result<Option<Duration>, ObserveError> {
        if verify {
            self.armed.verify(&self.node.egress).await?;
            self.node.volumes.refresh().await?;
        }
        // Taken before looking: what a worker changes meanwhile is looked at when it has ended.
        let busy = self.progress.busy();
        let entries = self.ledger.entries();
        let earlier = self.progress.earlier();
        let in_full = if verify { self.take_turn(&entries) } else { BTreeSet::new() };
        self.node.docker.forget(|id| in_full.contains(&id));
        let snapshot = observe::observe(&self.node, &entries, &self.armed, &earlier, &in_full).await?;
        let mut look_again: Option<Duration> = None;
        for entry in entries.iter().filter(|entry| !busy.contains(&entry.order.id)) {
            self.tell_repairs(entry, &earlier, &snapshot);
            if let Some(wait) = self.decide(entry, &snapshot, workers) {
                look_again = Some(look_again.map_or(wait, |known| known.min(wait)));
            }
        }
        self.progress.note_unknown(snapshot.unknown);
        let ordered: BTreeSet<InstanceId> = entries.iter().map(|entry| entry.order.id).collect();
        self.progress.retain(&ordered);
        self.repairs.retain(&ordered);
        self.publish();
        // What answers must not be reported as starting, only because nobody has asked it yet.
        if self.probes.all_asked() || self.began.elapsed() >= FIRST_ANSWERS {
            self.adopted.send_if_modified(|adopted| !std::mem::replace(adopted, true));
        } else {
            look_again = Some(look_again.map_or(FIRST_ANSWERS, |known| known.min(FIRST_ANSWERS)));
        }
        Ok(look_again)
    }

    /// The instances whose turn it is to be looked at in full.
    fn take_turn(&self, entries: &[Arc<Entry>]) -> BTreeSet<InstanceId> {
        let from = self.cursor.fetch_add(IN_FULL, Ordering::Relaxed);
        turn(from, entries.len()).map(|at| entries[at].order.id).collect()
    }

    fn tell_repairs(&self, entry: &Arc<Entry>, earlier: &observe::Earlier, snapshot: &Snapshot) {
        let id = entry.order.id;
        let same = earlier.get(&id).filter(|(known, _)| Arc::ptr_eq(known, entry));
        if let Some(now) = snapshot.instances.get(&id) {
            self.repairs
                .compare(entry, same.map(|(_, seen)| &seen.observed), &now.observed);
        }
    }

    fn decide(self: &Arc<Self>, entry: &Arc<Entry>, snapshot: &Snapshot, workers: &mut JoinSet<()>) -> Option<Duration> {
        let id = entry.order.id;
        let seen = snapshot.instances.get(&id)?;
        let recipe = recipe::recipe(&entry.order.spec);
        let never_restart = recipe.map_or(&[][..], |recipe| recipe.never_restart_exit);
        // What runs already is not touched when the node's list changes.
        let refused_image = || {
            let made = must_be_made_again(&entry.order, &seen.observed);
            made.then(|| self.node.images.refusal(&entry.order.spec.image)).flatten()
        };
        let refusal = recipe::refusal(&entry.order.spec).or_else(refused_image);
        let plan = self.progress.decide(entry, seen, never_restart, refusal);
        match (&seen.running, recipe) {
            (Some(docker_id), Some(recipe)) => self.probes.watch(Target {
                instance: id,
                docker_id: docker_id.clone(),
                address: entry.link.address,
                port: recipe.service.gateway_port,
                path: recipe.service.health_path,
            }),
            _ => self.probes.forget(id),
        }
        if !plan.actions.is_empty() {
            self.progress.start(id, plan.actions[0]);
            workers.spawn(Arc::clone(self).work(Arc::clone(entry), plan.actions));
        }
        plan.look_again
    }

    /// Applies a plan, step by step, unless a newer order overtakes it.
    async fn work(self: Arc<Self>, entry: Arc<Entry>, actions: Vec<Action>) {
        let id = entry.order.id;
        let mut outcome = Outcome {
            reconciler: &self,
            instance: id,
            failure: Some((
                "a worker ended in the middle: this is a fault of the node agent".to_owned(),
                false,
            )),
        };
        let mut failure = None;
        for action in actions {
            let overtaken = self
                .ledger
                .entry(id)
                .is_none_or(|now| now.order.generation != entry.order.generation || now.lapsed != entry.lapsed);
            if overtaken {
                break;
            }
            self.progress.start(id, action);
            if matches!(action, Action::PullImage(_)) {
                self.publish();
            }
            // What a tenant can draw out must not keep others from being made.
            let permit = match action {
                Action::StopContainer(_) | Action::PullImage(_) | Action::Reconfigure | Action::RemoveVolume => None,
                _ => self.permits.acquire().await.ok(),
            };
            tracing::info!(action = action.name(), instance = %id, "action");
            let result = self
                .halt
                .around(action.name(), || apply::apply(&self.node, &self.armed, &entry, action))
                .await;
            drop(permit);
            if let Err(error) = result {
                tracing::warn!(action = action.name(), instance = %id, error = %Chain(&error), "an action failed and will be tried again");
                failure = Some((Chain(&error).to_string(), error.needs_person()));
                break;
            }
        }
        outcome.failure = failure;
    }

    /// Sends out what is known now, if it differs from what was sent last.
    fn publish(&self) {
        let reports = self.progress.reports(&self.probes, &self.node.images);
        self.reports.send_if_modified(|sent| {
            let differs = **sent != reports;
            if differs {
                // Every state in between becomes an event, also those that nobody fetches in time.
                self.ledger.note_phases(&reports);
                if let Err(error) = self.ledger.note_well(&reports) {
                    tracing::warn!(error = %Chain(&error), "it cannot be written down with which images instances are well");
                }
                *sent = Arc::new(reports);
            }
            differs
        });
    }
}

/// Ends a worker's turn however it ends: an instance whose worker panicked would stay busy for ever.
struct Outcome<'a> {
    reconciler: &'a Reconciler,
    instance: InstanceId,
    failure: Option<(String, bool)>,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        self.reconciler.progress.finish(self.instance, self.failure.take());
        self.reconciler.wake.notify_one();
    }
}

/// Which of so many are next, from where the last turn ended.
fn turn(from: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count.min(IN_FULL)).map(move |step| from.wrapping_add(step) % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn__should_come_to_everybody_and_nobody_twice() {
        assert_eq!(turn(7, 0).count(), 0);
        assert_eq!(turn(7, 3).collect::<BTreeSet<_>>(), BTreeSet::from([0, 1, 2]));
        let seen: Vec<usize> = (0..4).flat_map(|round| turn(round * IN_FULL, 4 * IN_FULL)).collect();
        assert_eq!(seen, (0..4 * IN_FULL).collect::<Vec<_>>());
    }
}
