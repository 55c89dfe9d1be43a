//! What happened to the instances, until the coordinator has it: each change of phase gets the next
//! number, and is written down before it is sent. A kill may lose the last moment; it never makes a
//! number mean two things.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use crabshack_shared::{
    agent_api::v1::{InstanceReport, NodeEvent, Phase},
    ids::InstanceId,
    telemetry::Chain,
};
use redb::{ReadableDatabase as _, ReadableTable as _};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::{
    Ledger, LedgerError,
    schema::{EVENTS, META, SEQUENCE, TOLD},
};

/// So many of one instance are kept, and of all of them; the oldest go first.
const MOST_PER_INSTANCE: usize = 200;
const MOST: usize = 10_000;
/// How soon to try again when the disk refuses.
const RETRY: Duration = Duration::from_secs(1);

/// What the last event of an instance said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    phase: Phase,
    reason: Option<String>,
}

/// Events that the coordinator does not have yet, and what is needed to see the next one.
#[derive(Debug, Default)]
struct Queue {
    told: BTreeMap<InstanceId, Told>,
    /// Instances that answered when the node agent last ended, and have not been asked again yet.
    adopting: BTreeSet<InstanceId>,
    /// The last number that was given.
    last: u64,
    events: BTreeMap<u64, NodeEvent>,
    numbers: BTreeMap<InstanceId, BTreeSet<u64>>,
    /// Up to here they are on the disk; 0 at first.
    written: u64,
    unwritten: Unwritten,
}

/// What the disk does not show yet, beside new events.
#[derive(Debug, Default)]
struct Unwritten {
    told: BTreeSet<InstanceId>,
    removed: BTreeSet<u64>,
}

/// One transaction's worth.
struct Batch {
    events: Vec<NodeEvent>,
    removed: BTreeSet<u64>,
    told: Vec<(InstanceId, Option<Told>)>,
    last: u64,
}

impl Queue {
    /// Adds an event for everything that is another than what was told.
    fn note(&mut self, reports: &[InstanceReport], at: DateTime<Utc>) {
        for report in reports.iter().filter(|report| report.phase != Phase::Unknown) {
            let now = Told {
                phase: report.phase,
                reason: report.reason.clone(),
            };
            let before = self.told.get(&report.id);
            if before == Some(&now) || (self.adopting.contains(&report.id) && is_only_unasked(&now)) {
                continue;
            }
            self.adopting.remove(&report.id);
            let matters = before.is_none_or(|before| before.phase != now.phase) || now.reason.is_some();
            if matters {
                self.last += 1;
                self.insert(NodeEvent {
                    sequence: self.last,
                    at,
                    instance: report.id,
                    phase: report.phase,
                    reason: report.reason.clone(),
                });
            }
            self.told.insert(report.id, now);
            self.unwritten.told.insert(report.id);
        }
    }

    fn insert(&mut self, event: NodeEvent) {
        let numbers = self.numbers.entry(event.instance).or_default();
        numbers.insert(event.sequence);
        let surplus = (numbers.len() > MOST_PER_INSTANCE)
            .then(|| numbers.first().copied())
            .flatten();
        self.events.insert(event.sequence, event);
        let oldest = || self.events.keys().next().copied();
        let surplus = surplus.or_else(|| (self.events.len() > MOST).then(oldest).flatten());
        if let Some(surplus) = surplus {
            self.remove(surplus);
        }
    }

    fn remove(&mut self, sequence: u64) {
        let Some(event) = self.events.remove(&sequence) else { return };
        if let Some(numbers) = self.numbers.get_mut(&event.instance) {
            numbers.remove(&sequence);
            if numbers.is_empty() {
                self.numbers.remove(&event.instance);
            }
        }
        if sequence <= self.written {
            self.unwritten.removed.insert(sequence);
        }
    }

    /// The coordinator has everything up to this one. More than was ever given: this ledger is a new
    /// one, and its events must come after those of the one before.
    fn acknowledge(&mut self, kept: u64) {
        if kept > self.last {
            let waiting: Vec<NodeEvent> = self.events.values().cloned().collect();
            let numbers: Vec<u64> = self.events.keys().copied().collect();
            numbers.into_iter().for_each(|number| self.remove(number));
            self.last = kept;
            for event in waiting {
                self.last += 1;
                self.insert(NodeEvent {
                    sequence: self.last,
                    ..event
                });
            }
            return;
        }
        let known: Vec<u64> = self.events.range(..=kept).map(|(number, _)| *number).collect();
        known.into_iter().for_each(|number| self.remove(number));
    }

    fn forget(&mut self, instances: &[InstanceId]) {
        for id in instances {
            self.told.remove(id);
            self.unwritten.told.insert(*id);
        }
    }

    /// What is to be written; none: nothing.
    fn batch(&self) -> Option<Batch> {
        let batch = Batch {
            events: self
                .events
                .range(self.written + 1..)
                .map(|(_, event)| event.clone())
                .collect(),
            removed: self.unwritten.removed.clone(),
            told: self
                .unwritten
                .told
                .iter()
                .map(|id| (*id, self.told.get(id).cloned()))
                .collect(),
            last: self.last,
        };
        let nothing = batch.last == self.written && batch.removed.is_empty() && batch.told.is_empty();
        (!nothing).then_some(batch)
    }

    /// A batch is on the disk. What was removed meanwhile goes with the next one.
    fn note_written(&mut self, batch: &Batch) {
        let written = batch.events.iter().map(|event| event.sequence);
        let gone: Vec<u64> = written.filter(|number| !self.events.contains_key(number)).collect();
        self.unwritten.removed.extend(gone);
        self.unwritten.removed.retain(|number| !batch.removed.contains(number));
        for (id, told) in &batch.told {
            if self.told.get(id) == told.as_ref() {
                self.unwritten.told.remove(id);
            }
        }
        self.written = batch.last;
    }
}

/// After a restart of the node agent a running instance looks as if it were starting until it has
/// been asked once. That is no event.
fn is_only_unasked(now: &Told) -> bool {
    now.phase == Phase::Starting && now.reason.is_none()
}

/// The events of the node.
#[derive(Debug)]
pub(super) struct Journal {
    queue: Mutex<Queue>,
    changed: Notify,
    written: watch::Sender<u64>,
}

impl Default for Journal {
    fn default() -> Self {
        Self::of(Queue::default())
    }
}

impl Journal {
    fn of(queue: Queue) -> Self {
        Self {
            written: watch::channel(queue.written).0,
            queue: Mutex::new(queue),
            changed: Notify::new(),
        }
    }

    pub(super) fn forget(&self, instances: &[InstanceId]) {
        if !instances.is_empty() {
            self.lock().forget(instances);
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Takes in where the instances are now; what changed since the last time becomes an event.
    pub(crate) fn note_phases(&self, reports: &[InstanceReport]) {
        let mut queue = self.journal.lock();
        queue.note(reports, Utc::now());
        drop(queue);
        self.journal.changed.notify_one();
    }

    /// Writes events down as they come, as many at a time as came meanwhile, until the token is
    /// cancelled and the last is written.
    pub(crate) async fn keep_events(self: Arc<Self>, stop: CancellationToken) {
        let mut failed = false;
        loop {
            let ledger = Arc::clone(&self);
            match spawn_blocking(move || ledger.write_events()).await {
                Ok(Ok(())) => failed = false,
                Ok(Err(error)) if !std::mem::replace(&mut failed, true) => {
                    tracing::error!(error = %Chain(&error), "events cannot be written down; they wait in memory");
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::error!(%error, "the writer of events broke"),
            }
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = self.journal.changed.notified(), if !failed => {}
                () = tokio::time::sleep(RETRY), if failed => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// The oldest events that the coordinator does not have; at most so many.
    pub(crate) fn events(&self, most: usize) -> Vec<NodeEvent> {
        let queue = self.journal.lock();
        let written = queue.events.range(..=queue.written);
        written.take(most).map(|(_, event)| event.clone()).collect()
    }

    /// How many events wait for the coordinator.
    pub(crate) fn events_waiting(&self) -> usize {
        self.journal.lock().events.len()
    }

    /// The number of the last event that may be sent, whenever it changes.
    pub(crate) fn written_events(&self) -> watch::Receiver<u64> {
        self.journal.written.subscribe()
    }

    /// The coordinator has every event up to this one.
    pub(crate) fn acknowledge_events(&self, kept: u64) {
        self.journal.lock().acknowledge(kept);
        self.journal.changed.notify_one();
    }

    /// One commit for everything that came since the last.
    pub(super) fn write_events(&self) -> Result<(), LedgerError> {
        let Some(batch) = self.journal.lock().batch() else {
            return Ok(());
        };
        self.write(|transaction| {
            let mut events = transaction.open_table(EVENTS)?;
            for event in &batch.events {
                events.insert(event.sequence, json(event)?.as_str())?;
            }
            for number in &batch.removed {
                events.remove(number)?;
            }
            let mut told = transaction.open_table(TOLD)?;
            for (id, now) in &batch.told {
                let key = id.to_string();
                match now {
                    Some(now) => drop(told.insert(key.as_str(), json(now)?.as_str())?),
                    None => drop(told.remove(key.as_str())?),
                }
            }
            transaction.open_table(META)?.insert(SEQUENCE, batch.last)?;
            Ok(())
        })?;
        self.journal.lock().note_written(&batch);
        self.journal.written.send_if_modified(|written| {
            let newer = *written < batch.last;
            *written = batch.last;
            newer
        });
        Ok(())
    }

    /// Reads what an earlier run left. What it told of instances that are in no order is forgotten.
    pub(super) fn load_journal(&self, ordered: &BTreeSet<InstanceId>) -> Result<Journal, LedgerError> {
        let mut queue = Queue::default();
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        queue.last = transaction
            .open_table(META)?
            .get(SEQUENCE)?
            .map(|last| last.value())
            .unwrap_or_default();
        queue.written = queue.last;
        for row in transaction.open_table(EVENTS)?.iter()? {
            // One that cannot be read is lost, as the oldest are when there are too many.
            let (number, text) = row?;
            match serde_json::from_str(text.value()) {
                Ok(event) => queue.insert(event),
                Err(_) => drop(queue.unwritten.removed.insert(number.value())),
            }
        }
        for row in transaction.open_table(TOLD)?.iter()? {
            let (id, text) = row?;
            let Ok(id) = id.value().parse::<InstanceId>() else { continue };
            match serde_json::from_str::<Told>(text.value()) {
                Ok(told) if ordered.contains(&id) => {
                    if matches!(told.phase, Phase::Ready | Phase::Unhealthy) {
                        queue.adopting.insert(id);
                    }
                    queue.told.insert(id, told);
                }
                _ => drop(queue.unwritten.told.insert(id)),
            }
        }
        Ok(Journal::of(queue))
    }
}

fn json<T: Serialize>(value: &T) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(|source| crabshack_shared::seal::SealError::Content(source).into())
}

#[cfg(test)]
mod tests;
