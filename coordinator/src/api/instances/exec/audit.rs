//! Who ran what, and how it ended: an event of the instance, on disk before anything runs and amended at
//! the end, and two lines of the log. Neither holds arguments, environment or what was typed.

use std::time::Duration;

use chrono::Utc;
use crabshack_shared::{
    api::events::{InstanceEvent, Origin, Wished},
    generation::Generation,
    ids::InstanceId,
    problem::Problem,
    telemetry::Chain,
};

use super::{Pending, session::End};
use crate::{
    api::internal,
    app::App,
    store::{StoreError, wished},
};

/// What was noted at the beginning.
pub(super) struct Noted {
    instance: InstanceId,
    number: u64,
    event: InstanceEvent,
}

/// Notes that a command is about to be run.
pub(super) async fn begun(app: &App, pending: &Pending, generation: Generation) -> Result<Noted, Problem> {
    let subject = format!("{}, by {}", pending.request.subject(), pending.who);
    let event = wished(Wished::Exec, Origin::Api, generation, Utc::now(), Some(subject));
    let (instance, kept) = (pending.instance, event.clone());
    let number = app
        .store
        .write(move |writing| -> Result<_, StoreError> { writing.note_numbered(instance, &kept) })
        .await
        .map_err(internal)?;
    tracing::info!(
        instance.id = %instance,
        instance.name = %pending.name,
        who = %pending.who,
        command = pending.request.subject(),
        "a command is run"
    );
    Ok(Noted { instance, number, event })
}

/// Notes how it ended.
pub(super) async fn ended(app: &App, pending: &Pending, noted: Noted, end: &End, after: Duration) {
    let how = match end {
        End::Exit(code) => format!("exit code {code}"),
        End::Error { error, .. } => error.clone(),
        End::ClientGone => "the client went away".to_owned(),
    };
    tracing::info!(
        instance.id = %pending.instance,
        instance.name = %pending.name,
        who = %pending.who,
        command = pending.request.subject(),
        exit_code = match end {
            End::Exit(code) => Some(*code),
            _ => None,
        },
        seconds = after.as_secs_f64(),
        "a command is over: {how}"
    );
    let Noted {
        instance,
        number,
        mut event,
    } = noted;
    let subject = event.reason.take().unwrap_or_default();
    event.reason = Some(format!("{subject}; after {:.1} s: {how}", after.as_secs_f64()));
    let amended = app
        .store
        .write(move |writing| -> Result<_, StoreError> { writing.amend(instance, number, &event) });
    if let Err(error) = amended.await {
        tracing::error!(instance.id = %instance, "the end of a command is not in its history: {}", Chain(&error));
    }
}
