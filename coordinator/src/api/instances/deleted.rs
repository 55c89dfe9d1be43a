//! Deleted instances whose disk is still there: they are listed, asked back, or purged before their
//! time. All by id: their name may be somebody else's by now.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{RawPathParams, State},
    response::Response,
};
use chrono::{DateTime, Utc};
use crabshack_shared::{
    agent_api::v1::Desired,
    api::{
        events::{Origin, Wished},
        instances::{DeletedInstance, DeletedInstanceList, UndeleteInstance},
    },
    ids::InstanceId,
    instance::{InstanceName, InstanceStatus},
    problem::{Code, Problem},
};

use super::{
    change::{Refused, announce, to_its_end},
    create::no_place,
    request,
    stream::{Goal, follow},
    view,
};
use crate::{
    api::extract,
    app::App,
    placement::{self, Need},
    store::{InstanceRecord, StoreError, Writing, wished},
};

/// The list, newest deletion first.
pub(super) fn list(app: &App) -> Result<DeletedInstanceList, StoreError> {
    let reading = app.store.reading()?;
    let mut records = reading.retired_instances()?;
    let leaving = reading.instances()?.into_iter();
    records.extend(leaving.filter(|record| record.desired == Desired::Deleted { purge: false }));
    records.sort_by_key(|record| std::cmp::Reverse((record.deleted_at, record.generation)));
    let instances = records
        .iter()
        .map(|record| {
            // A record of a deleted instance always says when.
            let deleted_at = record.deleted_at.unwrap_or(record.created_at);
            let mut summary = view::summary(app, record, reading.observation(record.id)?.as_ref());
            summary.status = InstanceStatus::Stopped;
            summary.phase = if record.disk_only { "deleted" } else { "stopping" }.to_owned();
            summary.reason = None;
            Ok(DeletedInstance {
                summary,
                deleted_at,
                purge_at: purge_at(record, app.settings.delete_grace),
            })
        })
        .collect::<Result<_, StoreError>>()?;
    Ok(DeletedInstanceList { instances })
}

/// When the disk of a deleted instance is removed.
pub(crate) fn purge_at(record: &InstanceRecord, grace: std::time::Duration) -> DateTime<Utc> {
    let deleted_at = record.deleted_at.unwrap_or(record.created_at);
    chrono::TimeDelta::from_std(grace)
        .ok()
        .and_then(|grace| deleted_at.checked_add_signed(grace))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// `POST /instances/{id}/undelete`: the same instance again, with its disk, its secrets and, if
/// nobody took it, its name.
pub(crate) async fn undelete(State(app): State<Arc<App>>, params: RawPathParams, body: Body) -> Result<Response, Problem> {
    let text = params.iter().find_map(|(key, value)| (key == "name").then_some(value));
    let text = text.unwrap_or_default().to_owned();
    let id: InstanceId = text.parse().map_err(|_| no_such_deleted(&text))?;
    let request: UndeleteInstance = extract::optional(body).await?.unwrap_or_default();
    let name = request::name(request.name)?;
    let task = {
        let app = Arc::clone(&app);
        async move {
            let inner = Arc::clone(&app);
            let written = app.store.write(move |writing| revive(&inner, writing, id, name)).await?;
            tracing::info!(instance.id = %id, instance.name = %written.name, "undeleted");
            announce(&app, &written);
            Ok(written)
        }
    };
    let record = to_its_end(&app, task).await?;
    Ok(follow(&app, &record, Goal::Ready, None))
}

fn revive(app: &App, writing: &Writing, id: InstanceId, name: Option<InstanceName>) -> Result<InstanceRecord, Refused> {
    let Some(mut record) = writing.deleted_instance(id)? else {
        return Err(match writing.instance(id)? {
            Some(record) if record.is_living() => Problem::conflict(Code::Conflict, "the instance is not deleted"),
            Some(_) => Problem::conflict(Code::Conflict, "the instance's disk is being removed"),
            None => no_such_deleted(id),
        }
        .into());
    };
    if let Some(node) = &record.assignment {
        let node = writing.node(node)?.filter(|node| !node.revoked).ok_or_else(|| {
            let text = format!("the instance's disk is on node `{node}`, which was thrown out");
            Problem::conflict(Code::Conflict, text)
        })?;
        // Its disk is promised already.
        let need = Need {
            storage: 0,
            ..Need::of(&record.spec.service_type, &record.spec.resources)
        };
        placement::fits(app.placement.as_ref(), &node, &writing.claims()?, id, need)
            .map_err(|why| Problem::conflict(Code::NoCapacity, format!("no capacity: {}", why.on_its_node())))?;
    }
    let wanted = name.clone().unwrap_or_else(|| record.name.clone());
    writing
        .undelete_instance(&mut record, name)?
        .map_err(|why| no_place(why, Some(&wanted)))?;
    let event = wished(Wished::Undeleted, Origin::Api, record.generation, Utc::now(), None);
    writing.note(id, &event)?;
    Ok(record)
}

/// `DELETE /instances/{id}?purge=true` of a deleted instance. None: there is no such deleted one.
pub(super) async fn purge(app: &Arc<App>, text: &str) -> Result<Option<Response>, Problem> {
    let Ok(id) = text.parse::<InstanceId>() else {
        return Ok(None);
    };
    let task = {
        let app = Arc::clone(app);
        async move {
            let written = app
                .store
                .write(move |writing| -> Result<_, Refused> {
                    let Some(mut record) = writing.deleted_instance(id)? else {
                        return Ok(None);
                    };
                    writing.purge_instance(&mut record)?;
                    let event = wished(Wished::Purged, Origin::Api, record.generation, Utc::now(), None);
                    writing.note(id, &event)?;
                    Ok(Some(record))
                })
                .await?;
            if let Some(record) = &written {
                tracing::info!(instance.id = %id, "the removal of its disk was asked for");
                announce(&app, record);
            }
            Ok(written)
        }
    };
    let record = to_its_end(app, task).await?;
    Ok(record.map(|record| follow(app, &record, Goal::Deleted { purge: true }, None)))
}

fn no_such_deleted(id: impl std::fmt::Display) -> Problem {
    let id: String = id.to_string().chars().take(64).collect();
    Problem::not_found(format!("there is no deleted instance with the id `{id}`"))
}

#[cfg(test)]
mod tests;
