//! What somebody changed under running instances, and whether it has been put right. The reconciler
//! sees and repairs; this only remembers it for a while, so that people learn of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crabshack_shared::{
    agent_api::v1::{Desired, Finding},
    ids::InstanceId,
};
use tokio::sync::watch;

use super::damage::{Damage, damages};
use crate::{ledger::Entry, reconcile::plan::Observed};

/// So long people can read that something was repaired.
const TOLD_FOR: Duration = Duration::from_secs(600);

/// What was changed, and is or was put right.
#[derive(Debug)]
pub(crate) struct Repairs {
    notes: Mutex<Notes>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Notes {
    instances: BTreeMap<(InstanceId, Damage), Note>,
}

#[derive(Debug)]
struct Note {
    text: String,
    repaired: bool,
    /// When it was seen or put right last.
    at: Instant,
}

impl Default for Repairs {
    fn default() -> Self {
        Self {
            notes: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Repairs {
    /// Compares two looks at an instance under the same order. `before` none: there was no such look.
    pub(crate) fn compare(&self, entry: &Entry, before: Option<&Observed>, now: &Observed) {
        let id = entry.order.id;
        let wanted = entry.order.desired == Desired::Running;
        let found = match before {
            Some(before) if wanted => damages(&entry.order, before, now),
            _ => Vec::new(),
        };
        let at = Instant::now();
        let mut changed = false;
        let mut notes = self.lock();
        notes.instances.retain(|&(whose, damage), note| {
            if whose != id || note.repaired {
                return true;
            }
            if wanted && damage.is_mended(&entry.order, now) {
                (note.repaired, note.at, changed) = (true, at, true);
            }
            // What is not to run any more needs no repair.
            changed |= !wanted;
            wanted
        });
        for (damage, text) in found {
            let repaired = false;
            notes.instances.insert((id, damage), Note { text, repaired, at });
            changed = true;
        }
        drop(notes);
        self.tell(changed);
    }

    /// Forgets instances that are in no order any more.
    pub(crate) fn retain(&self, ordered: &BTreeSet<InstanceId>) {
        self.lock().instances.retain(|(id, _), _| ordered.contains(id));
    }

    /// Everything that people should know now.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.findings_at(Instant::now())
    }

    /// A number that changes with them.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether all that was seen has been put right.
    #[cfg(test)]
    fn is_settled(&self) -> bool {
        self.lock().instances.values().all(|note| note.repaired)
    }

    fn findings_at(&self, now: Instant) -> Vec<Finding> {
        let mut notes = self.lock();
        let is_news = |at: &Instant| now.saturating_duration_since(*at) < TOLD_FOR;
        notes.instances.retain(|_, note| !note.repaired || is_news(&note.at));
        let instances = notes.instances.iter();
        let findings = instances.map(|((id, damage), note)| Finding {
            subject: damage.subject().to_owned(),
            instance: Some(*id),
            text: note.text.clone(),
            repaired: note.repaired,
        });
        findings.collect()
    }

    fn tell(&self, changed: bool) {
        self.changed.send_if_modified(|number| {
            *number += u64::from(changed);
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::damage::tests::{entry, healthy};

    fn told(repairs: &Repairs) -> Vec<(String, bool)> {
        let findings = repairs.findings().into_iter();
        findings.map(|finding| (finding.subject, finding.repaired)).collect()
    }

    #[test]
    fn repair__should_be_told_from_its_damage_to_its_end() {
        let (entry, repairs) = (entry(Desired::Running), Repairs::default());
        let healthy = healthy();
        let mut damaged = healthy.clone();
        damaged.armed = false;
        repairs.compare(&entry, None, &damaged);
        assert!(told(&repairs).is_empty(), "nobody saw it right before");
        repairs.compare(&entry, Some(&healthy), &damaged);
        assert_eq!(told(&repairs), [("instance egress".to_owned(), false)]);
        assert!(!repairs.is_settled());
        repairs.compare(&entry, Some(&damaged), &damaged);
        assert!(!repairs.is_settled(), "it is still so");
        let mut changes = repairs.changed();
        changes.mark_unchanged();
        repairs.compare(&entry, Some(&damaged), &healthy);
        assert_eq!(told(&repairs), [("instance egress".to_owned(), true)]);
        assert!(repairs.is_settled() && changes.has_changed().unwrap());
        assert!(repairs.findings_at(Instant::now() + TOLD_FOR).is_empty(), "old news");
    }

    #[test]
    fn repair__should_not_be_expected_of_what_is_not_to_run() {
        let (running, repairs) = (entry(Desired::Running), Repairs::default());
        let mut damaged = healthy();
        damaged.armed = false;
        repairs.compare(&running, Some(&healthy()), &damaged);
        let mut stopped = running.clone();
        stopped.order.desired = Desired::Stopped;
        repairs.compare(&stopped, None, &damaged);
        assert!(repairs.is_settled() && told(&repairs).is_empty());
        repairs.compare(&stopped, Some(&healthy()), &damaged);
        assert!(told(&repairs).is_empty());
    }

    #[test]
    fn repair__should_be_forgotten_with_its_instance() {
        let (entry, repairs) = (entry(Desired::Running), Repairs::default());
        let mut damaged = healthy();
        damaged.armed = false;
        repairs.compare(&entry, Some(&healthy()), &damaged);
        repairs.retain(&BTreeSet::new());
        assert!(told(&repairs).is_empty());
    }
}
