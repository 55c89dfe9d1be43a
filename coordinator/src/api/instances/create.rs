//! Writes a new instance down, if its name is free and a node has room: one transaction.

use std::sync::Arc;

use chrono::{SubsecRound as _, Utc};
use crabshack_shared::{
    api::events::{Origin, Wished},
    ids::{InstanceId, UserId},
    instance::InstanceName,
    problem::{Code, Problem},
};

use super::{super::internal, request::Checked};
use crate::{
    app::App,
    images,
    placement::{self, Need, NoRoom},
    store::{InstanceRecord, NewInstance, NoPlace, StoreError, wished},
};

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0:?}")]
    Place(NoPlace),
    #[error(transparent)]
    Room(#[from] NoRoom),
}

/// Writes the wish down and wakes the reconciler. Runs to its end when the caller goes away.
pub(super) async fn create(app: &Arc<App>, mut checked: Checked, owner: UserId) -> Result<InstanceRecord, Problem> {
    // A registry is asked only about what could be made.
    rehearse(app, &checked)?;
    checked.spec.image = images::check(app, &checked.spec.service_type, &checked.spec.image).await?;
    let id = InstanceId::random();
    let new = NewInstance {
        id,
        sealed: app.store.seal(id, &checked.secrets).map_err(internal)?,
        name: checked.name.clone(),
        owner,
        spec: checked.spec,
        protected: checked.protected,
        on_disconnect: checked.on_disconnect,
    };
    let task = {
        let app = Arc::clone(app);
        async move {
            let inner = Arc::clone(&app);
            let written = app
                .store
                .write(move |writing| -> Result<InstanceRecord, Refused> {
                    let records = writing.claims()?;
                    let mut candidates = placement::candidates(&writing.nodes()?, &records, &inner.registry);
                    let need = Need::of(&new.spec.service_type, &new.spec.resources);
                    let record = writing
                        .create_instance(new, Utc::now().trunc_subsecs(3))?
                        .map_err(Refused::Place)?;
                    // Those that wait already come first.
                    placement::seat_waiting(inner.placement.as_ref(), &mut candidates, &records);
                    inner.placement.choose(&mut candidates, need)?;
                    let event = wished(Wished::Created, Origin::Api, record.generation, record.created_at, None);
                    writing.note(record.id, &event)?;
                    Ok(record)
                })
                .await;
            if let Ok(record) = &written {
                tracing::info!(instance.id = %record.id, instance.name = %record.name, "created");
                app.reconciler.wake();
            }
            written
        }
    };
    let written = app.shutdown.tasks.spawn(task).await.map_err(internal)?;
    written.map_err(|refused| problem(refused, checked.name.as_ref()))
}

/// Refuses what could not be written anyway. What it finds may have changed when it is written.
fn rehearse(app: &App, checked: &Checked) -> Result<(), Problem> {
    let look = || -> Result<(), Refused> {
        let reading = app.store.reading()?;
        if let Some(name) = &checked.name
            && reading.instance_named(name)?.is_some()
        {
            return Err(Refused::Place(NoPlace::NameTaken));
        }
        let records = reading.claims()?;
        let mut candidates = placement::candidates(&reading.nodes()?, &records, &app.registry);
        placement::seat_waiting(app.placement.as_ref(), &mut candidates, &records);
        let need = Need::of(&checked.spec.service_type, &checked.spec.resources);
        app.placement.choose(&mut candidates, need)?;
        Ok(())
    };
    look().map_err(|refused| problem(refused, checked.name.as_ref()))
}

fn problem(refused: Refused, name: Option<&InstanceName>) -> Problem {
    match refused {
        Refused::Store(error) => internal(error),
        Refused::Place(why) => no_place(why, name),
        Refused::Room(why) => Problem::conflict(Code::NoCapacity, format!("no capacity: {why}")),
    }
}

/// Why an instance cannot have its name or a port.
pub(super) fn no_place(why: NoPlace, name: Option<&InstanceName>) -> Problem {
    match why {
        NoPlace::NameTaken => {
            let name = name.map(InstanceName::as_str).unwrap_or_default();
            Problem::conflict(Code::NameTaken, format!("an instance named `{name}` exists already"))
        }
        NoPlace::NoPort => Problem::conflict(Code::NoCapacity, "all SSH ports are in use"),
    }
}
