//! Start, stop, restart and delete: a later wish always wins over an earlier one.

use std::sync::Arc;

use chrono::Utc;
use crabshack_shared::{
    agent_api::v1::{Desired, Phase},
    instance::InstanceName,
    problem::Problem,
};

use super::super::{extract::no_such_instance, internal};
use crate::{
    app::App,
    status,
    store::{InstanceRecord, Observation, StoreError},
};

/// What is asked of an instance that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Start,
    Stop,
    Restart,
    Delete { purge: bool },
}

/// Writes the wish down and wakes whoever carries it out. Runs to its end when the caller goes away.
pub(super) async fn change(app: &Arc<App>, name: &InstanceName, wish: Wish) -> Result<InstanceRecord, Problem> {
    let task = carry_out(Arc::clone(app), name.clone(), wish);
    let changed = app.shutdown.tasks.spawn(task).await.map_err(internal)?;
    changed.map_err(internal)?.ok_or_else(|| no_such_instance(name))
}

async fn carry_out(app: Arc<App>, name: InstanceName, wish: Wish) -> Result<Option<InstanceRecord>, StoreError> {
    // Most repeated wishes change nothing: then nothing is written.
    let reading = app.store.reading()?;
    let Some(record) = reading.instance_named(&name)? else {
        return Ok(None);
    };
    if !changes(&record, reading.observation(record.id)?.as_ref(), wish) {
        return Ok(Some(record));
    }
    drop(reading);
    let changed = app
        .store
        .write(move |writing| -> Result<Option<InstanceRecord>, StoreError> {
            let Some(mut record) = writing.instance_named(&name)? else {
                return Ok(None);
            };
            if !changes(&record, writing.observation(record.id)?.as_ref(), wish) {
                return Ok(Some(record));
            }
            match wish {
                Wish::Delete { purge } => writing.delete_instance(&mut record, purge, Utc::now())?,
                Wish::Stop => record.desired = Desired::Stopped,
                Wish::Start | Wish::Restart => {
                    // One that ran into trouble is made again, not only woken.
                    if wish == Wish::Restart || record.desired == Desired::Running {
                        record.restarts += 1;
                    }
                    record.desired = Desired::Running;
                }
            }
            if record.is_living() {
                record.generation = writing.next_generation()?;
                writing.put_instance(&record)?;
            }
            Ok(Some(record))
        })
        .await?;
    if let Some(record) = &changed {
        tracing::info!(instance.id = %record.id, instance.name = %record.name, generation = %record.generation, "{wish:?} asked for");
        match &record.assignment {
            Some(node) => app.registry.orders_changed(node),
            None => app.reconciler.wake(),
        }
        // A node that was thrown out will not answer: the reconciler decides.
        if !record.is_living() {
            app.reconciler.wake();
        }
        app.events.changed(record.id);
    }
    Ok(changed)
}

/// False when the wish is the present one already, and is coming true or has.
fn changes(record: &InstanceRecord, observation: Option<&Observation>, wish: Wish) -> bool {
    let stuck = observation.is_some_and(|observation| {
        let failed = status::answers(record, observation)
            && match observation.report.phase {
                Phase::Failed => true,
                Phase::Waiting => wish == Wish::Start,
                _ => false,
            };
        failed || status::is_outranked(record, observation)
    });
    match wish {
        Wish::Start => record.desired != Desired::Running || stuck,
        Wish::Stop => record.desired != Desired::Stopped || stuck,
        Wish::Restart | Wish::Delete { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{observation, record};

    #[test]
    fn wish__should_change_nothing_when_it_is_the_present_one() {
        let running = record(Desired::Running, Some("node-000000000001"));
        let ready = observation(&running, Phase::Ready, true);
        assert!(!changes(&running, Some(&ready), Wish::Start));
        assert!(!changes(&running, None, Wish::Start));
        assert!(changes(&running, Some(&ready), Wish::Stop));
        assert!(changes(&running, Some(&ready), Wish::Restart));

        let stopped = record(Desired::Stopped, Some("node-000000000001"));
        let down = observation(&stopped, Phase::Stopped, true);
        assert!(!changes(&stopped, Some(&down), Wish::Stop));
        assert!(changes(&stopped, Some(&down), Wish::Start));
    }

    #[test]
    fn start__should_try_again_what_failed() {
        let running = record(Desired::Running, Some("node-000000000001"));
        for phase in [Phase::Failed, Phase::Waiting] {
            assert!(changes(&running, Some(&observation(&running, phase, true)), Wish::Start));
        }
        let mut later = observation(&running, Phase::Ready, true);
        later.report.generation = Some(running.generation.next_epoch());
        assert!(changes(&running, Some(&later), Wish::Start), "takes over from an older dump");
        let mut earlier = observation(&running, Phase::Failed, true);
        earlier.report.generation = None;
        assert!(!changes(&running, Some(&earlier), Wish::Start));
    }
}
