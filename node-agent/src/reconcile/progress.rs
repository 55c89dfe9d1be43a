//! What the reconciler remembers of each instance between passes: what it last saw, what it is
//! doing, and what went wrong. All of it can be lost; it is seen again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceReport, Phase},
    ids::InstanceId,
};

use super::{
    attempts::Attempts,
    observe::{Earlier, Seen},
    phase::phase,
    plan::{Action, Plan, Run, plan},
    probe::{Health, Probes},
};
use crate::ledger::Entry;

#[derive(Default)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Default)]
struct State {
    instances: BTreeMap<InstanceId, Instance>,
    unknown: BTreeSet<InstanceId>,
}

struct Instance {
    entry: Arc<Entry>,
    seen: Seen,
    attempts: Attempts,
    doing: Option<Action>,
    never_restart: &'static [i64],
}

impl Progress {
    /// Instances that a worker is at.
    pub(super) fn busy(&self) -> BTreeSet<InstanceId> {
        self.lock().instances.iter().filter(|(_, instance)| instance.doing.is_some()).map(|(id, _)| *id).collect()
    }

    /// What was seen of instances at which nothing was to be done.
    pub(super) fn settled(&self) -> Earlier {
        let state = self.lock();
        let settled = state.instances.iter().filter(|(_, instance)| instance.doing.is_none() && instance.seen.observed.files);
        settled.map(|(id, instance)| (*id, (Arc::clone(&instance.entry), instance.seen.clone()))).collect()
    }

    /// Takes in what was seen, and plans.
    pub(super) fn decide(&self, entry: &Arc<Entry>, seen: &Seen, never_restart: &'static [i64], refusal: Option<String>) -> Plan {
        let mut state = self.lock();
        let attempts = state.instances.remove(&entry.order.id).map(|instance| instance.attempts).unwrap_or_default();
        let instance = state.instances.entry(entry.order.id).or_insert(Instance {
            entry: Arc::clone(entry),
            seen: seen.clone(),
            attempts,
            doing: None,
            never_restart,
        });
        let attempts = &mut instance.attempts;
        attempts.note_order(entry.order.generation);
        match (&seen.observed.container, &seen.finished_at) {
            (Some(container), Some(finished_at)) => attempts.note_exit(&container.docker_id, finished_at),
            (Some(container), None) if container.run == Run::Running => attempts.note_running(),
            _ => {}
        }
        if let Some(reason) = refusal
            && entry.order.desired == Desired::Running
            && attempts.wait_after_failure().is_none()
        {
            attempts.note_failure(reason, true);
        }
        plan(&entry.order, &seen.observed, attempts, never_restart)
    }

    /// A worker begins a step.
    pub(super) fn start(&self, id: InstanceId, action: Action) {
        if let Some(instance) = self.lock().instances.get_mut(&id) {
            instance.doing = Some(action);
        }
    }

    /// A worker has ended.
    pub(super) fn finish(&self, id: InstanceId, failure: Option<(String, bool)>) {
        if let Some(instance) = self.lock().instances.get_mut(&id) {
            instance.doing = None;
            match failure {
                Some((reason, needs_person)) => instance.attempts.note_failure(reason, needs_person),
                None => instance.attempts.note_success(),
            }
        }
    }

    /// What is here, but in no order.
    pub(super) fn note_unknown(&self, unknown: BTreeSet<InstanceId>) {
        let mut state = self.lock();
        for id in unknown.difference(&state.unknown) {
            tracing::warn!(instance = %id, "an instance runs here that no order names; it is left alone and reported");
        }
        state.unknown = unknown;
    }

    /// Forgets what is in no order any more.
    pub(super) fn retain(&self, ordered: &BTreeSet<InstanceId>) {
        self.lock().instances.retain(|id, instance| ordered.contains(id) || instance.doing.is_some());
    }

    /// What to report of every instance now.
    pub(super) fn reports(&self, probes: &Probes) -> Vec<InstanceReport> {
        let state = self.lock();
        let unknown = state.unknown.iter().filter(|id| !state.instances.contains_key(id)).map(|id| InstanceReport {
            id: *id,
            generation: None,
            phase: Phase::Unknown,
            reason: Some("no order names it".to_owned()),
            image_digest: None,
            address: None,
            ssh_fingerprint: None,
            pending_change: false,
            last_exit: None,
        });
        state.instances.values().map(|instance| instance.report(probes)).chain(unknown).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    fn report(&self, probes: &Probes) -> InstanceReport {
        let order = &self.entry.order;
        let health = match &self.seen.running {
            Some(docker_id) => probes.health(order.id, docker_id),
            None => Health::Unknown,
        };
        let (phase, reason) = phase(order, &self.seen.observed, &self.attempts, health, self.doing, self.never_restart);
        InstanceReport {
            id: order.id,
            generation: Some(order.generation),
            phase,
            reason,
            image_digest: self.seen.image_digest.clone(),
            address: self.seen.running.as_ref().map(|_| self.entry.link.address),
            ssh_fingerprint: self.seen.ssh_fingerprint.clone(),
            pending_change: false,
            last_exit: None,
        }
    }
}
