//! What is to be done about instances, and doing it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use crabshack_shared::{
    agent_api::v1::{Desired, Phase},
    api::events::{Origin, Wished},
    ids::{InstanceId, NodeId},
};

use super::moves;
use crate::{
    api::instances::deleted::purge_at,
    app::App,
    placement::{self, Candidate, Placement},
    status,
    store::{InstanceRecord, NodeRecord, Observation, StoreError, Writing, wished},
};

/// One step. Each can be done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Give an instance to a node.
    Place { instance: InstanceId, node: NodeId },
    /// Give an instance to another node: its own is lost, and has stopped it itself.
    Move { instance: InstanceId, from: NodeId, to: NodeId },
    /// Put away an instance of which only the disk is left.
    Retire { instance: InstanceId },
    /// Have the disk of a deleted instance removed: its time has come.
    Purge { instance: InstanceId },
    /// Let go of an instance of which nothing is left.
    Forget { instance: InstanceId },
}

impl Action {
    /// The name that the crash harness knows.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Place { .. } => "Place",
            Self::Move { .. } => "Move",
            Self::Retire { .. } => "Retire",
            Self::Purge { .. } => "Purge",
            Self::Forget { .. } => "Forget",
        }
    }

    /// Whom it is about.
    pub(crate) fn instance(&self) -> InstanceId {
        match self {
            Self::Place { instance, .. }
            | Self::Move { instance, .. }
            | Self::Retire { instance }
            | Self::Purge { instance }
            | Self::Forget { instance } => *instance,
        }
    }
}

/// False for the many instances about which nothing can be planned.
pub(crate) fn needs_attention(record: &InstanceRecord) -> bool {
    !record.is_living() || record.assignment.is_none()
}

/// What is to be done: a function of what it is given.
pub(crate) fn plan(
    records: &[InstanceRecord],
    observations: &HashMap<InstanceId, Observation>,
    nodes: &[NodeRecord],
    mut candidates: Vec<Candidate>,
    placement: &dyn Placement,
) -> Vec<Action> {
    let mut actions: Vec<Action> = records
        .iter()
        .filter_map(|record| ending(record, observations.get(&record.id), nodes))
        .collect();
    actions.extend(
        placement::seat_waiting(placement, &mut candidates, records)
            .into_iter()
            .filter_map(|(instance, seat)| {
                Some(Action::Place {
                    instance,
                    node: seat.ok()?,
                })
            }),
    );
    actions
}

/// The disks whose time has come.
pub(crate) fn purges(retired: &[InstanceRecord], grace: Duration, now: DateTime<Utc>) -> impl Iterator<Item = Action> {
    retired
        .iter()
        .filter(move |record| purge_at(record, grace) <= now)
        .map(|record| Action::Purge { instance: record.id })
}

/// How to let go of a deleted instance, once nothing of it can be running.
fn ending(record: &InstanceRecord, observation: Option<&Observation>, nodes: &[NodeRecord]) -> Option<Action> {
    let Desired::Deleted { purge } = record.desired else {
        return None;
    };
    let instance = record.id;
    let Some(node) = &record.assignment else {
        return Some(Action::Forget { instance });
    };
    let confirmed =
        observation.is_some_and(|observation| observation.report.phase == Phase::Deleted && status::answers(record, observation));
    // Who throws a node out says that nothing on it counts any more.
    let thrown_out = |node: &NodeId| nodes.iter().any(|known| known.id == *node && known.revoked);
    match (confirmed || thrown_out(node), purge) {
        (false, _) => None,
        // Nodes that had it before remove what it left there first.
        (true, true) if !record.left.iter().all(thrown_out) => None,
        (true, true) => Some(Action::Forget { instance }),
        (true, false) => Some(Action::Retire { instance }),
    }
}

/// The instance, if letting go of it is still what is to be done: it may have been asked back.
fn still(writing: &Writing, action: &Action) -> Result<Option<InstanceRecord>, StoreError> {
    let Some(record) = writing.instance(action.instance())? else {
        return Ok(None);
    };
    let observation = writing.observation(record.id)?;
    let now = ending(&record, observation.as_ref(), &writing.nodes()?);
    Ok(Some(record).filter(|_| now.as_ref() == Some(action)))
}

/// Does one step, in one transaction that looks again at what it changes.
pub(crate) async fn apply(app: &Arc<App>, action: &Action) -> Result<(), StoreError> {
    match action.clone() {
        Action::Place { instance, node } => {
            let chosen = node.clone();
            let placed = app
                .store
                .write(move |writing| -> Result<bool, StoreError> {
                    match writing.instance(instance)? {
                        Some(mut record) if record.is_living() && record.assignment.is_none() => {
                            record.assignment = Some(chosen);
                            writing.put_instance(&record)?;
                            Ok(true)
                        }
                        _ => Ok(false),
                    }
                })
                .await?;
            if placed {
                tracing::info!(instance.id = %instance, node.id = %node, "placed");
                app.registry.orders_changed(&node);
                app.events.changed(instance);
            }
        }
        Action::Move { .. } => moves::apply(app, action).await?,
        Action::Retire { instance } => {
            app.store
                .write(move |writing| match still(writing, &Action::Retire { instance })? {
                    Some(record) => writing.retire_instance(&record),
                    None => Ok(()),
                })
                .await?;
            tracing::info!(instance.id = %instance, "deleted, its disk is kept");
            app.events.changed(instance);
            app.reconciler.wake();
        }
        Action::Purge { instance } => {
            let written = app
                .store
                .write(move |writing| -> Result<_, StoreError> {
                    // It may have been asked back meanwhile.
                    let Some(mut record) = writing.retired(instance)? else {
                        return Ok(None);
                    };
                    writing.purge_instance(&mut record)?;
                    let reason = Some("it was deleted long enough ago".to_owned());
                    let event = wished(Wished::Purged, Origin::Coordinator, record.generation, Utc::now(), reason);
                    writing.note(instance, &event)?;
                    Ok(Some(record))
                })
                .await?;
            if let Some(record) = written {
                tracing::info!(instance.id = %instance, "the disk of a deleted instance is removed: its time has come");
                app.orders_changed(&record);
                app.events.changed(instance);
                // Of one on a node that was thrown out nothing more is to be waited for.
                app.reconciler.wake();
            }
        }
        Action::Forget { instance } => {
            app.store
                .write(move |writing| match still(writing, &Action::Forget { instance })? {
                    Some(record) => writing.forget_instance(&record),
                    None => Ok(()),
                })
                .await?;
            tracing::info!(instance.id = %instance, "deleted");
            app.events.changed(instance);
            // Its room may be what another one waits for.
            app.reconciler.wake();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        placement::Embedded,
        testing::{observation, record},
    };

    const NODE: &str = "node-000000000001";
    const EMBEDDED: Embedded = Embedded { overcommit: 1.0 };

    fn room(gibibytes: u64) -> Vec<Candidate> {
        vec![Candidate {
            node: NODE.parse().unwrap(),
            memory: gibibytes << 30,
            reserved: 0,
            cpus: 4000,
            storage: None,
            promised: 0,
            pressed: false,
            runtimes: Vec::new(),
        }]
    }

    fn node(revoked: bool) -> NodeRecord {
        NodeRecord {
            id: NODE.parse().unwrap(),
            hostname: String::new(),
            facts: None,
            revoked,
            enrolled_at: chrono::Utc::now(),
            certificate_serial: None,
        }
    }

    #[test]
    fn plan__should_place_the_oldest_first_and_only_as_many_as_fit() {
        let mut records: Vec<_> = (0..3).map(|_| record(Desired::Running, None)).collect();
        for (record, counter) in records.iter_mut().zip([7, 3, 5]) {
            record.generation.counter = counter;
        }
        records[1].desired = Desired::Stopped;
        let actions = plan(&records, &HashMap::new(), &[node(false)], room(2), &EMBEDDED);
        let place = |index: usize| Action::Place {
            instance: records[index].id,
            node: NODE.parse().unwrap(),
        };
        assert_eq!(actions, [place(1), place(2)]);
        assert!(plan(&records, &HashMap::new(), &[], Vec::new(), &EMBEDDED).is_empty());
    }

    #[test]
    fn purges__should_come_when_the_grace_is_over() {
        let now = Utc::now();
        let mut retired = record(Desired::Deleted { purge: false }, Some(NODE));
        retired.deleted_at = Some(now - chrono::TimeDelta::days(7));
        let retired = [retired];
        let days = |count: u64| Duration::from_secs(count * 24 * 3600);
        let purge = Action::Purge { instance: retired[0].id };
        assert_eq!(purges(&retired, days(7), now).collect::<Vec<_>>(), [purge]);
        assert_eq!(purges(&retired, days(8), now).count(), 0);
        let early = now - chrono::TimeDelta::hours(1);
        assert_eq!(purges(&retired, days(7), early).count(), 0, "a clock that was set back waits");
        assert_eq!(purges(&retired, Duration::MAX, now).count(), 0);
    }

    #[test]
    fn plan__should_let_go_only_of_what_its_node_says_is_gone() {
        let running = record(Desired::Running, Some(NODE));
        let purged = record(Desired::Deleted { purge: true }, Some(NODE));
        let kept = record(Desired::Deleted { purge: false }, Some(NODE));
        let never_placed = record(Desired::Deleted { purge: false }, None);
        let records = [running.clone(), purged.clone(), kept.clone(), never_placed.clone()];
        let forget_never_placed = Action::Forget {
            instance: never_placed.id,
        };
        let with = |seen: HashMap<_, _>, revoked| plan(&records, &seen, &[node(revoked)], Vec::new(), &EMBEDDED);

        // Nothing was said, or something about an earlier wish: only what never had a node goes.
        assert_eq!(with(HashMap::new(), false), std::slice::from_ref(&forget_never_placed));
        let mut old = observation(&purged, Phase::Deleted, true);
        old.report.generation = None;
        assert_eq!(
            with(HashMap::from([(purged.id, old)]), false),
            std::slice::from_ref(&forget_never_placed)
        );

        let seen = records
            .iter()
            .map(|record| (record.id, observation(record, Phase::Deleted, true)))
            .collect();
        let all = [
            Action::Forget { instance: purged.id },
            Action::Retire { instance: kept.id },
            forget_never_placed,
        ];
        assert_eq!(with(seen, false), all);
        assert_eq!(with(HashMap::new(), true), all);
    }
}
