//! What the reconciler remembers of each instance between passes: what it last saw, what it is
//! doing, and what went wrong. All of it can be lost; it is seen again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceReport, LastExit, Phase},
    ids::InstanceId,
};

use super::{
    attempts::Attempts,
    observe::{Earlier, Seen},
    phase::phase,
    plan::{Action, Plan, must_be_made_again, plan},
    probe::{Health, Probes},
};
use crate::{images::Images, lease, ledger::Entry, volume::Volume};

#[derive(Default)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Default)]
struct State {
    instances: BTreeMap<InstanceId, Instance>,
    unknown: BTreeMap<InstanceId, Option<u16>>,
}

struct Instance {
    entry: Arc<Entry>,
    seen: Seen,
    attempts: Attempts,
    /// How its container last ended by itself; shown while that matters.
    last_exit: Option<LastExit>,
    doing: Option<Action>,
    never_restart: &'static [i64],
}

impl Progress {
    /// Instances that a worker is at.
    pub(super) fn busy(&self) -> BTreeSet<InstanceId> {
        self.lock()
            .instances
            .iter()
            .filter(|(_, instance)| instance.doing.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    /// What was seen of instances that no worker is at.
    pub(super) fn earlier(&self) -> Earlier {
        let state = self.lock();
        let idle = state.instances.iter().filter(|(_, instance)| instance.doing.is_none());
        idle.map(|(id, instance)| (*id, (Arc::clone(&instance.entry), instance.seen.clone())))
            .collect()
    }

    /// Takes in what was seen, and plans.
    pub(super) fn decide(&self, entry: &Arc<Entry>, seen: &Seen, never_restart: &'static [i64], refusal: Option<String>) -> Plan {
        let mut state = self.lock();
        let before = state
            .instances
            .remove(&entry.order.id)
            .map(|instance| (instance.attempts, instance.last_exit));
        let (attempts, last_exit) = before.unwrap_or_default();
        let instance = state.instances.entry(entry.order.id).or_insert(Instance {
            entry: Arc::clone(entry),
            seen: seen.clone(),
            attempts,
            last_exit: seen.last_exit.clone().or(last_exit),
            doing: None,
            never_restart,
        });
        let attempts = &mut instance.attempts;
        attempts.note_order(entry.order.generation);
        for part in &seen.observed.parts {
            let Some(container) = &part.container else { continue };
            match &container.finished_at {
                Some(finished_at) if entry.lapsed => attempts.note_stopped(part.member, &container.docker_id, finished_at),
                Some(finished_at) => attempts.note_exit(part.member, &container.docker_id, finished_at),
                None if container.run.is_up() => attempts.note_running(part.member),
                None => {}
            }
        }
        if let Some(reason) = refusal
            && entry.order.desired == Desired::Running
            && attempts.wait_after_failure().is_none()
        {
            attempts.note_failure(reason, true);
        }
        let plan = plan(&entry.order, &seen.observed, attempts, never_restart);
        // A step whose answer was lost may have come true all the same.
        if plan == Plan::default() {
            attempts.note_success();
        }
        plan
    }

    /// The kernel killed a process of an instance for want of memory.
    pub(super) fn note_memory_kill(&self, id: InstanceId) {
        if let Some(instance) = self.lock().instances.get_mut(&id) {
            instance.attempts.note_memory_kill();
        }
    }

    /// Docker was away and is back: whatever it could not do before it may do now.
    pub(super) fn try_again(&self) {
        for instance in self.lock().instances.values_mut() {
            instance.attempts.try_again();
        }
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

    /// What is here, but in no order, with the port that each keeps.
    pub(super) fn note_unknown(&self, unknown: BTreeMap<InstanceId, Option<u16>>) {
        let mut state = self.lock();
        for id in unknown.keys().filter(|id| !state.unknown.contains_key(id)) {
            tracing::warn!(instance = %id, "an instance runs here that no order names; it is left alone and reported");
        }
        state.unknown = unknown;
    }

    /// Forgets what is in no order any more.
    pub(super) fn retain(&self, ordered: &BTreeSet<InstanceId>) {
        self.lock()
            .instances
            .retain(|id, instance| ordered.contains(id) || instance.doing.is_some());
    }

    /// What to report of every instance now.
    pub(super) fn reports(&self, probes: &Probes, images: &Images) -> Vec<InstanceReport> {
        let state = self.lock();
        let unknown = state
            .unknown
            .iter()
            .filter(|(id, _)| !state.instances.contains_key(id))
            .map(|(id, ssh_port)| InstanceReport {
                id: *id,
                generation: None,
                phase: Phase::Unknown,
                reason: Some("no order names it".to_owned()),
                image_digest: None,
                address: None,
                ssh_fingerprint: None,
                disk_used: None,
                disk_limit: None,
                pending_change: false,
                last_exit: None,
                ssh_port: *ssh_port,
                pull: None,
            });
        state
            .instances
            .values()
            .map(|instance| instance.report(probes, images))
            .chain(unknown)
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    fn report(&self, probes: &Probes, images: &Images) -> InstanceReport {
        let order = &self.entry.order;
        let health = match &self.seen.running {
            Some(docker_id) => probes.health(order.id, docker_id),
            None => Health::Unknown,
        };
        let (phase, reason) = phase(
            order,
            &self.seen.observed,
            &self.attempts,
            health,
            self.doing,
            self.never_restart,
        );
        let volume = self.seen.observed.volume.as_ref();
        let usage = volume.and_then(Volume::usage);
        let warning = || {
            volume
                .filter(|_| order.desired == Desired::Running)?
                .warning(order.spec.resources.storage)
        };
        let reason = match phase {
            Phase::Stopping | Phase::Stopped if self.entry.lapsed => Some(lease::REASON.to_owned()),
            _ => reason.or_else(warning),
        };
        InstanceReport {
            id: order.id,
            generation: Some(order.generation),
            phase,
            reason,
            image_digest: self.seen.image_digest.clone(),
            address: self.seen.running.as_ref().map(|_| self.entry.link.address),
            ssh_fingerprint: self.seen.ssh_fingerprint.clone(),
            disk_used: usage.map(|usage| usage.shown),
            disk_limit: usage.and_then(|usage| usage.limit),
            pending_change: self.is_pending(),
            last_exit: self.last_exit(),
            ssh_port: Some(order.spec.ssh_port),
            pull: matches!(self.doing, Some(Action::PullImage(_)))
                .then(|| images.progress(&order.spec.image))
                .flatten(),
        }
    }

    /// The next container will be another one than this one, which serves its order.
    fn is_pending(&self) -> bool {
        let order = &self.entry.order;
        let pending = self.seen.observed.containers().any(|container| container.pending);
        pending && order.desired == Desired::Running && !must_be_made_again(order, &self.seen.observed)
    }

    /// How it ended, while it is down by itself or in a crash loop.
    fn last_exit(&self) -> Option<LastExit> {
        let wanted = self.entry.order.desired == Desired::Running;
        let shown = wanted && (self.seen.last_exit.is_some() || self.attempts.is_looping_now());
        self.last_exit.clone().filter(|_| shown && !self.attempts.was_stopped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixtures, link::Pool};

    #[test]
    fn decide__should_forget_a_failure_once_nothing_is_left_to_do() -> anyhow::Result<()> {
        let order = fixtures::order(Desired::Stopped, 1);
        let id = order.id;
        let link = Pool::new("10.201.0.0/16".parse()?)?.link(id, 1)?;
        let entry = Arc::new(Entry {
            order,
            link,
            lapsed: false,
        });
        let progress = Progress::default();
        let told = || {
            progress.decide(&entry, &Seen::default(), &[], None);
            progress.lock().instances[&id].attempts.reason().map(str::to_owned)
        };
        assert_eq!(told(), None);
        progress.finish(id, Some(("Docker went away while it stopped it".to_owned(), true)));
        assert!(told().is_some(), "it is told for a while");
        progress.try_again();
        assert_eq!(told(), None);
        Ok(())
    }
}
