//! Start, stop, restart and delete: a later wish always wins over an earlier one. And how every change
//! of a living instance is written: one transaction, a new generation, a line in its history.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use crabshack_shared::{
    agent_api::v1::{Desired, Phase},
    api::events::{Origin, Wished},
    instance::InstanceName,
    problem::{Code, Problem},
};

use super::super::{extract::no_such_instance, internal};
use crate::{
    app::App,
    status,
    store::{InstanceRecord, Observation, StoreError, Writing, wished},
};

/// What is asked of an instance that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Start,
    Stop,
    Restart,
    Delete { purge: bool },
}

/// Why a change was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Problem(#[from] Problem),
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Store(error) => internal(error),
            Refused::Problem(problem) => problem,
        }
    }
}

/// Runs a change to its end, also when the caller goes away.
pub(super) async fn to_its_end<T: Send + 'static>(
    app: &App,
    task: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Problem> {
    Ok(app.shutdown.tasks.spawn(task).await.map_err(internal)??)
}

/// Changes a living instance in one transaction and wakes whoever carries it out. `change` says what
/// it did, with a reason for people, or none when nothing was to be done.
pub(super) async fn alter<F>(app: &Arc<App>, name: InstanceName, change: F) -> Result<InstanceRecord, Refused>
where
    F: FnOnce(&App, &Writing, &mut InstanceRecord, DateTime<Utc>) -> Result<Option<(Wished, Option<String>)>, Refused>
        + Send
        + 'static,
{
    let inner = Arc::clone(app);
    let (record, done) = app
        .store
        .write(move |writing| -> Result<_, Refused> {
            let now = Utc::now();
            let mut record = writing.instance_named(&name)?.ok_or_else(|| no_such_instance(&name))?;
            let (revision, restarts, lease) = (record.spec_revision, record.restarts, record.on_disconnect);
            let Some((event, reason)) = change(&inner, writing, &mut record, now)? else {
                return Ok((record, None));
            };
            if record.is_living() {
                record.generation = writing.next_generation()?;
                if matches!(event, Wished::Start | Wished::Stop | Wished::Restart) {
                    record.wish_generation = record.generation;
                }
                // Ranks, and not counts: a store from an older copy must not fall behind what nodes hold.
                if record.restarts != restarts {
                    record.restarts = record.generation.rank();
                }
                if record.spec_revision != revision {
                    record.spec_revision = record.generation.rank();
                    record.spec_generation = record.generation;
                }
                if record.on_disconnect != lease {
                    record.lease_generation = record.generation;
                }
                writing.put_instance(&record)?;
            }
            writing.note(record.id, &wished(event, Origin::Api, record.generation, now, reason))?;
            Ok((record, Some(event)))
        })
        .await?;
    if let Some(event) = done {
        tracing::info!(instance.id = %record.id, instance.name = %record.name, generation = %record.generation, "{event:?} asked for");
        announce(app, &record);
    }
    Ok(record)
}

/// Tells whom a written change concerns.
pub(super) fn announce(app: &App, record: &InstanceRecord) {
    app.orders_changed(record);
    if record.assignment.is_none() {
        app.reconciler.wake();
    }
    // A node that was thrown out will not answer: the reconciler decides.
    if !record.is_living() {
        app.reconciler.wake();
    }
    app.events.changed(record.id);
}

/// Writes the wish down.
pub(super) async fn change(app: &Arc<App>, name: &InstanceName, wish: Wish) -> Result<InstanceRecord, Problem> {
    // Most repeated wishes change nothing: then nothing is written.
    {
        let reading = app.store.reading().map_err(internal)?;
        let record = reading.instance_named(name).map_err(internal)?;
        let record = record.ok_or_else(|| no_such_instance(name))?;
        let observation = reading.observation(record.id).map_err(internal)?;
        if !changes(&record, observation.as_ref(), wish) {
            return Ok(record);
        }
    }
    let (inner, name) = (Arc::clone(app), name.clone());
    let task = async move {
        alter(&inner, name, move |_, writing, record, now| {
            if !changes(record, writing.observation(record.id)?.as_ref(), wish) {
                return Ok(None);
            }
            carry_out(writing, record, wish, now).map(Some)
        })
        .await
    };
    to_its_end(app, task).await
}

fn carry_out(
    writing: &Writing,
    record: &mut InstanceRecord,
    wish: Wish,
    now: DateTime<Utc>,
) -> Result<(Wished, Option<String>), Refused> {
    match wish {
        Wish::Delete { .. } if record.protected => {
            let text = format!(
                "instance `{name}` is protected: lift that first, with PATCH /instances/{name} and {{\"protected\": false}}",
                name = record.name
            );
            Err(Problem::conflict(Code::Conflict, text).into())
        }
        Wish::Delete { purge } => {
            writing.delete_instance(record, purge, now)?;
            let reason = if purge {
                "with its disk"
            } else {
                "its disk is kept for a while"
            };
            Ok((Wished::Deleted, Some(reason.to_owned())))
        }
        Wish::Stop => {
            record.desired = Desired::Stopped;
            Ok((Wished::Stop, None))
        }
        Wish::Start | Wish::Restart => {
            // One that ran into trouble is made again, not only woken.
            if wish == Wish::Restart || record.desired == Desired::Running {
                record.restarts += 1;
            }
            record.desired = Desired::Running;
            let event = if wish == Wish::Restart {
                Wished::Restart
            } else {
                Wished::Start
            };
            Ok((event, None))
        }
    }
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
