//! What happened to instances: the last transitions of each, kept as long as the instance or its disk.

use chrono::{DateTime, SubsecRound as _, Utc};
use crabshack_shared::{
    agent_api::v1::NodeEvent,
    api::events::{InstanceEvent, Origin, Wished},
    generation::Generation,
    ids::{InstanceId, NodeId},
};
use redb::ReadableTable as _;

use super::{Snapshot, Source, StoreError, Writing, tables};

/// So many are kept of each instance.
const KEPT: u64 = 200;
/// Longest reason that is taken from a node, in characters.
const REASON_LIMIT: usize = 1000;

/// A wish, as it is noted.
pub(crate) fn wished(
    event: Wished,
    origin: Origin,
    generation: Generation,
    at: DateTime<Utc>,
    reason: Option<String>,
) -> InstanceEvent {
    InstanceEvent {
        at: at.trunc_subsecs(3),
        event: Some(event),
        phase: None,
        reason,
        origin,
        generation: Some(generation.to_string()),
    }
}

/// What a node saw, as it is noted.
fn node_saw(seen: NodeEvent) -> InstanceEvent {
    InstanceEvent {
        at: seen.at,
        event: None,
        phase: Some(seen.phase),
        reason: seen.reason.map(|reason| reason.chars().take(REASON_LIMIT).collect()),
        origin: Origin::Node,
        generation: None,
    }
}

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// The last transitions of an instance, oldest first.
    pub(crate) fn events(&self, instance: InstanceId) -> Result<Vec<InstanceEvent>, StoreError> {
        let mut all = Vec::new();
        let id = instance.to_string();
        self.0.each_event(&id, |_, bytes| {
            all.push(tables::decode_named("events", &id, bytes)?);
            Ok(())
        })?;
        Ok(all)
    }
}

impl Writing {
    /// Adds a transition; the oldest one makes room.
    pub(crate) fn note(&self, instance: InstanceId, event: &InstanceEvent) -> Result<(), StoreError> {
        self.note_numbered(instance, event).map(drop)
    }

    /// Says more of a transition, by its number, if it is still kept.
    pub(crate) fn amend(&self, instance: InstanceId, number: u64, event: &InstanceEvent) -> Result<(), StoreError> {
        let bytes = tables::encode(event)?;
        let id = instance.to_string();
        let key = (id.as_str(), number);
        let mut opened = self.0.open_table(tables::EVENTS)?;
        if opened.get(key)?.is_some() {
            opened.insert(key, bytes.as_slice())?;
        }
        Ok(())
    }

    /// As [`Self::note`]; the number is for [`Self::amend`].
    pub(crate) fn note_numbered(&self, instance: InstanceId, event: &InstanceEvent) -> Result<u64, StoreError> {
        let bytes = tables::encode(event)?;
        let id = instance.to_string();
        let mut opened = self.0.open_table(tables::EVENTS)?;
        let last = opened.range((id.as_str(), 0)..=(id.as_str(), u64::MAX))?.next_back();
        let next = match last.transpose()? {
            Some((key, _)) => key.value().1 + 1,
            None => 0,
        };
        opened.insert((id.as_str(), next), bytes.as_slice())?;
        if let Some(oldest) = next.checked_sub(KEPT) {
            opened.remove((id.as_str(), oldest))?;
        }
        Ok(next)
    }

    /// Adds what a node saw since the last event of it that is kept, in its order. What is said of
    /// instances that were never on that node is dropped. Returns the sequence of the last event
    /// that need not be sent again.
    pub(crate) fn keep_node_events(&self, node: &NodeId, mut events: Vec<NodeEvent>) -> Result<u64, StoreError> {
        let kept = self.events_kept(node)?;
        events.sort_by_key(|event| event.sequence);
        let mut last = kept;
        for event in events {
            if event.sequence <= last {
                continue;
            }
            last = event.sequence;
            let id = event.instance;
            let record = match self.instance(id)? {
                Some(record) => Some(record),
                None => self.retired(id)?,
            };
            if record.is_some_and(|record| record.was_on(node)) {
                self.note(id, &node_saw(event))?;
            }
        }
        if last != kept {
            self.set_events_kept(node, last)?;
        }
        Ok(last)
    }

    /// Forgets the history of an instance.
    pub(super) fn drop_events(&self, instance: &str) -> Result<(), StoreError> {
        let mut opened = self.0.open_table(tables::EVENTS)?;
        opened.retain_in((instance, 0)..=(instance, u64::MAX), |_, _| false)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
