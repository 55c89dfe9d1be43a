//! `/instances`: what people ask for. A change is one transaction; what follows is told as a stream of
//! events, and goes on without the stream.

mod change;
mod create;
pub(crate) mod deleted;
pub(crate) mod exec;
pub(crate) mod logs;
pub(crate) mod patch;
mod request;
mod stream;
pub(crate) mod usage;
pub(crate) mod view;

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use crabshack_shared::{
    api::{
        instances::{InstanceDetails, InstanceList, RestartInstance, SshAccess},
        progress::{Progress, Stage},
    },
    ids::UserId,
    problem::{Code, Problem},
};
use serde::{Deserialize, de::IgnoredAny};

use self::{
    change::{Wish, change},
    stream::{Goal, follow},
};
use super::{
    extract::{self, Named, Parameters, no_such_instance},
    internal,
};
use crate::app::App;

/// `POST /instances`.
pub(crate) async fn create(State(app): State<Arc<App>>, body: Body) -> Result<Response, Problem> {
    let request = extract::required(body).await?;
    let record = create::create(&app, request::check(request)?, UserId::admin()).await?;
    let created = Progress::new(Stage::Created, record.name.clone(), "Created");
    Ok(follow(&app, &record, Goal::Ready, Some(created)))
}

/// Parameters of `GET /instances`.
#[derive(Debug, Deserialize)]
pub(crate) struct List {
    #[serde(default)]
    deleted: bool,
}

/// `GET /instances`: all, newest first, nothing secret. With `?deleted=true` the deleted ones whose
/// disk is still there.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Parameters(List { deleted }): Parameters<List>,
) -> Result<Response, Problem> {
    if deleted {
        return Ok(Json(deleted::list(&app).map_err(internal)?).into_response());
    }
    let reading = app.store.reading().map_err(internal)?;
    let mut records = reading.instances().map_err(internal)?;
    records.retain(|record| record.is_living());
    // Within a second the generation tells which came later.
    records.sort_by_key(|record| std::cmp::Reverse((record.created_at, record.generation)));
    let instances = records
        .into_iter()
        .map(|record| {
            let observation = reading.observation(record.id)?;
            Ok(view::summary(&app, &record, observation.as_ref()))
        })
        .collect::<Result<_, _>>()
        .map_err(|error: crate::store::StoreError| internal(error))?;
    Ok(Json(InstanceList { instances }).into_response())
}

/// `GET /instances/{name}`.
pub(crate) async fn show(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<InstanceDetails>, Problem> {
    let found = view::find(&app, &name).map_err(internal)?;
    let found = found.ok_or_else(|| no_such_instance(&name))?;
    let secrets = app.store.secrets(&found.record).map_err(internal)?;
    Ok(Json(view::details(&app, &found, secrets.token)))
}

/// Parameters of `DELETE /instances/{name}`.
#[derive(Debug, Deserialize)]
pub(crate) struct Delete {
    #[serde(default)]
    purge: bool,
}

/// `DELETE /instances/{name}`. Without `?purge=true` the disk is kept for a while; with it a deleted
/// instance may be named by its id.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Named(name): Named,
    Parameters(Delete { purge }): Parameters<Delete>,
) -> Result<Response, Problem> {
    let record = match change(&app, &name, Wish::Delete { purge }).await {
        Err(problem) if purge && problem.code() == Code::NotFound => {
            return deleted::purge(&app, name.as_str()).await?.ok_or(problem);
        }
        changed => changed?,
    };
    Ok(follow(&app, &record, Goal::Deleted { purge }, None))
}

/// `POST /instances/{name}/start`.
pub(crate) async fn start(State(app): State<Arc<App>>, Named(name): Named, body: Body) -> Result<Response, Problem> {
    extract::optional::<IgnoredAny>(body).await?;
    let record = change(&app, &name, Wish::Start).await?;
    Ok(follow(&app, &record, Goal::Ready, None))
}

/// `POST /instances/{name}/stop`.
pub(crate) async fn stop(State(app): State<Arc<App>>, Named(name): Named, body: Body) -> Result<Response, Problem> {
    extract::optional::<IgnoredAny>(body).await?;
    let record = change(&app, &name, Wish::Stop).await?;
    Ok(follow(&app, &record, Goal::Stopped, None))
}

/// `POST /instances/{name}/restart`.
pub(crate) async fn restart(State(app): State<Arc<App>>, Named(name): Named, body: Body) -> Result<Response, Problem> {
    let request: RestartInstance = extract::optional(body).await?.unwrap_or_default();
    if let Some(image) = request.image {
        let found = view::find(&app, &name)
            .map_err(internal)?
            .ok_or_else(|| no_such_instance(&name))?;
        if image.0 != found.record.spec.image.to_string() && image.0 != found.record.spec.image.name() {
            return Err(Problem::invalid(format!(
                "restart with another image is not supported: leave `image` out, or give the present one, `{}`",
                found.record.spec.image
            )));
        }
    }
    let record = change(&app, &name, Wish::Restart).await?;
    Ok(follow(&app, &record, Goal::Ready, None))
}

/// `GET /instances/{name}/ssh`.
pub(crate) async fn ssh(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<SshAccess>, Problem> {
    let found = view::find(&app, &name).map_err(internal)?;
    let found = found.ok_or_else(|| no_such_instance(&name))?;
    view::ssh(&app.settings, &found)
        .map(Json)
        .ok_or_else(|| Problem::not_found(format!("instance `{name}` is on no node yet: SSH is not available")))
}

#[cfg(test)]
mod tests;
