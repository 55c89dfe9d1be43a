//! `PATCH /instances/{name}` and `POST /instances/{name}/token/rotate`: changes of what an instance is.
//! Its node applies limits, its SSH key and what only we look at live; the rest waits for a new
//! container, which is asked for now or comes with the next restart.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use crabshack_shared::{
    agent_api::v1::InstanceSecrets,
    api::{
        events::Wished,
        instances::{InstanceDetails, RotatedToken},
    },
    instance::InstanceName,
    problem::{Code, Problem},
    secret::Secret,
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    change::{Refused, alter, to_its_end},
    request::{self, Changes},
    view::{self, Found},
};
use crate::{
    api::{
        extract::{self, Named, Parameters, no_such_instance},
        internal,
    },
    app::App,
    placement::{self, Need},
    status,
    store::{InstanceRecord, Writing},
};

/// Parameters of `PATCH /instances/{name}`.
#[derive(Debug, Deserialize)]
pub(crate) struct Apply {
    apply: Option<String>,
}

/// `PATCH /instances/{name}`. With `?apply=now` what waits for a new container gets one.
pub(crate) async fn patch(
    State(app): State<Arc<App>>,
    Named(name): Named,
    Parameters(Apply { apply }): Parameters<Apply>,
    body: Body,
) -> Result<Json<InstanceDetails>, Problem> {
    let at_once = match apply.as_deref() {
        None | Some("" | "later") => false,
        Some("now") => true,
        Some(_) => return Err(Problem::invalid("apply must be `now`, or left out")),
    };
    let changes = request::check_changes(extract::required(body).await?)?;
    let task = {
        let (app, name) = (Arc::clone(&app), name.clone());
        async move {
            alter(&app, name, move |app, writing, record, _| {
                write(app, writing, record, changes, at_once)
            })
            .await
        }
    };
    to_its_end(&app, task).await?;
    let found = find(&app, &name)?;
    let secrets = app.store.secrets(&found.record).map_err(internal)?;
    Ok(Json(view::details(&app, &found, secrets.token)))
}

/// `POST /instances/{name}/token/rotate`: from now on the old token opens nothing, and what it opened
/// is closed.
pub(crate) async fn rotate_token(
    State(app): State<Arc<App>>,
    Named(name): Named,
    body: Body,
) -> Result<Json<RotatedToken>, Problem> {
    extract::optional::<IgnoredAny>(body).await?;
    let token = Secret::random();
    let task = {
        let (app, name, token) = (Arc::clone(&app), name.clone(), token.clone());
        async move {
            let kept = token.clone();
            let record = alter(&app, name, move |app, _, record, _| {
                let mut secrets = app.store.secrets(record)?;
                secrets.token = kept;
                record.sealed = app.store.seal(record.id, &secrets)?;
                record.spec_revision += 1;
                Ok(Some((Wished::TokenRotated, None)))
            })
            .await?;
            app.gateway.rotated(record.id, &token);
            Ok(record)
        }
    };
    to_its_end(&app, task).await?;
    let found = find(&app, &name)?;
    let details = view::details(&app, &found, token);
    Ok(Json(RotatedToken {
        name,
        token: details.token,
        instance_url: details.instance_url,
        dashboard_url: details.dashboard_url,
        pending_change: details.pending_change,
    }))
}

fn find(app: &App, name: &InstanceName) -> Result<Found, Problem> {
    let found = view::find(app, name).map_err(internal)?;
    found.ok_or_else(|| no_such_instance(name))
}

/// Changes the record. None: everything was so already.
fn write(
    app: &App,
    writing: &Writing,
    record: &mut InstanceRecord,
    changes: Changes,
    at_once: bool,
) -> Result<Option<(Wished, Option<String>)>, Refused> {
    let before = Need::of(&record.spec.service_type, &record.spec.resources);
    let mut secrets = app.store.secrets(record)?;
    let changed = merge(record, &mut secrets, changes)?;
    room(app, writing, record, before)?;
    if changed.secrets {
        record.sealed = app.store.seal(record.id, &secrets)?;
    }
    if changed.waits {
        record.spec_revision += 1;
    }
    let observation = writing.observation(record.id)?;
    let restarts = at_once && (changed.waits || status::pending_change(record, observation.as_ref()));
    if restarts {
        record.restarts += 1;
    }
    if changed.fields.is_empty() && !restarts {
        return Ok(None);
    }
    let fields = changed.fields.join(", ");
    let reason = match (restarts, fields.is_empty()) {
        (false, _) => fields,
        (true, false) => format!("{fields}; applied now"),
        (true, true) => "what waited is applied now".to_owned(),
    };
    Ok(Some((Wished::Patched, Some(reason))))
}

/// Refuses what does not fit on the instance's node, or on any while it has none.
fn room(app: &App, writing: &Writing, record: &InstanceRecord, before: Need) -> Result<(), Refused> {
    let after = Need::of(&record.spec.service_type, &record.spec.resources);
    let need = Need::growth(before, after);
    if need == Need::default() {
        return Ok(());
    }
    let claims = writing.claims()?;
    let placement = app.placement.as_ref();
    let refused = match &record.assignment {
        Some(node) => match writing.node(node)? {
            Some(node) => placement::fits(placement, &node, &claims, record.id, need).map_err(|why| why.on_its_node()),
            None => Ok(()),
        },
        None => {
            let mut candidates = placement::candidates(&writing.nodes()?, &claims, &app.registry);
            let seat = placement.choose(&mut candidates, after);
            seat.map(drop).map_err(|why| why.to_string())
        }
    };
    refused.map_err(|why| Problem::conflict(Code::NoCapacity, format!("no capacity: {why}")).into())
}

/// What a merge changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changed {
    /// Names of the fields, for people.
    fields: Vec<&'static str>,
    /// Something of it waits for a new container.
    waits: bool,
    /// Something of it is secret.
    secrets: bool,
}

/// Puts the changes into a record and its secrets; pure.
fn merge(record: &mut InstanceRecord, secrets: &mut InstanceSecrets, changes: Changes) -> Result<Changed, Problem> {
    let spec = &mut record.spec;
    fixed("service_type", changes.service_type, spec.service_type.as_str())?;
    // What GET shows is the name without the digest.
    let image = changes.image.filter(|asked| asked != spec.image.name());
    fixed("image", image, &spec.image.to_string())?;
    if let Some(memory) = changes.memory {
        request::enough_memory(&spec.service_type, memory)?;
    }
    let environment = secrets.extra_env.clone();
    request::merge(&mut secrets.extra_env, changes.extra_env)?;
    let live = [
        ("ssh_pubkey", set(&mut spec.ssh_pubkey, changes.ssh_pubkey)),
        ("mem_limit", set(&mut spec.resources.memory, changes.memory)),
        ("cpus", set(&mut spec.resources.cpus, changes.cpus)),
        ("storage_size", set(&mut spec.resources.storage, changes.storage)),
        ("protected", set(&mut record.protected, changes.protected)),
        ("on_disconnect", set(&mut record.on_disconnect, changes.on_disconnect)),
    ];
    let waiting = [
        ("nearai_api_url", set(&mut spec.nearai_api_url, changes.nearai_api_url)),
        ("nearai_api_key", set(&mut secrets.nearai_api_key, changes.nearai_api_key)),
        ("extra_env", environment != secrets.extra_env),
    ];
    let names = |fields: &[(&'static str, bool)]| -> Vec<&'static str> {
        fields.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name).collect()
    };
    Ok(Changed {
        waits: waiting.iter().any(|(_, changed)| *changed),
        secrets: waiting[1].1 || waiting[2].1,
        fields: [names(&live), names(&waiting)].concat(),
    })
}

/// True when the value was another one.
fn set<T: PartialEq>(place: &mut T, value: Option<T>) -> bool {
    match value {
        Some(value) if *place != value => {
            *place = value;
            true
        }
        _ => false,
    }
}

/// Refuses a change of what cannot be changed so.
fn fixed(field: &str, asked: Option<String>, present: &str) -> Result<(), Problem> {
    match asked {
        Some(asked) if asked != present => Err(Problem::invalid(format!(
            "{field} cannot be changed by PATCH: leave it out, or give the present one, `{present}`"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
