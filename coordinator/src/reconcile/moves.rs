//! Instances that may start elsewhere, because their node has stopped them itself by now: those whose
//! lease its silence has outlasted. Others stay where they are, however long it is silent.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use crabshack_shared::{
    agent_api::v1::{Desired, OnDisconnect},
    api::events::{Origin, Wished},
    ids::NodeId,
};

use super::instances::Action;
use crate::{
    agents::registry::Registry,
    app::App,
    placement::{Candidate, Need, Placement},
    store::{InstanceRecord, Observation, StoreError, wished},
};

/// From the end of a lease until the instance is down: it has 30 s to end by itself, and the node's
/// watch and the engine may be slow. A node counts from when it asked, which is before we heard of it.
const MARGIN: Duration = Duration::from_secs(120);

/// The node of an instance that must have been stopped by its lease if its node knows of that lease.
pub(crate) fn lost<'a>(record: &'a InstanceRecord, registry: &Registry) -> Option<&'a NodeId> {
    let node = record.assignment.as_ref()?;
    is_over(record, registry.silence(node)).then_some(node)
}

fn is_over(record: &InstanceRecord, silence: Duration) -> bool {
    match record.on_disconnect {
        OnDisconnect::StopAfter { seconds } if record.desired == Desired::Running => {
            silence > Duration::from_secs(seconds.into()) + MARGIN
        }
        _ => false,
    }
}

/// True when the node that has an instance has seen the lease that is recorded now. One that never
/// spoke of the instance may or may not have it.
pub(crate) fn knows_its_lease(record: &InstanceRecord, observation: Option<&Observation>) -> bool {
    observation.is_some_and(|observation| {
        // Of one that follows a later wish than is recorded nothing is known.
        let known = record.lease_generation..=record.generation;
        let seen = observation.report.generation;
        record.assignment.as_ref() == Some(&observation.node) && seen.is_some_and(|seen| known.contains(&seen))
    })
}

/// Gives the lost ones a place among the candidates, oldest wish first. Who waits for a node already
/// must have been seated before.
pub(crate) fn plan(mut lost: Vec<&InstanceRecord>, candidates: &mut [Candidate], placement: &dyn Placement) -> Vec<Action> {
    lost.sort_by_key(|record| record.generation);
    lost.into_iter()
        .filter_map(|record| {
            let from = record.assignment.clone()?;
            let need = Need::of(&record.spec.service_type, &record.spec.resources);
            let to = placement.choose(candidates, need).ok()?;
            Some(Action::Move {
                instance: record.id,
                from,
                to,
            })
        })
        .collect()
}

/// Gives an instance to another node, if its own is still silent. The one that had it is ordered to
/// let go of its copy as soon as it speaks again.
pub(super) async fn apply(app: &Arc<App>, action: &Action) -> Result<(), StoreError> {
    let Action::Move { instance, from, to } = action.clone() else {
        return Ok(());
    };
    let inner = Arc::clone(app);
    let moved = app
        .store
        .write(move |writing| -> Result<Option<InstanceRecord>, StoreError> {
            let Some(mut record) = writing.instance(instance)? else {
                return Ok(None);
            };
            let observation = writing.observation(instance)?;
            if record.assignment.as_ref() != Some(&from)
                || lost(&record, &inner.registry).is_none()
                || !knows_its_lease(&record, observation.as_ref())
            {
                return Ok(None);
            }
            relocate(&mut record, to);
            record.generation = writing.next_generation()?;
            writing.put_instance(&record)?;
            writing.drop_observation(instance)?;
            let reason = format!("node {from} has been silent for longer than the instance's lease; its disk stays there");
            let event = wished(
                Wished::Moved,
                Origin::Coordinator,
                record.generation,
                Utc::now(),
                Some(reason),
            );
            writing.note(instance, &event)?;
            Ok(Some(record))
        })
        .await?;
    if let Some(record) = moved {
        tracing::warn!(instance.id = %instance, node.id = ?record.assignment, "moved: its node has been silent for longer than its lease");
        app.orders_changed(&record);
        app.events.changed(instance);
    }
    Ok(())
}

/// The record of an instance on another node. A node that gets it back no longer counts as left.
fn relocate(record: &mut InstanceRecord, to: NodeId) {
    record.left.extend(record.assignment.take());
    record.left.retain(|left| *left != to);
    record.left.dedup();
    record.assignment = Some(to);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        placement::Embedded,
        testing::{observation, record},
    };
    use crabshack_shared::agent_api::v1::Phase;

    const FIRST: &str = "node-000000000001";
    const SECOND: &str = "node-000000000002";
    const EMBEDDED: Embedded = Embedded { overcommit: 1.0 };

    fn leased(desired: Desired) -> InstanceRecord {
        InstanceRecord {
            on_disconnect: OnDisconnect::StopAfter { seconds: 60 },
            ..record(desired, Some(FIRST))
        }
    }

    fn second(gibibytes: u64) -> Vec<Candidate> {
        vec![Candidate {
            node: SECOND.parse().unwrap(),
            memory: gibibytes << 30,
            reserved: 0,
            cpus: 4000,
            storage: None,
            promised: 0,
            pressed: false,
            runtimes: Vec::new(),
        }]
    }

    #[test]
    fn lease__should_be_over_only_when_its_node_must_have_stopped_it() {
        let long = Duration::from_secs(60) + MARGIN;
        let running = leased(Desired::Running);
        assert!(!is_over(&running, long));
        assert!(is_over(&running, long + Duration::from_millis(1)));
        for staying in [
            record(Desired::Running, Some(FIRST)),
            leased(Desired::Stopped),
            leased(Desired::Deleted { purge: false }),
        ] {
            assert!(!is_over(&staying, Duration::from_secs(7 * 24 * 3600)));
        }
    }

    #[test]
    fn lease__should_count_only_when_its_node_has_seen_it() {
        let mut record = leased(Desired::Running);
        assert!(!knows_its_lease(&record, None));
        let mut seen = observation(&record, Phase::Ready, true);
        assert!(knows_its_lease(&record, Some(&seen)));
        // Later wishes that the silent node has not seen change nothing of its lease.
        record.generation = record.generation.next();
        assert!(knows_its_lease(&record, Some(&seen)));
        record.lease_generation = record.generation;
        assert!(!knows_its_lease(&record, Some(&seen)), "it may follow an earlier, longer one");
        seen.report.generation = Some(record.generation.next());
        assert!(!knows_its_lease(&record, Some(&seen)), "the store is from an older dump");
        seen.report.generation = Some(record.generation);
        seen.node = SECOND.parse().unwrap();
        assert!(!knows_its_lease(&record, Some(&seen)), "another node said so");
    }

    #[test]
    fn plan__should_move_the_oldest_first_and_only_as_many_as_fit_elsewhere() {
        let (mut younger, older) = (leased(Desired::Running), leased(Desired::Running));
        younger.generation = older.generation.next();
        let expected = Action::Move {
            instance: older.id,
            from: FIRST.parse().unwrap(),
            to: SECOND.parse().unwrap(),
        };
        assert_eq!(plan(vec![&younger, &older], &mut second(1), &EMBEDDED), [expected]);
        assert_eq!(plan(vec![&younger, &older], &mut second(2), &EMBEDDED).len(), 2);
        // One node only, and that is the silent one: there is nothing to move to.
        assert!(plan(vec![&older], &mut [], &EMBEDDED).is_empty());
    }

    #[test]
    fn relocate__should_remember_who_may_still_have_a_copy() {
        let mut record = leased(Desired::Running);
        let (first, second): (NodeId, NodeId) = (FIRST.parse().unwrap(), SECOND.parse().unwrap());
        relocate(&mut record, second.clone());
        assert_eq!(
            (record.assignment.as_ref(), &record.left),
            (Some(&second), &vec![first.clone()])
        );
        assert!(record.was_on(&first));
        relocate(&mut record, first.clone());
        assert_eq!((record.assignment, record.left), (Some(first), vec![second]));
    }
}
