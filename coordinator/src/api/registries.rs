//! `/registries`: how to log in where images are pulled from. Nodes get it with their orders.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{FromRequestParts, RawPathParams, State},
    http::{StatusCode, request::Parts},
};
use chrono::{SubsecRound as _, Utc};
use crabshack_shared::{
    api::{
        instances::LooseText,
        registries::{PutRegistry, Registry, RegistryList},
    },
    problem::Problem,
    secret::Secret,
};

use super::{extract, internal};
use crate::{
    app::App,
    store::{RegistryRecord, StoreError},
};

/// Longest texts.
const HOST_LIMIT: usize = 255;
const USERNAME_LIMIT: usize = 255;
const PASSWORD_LIMIT: usize = 16 << 10;

/// The host in the path.
#[derive(Debug)]
pub(crate) struct Host(String);

impl FromRequestParts<Arc<App>> for Host {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|error| Problem::invalid(error.body_text()))?;
        let text = params.iter().find_map(|(key, value)| (key == "host").then_some(value));
        host(text.unwrap_or_default()).map(Self)
    }
}

/// `GET /registries`: no password among them.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<RegistryList>, Problem> {
    let reading = app.store.reading().map_err(internal)?;
    let records = reading.registries().map_err(internal)?;
    Ok(Json(RegistryList {
        registries: records.into_iter().map(shown).collect(),
    }))
}

fn shown(record: RegistryRecord) -> Registry {
    Registry {
        host: record.host,
        username: record.login.map(|login| login.username),
        plain_http: record.plain_http,
        updated_at: record.updated_at,
    }
}

/// `PUT /registries/{host}`: replaces what was known of it.
pub(crate) async fn put(State(app): State<Arc<App>>, Host(host): Host, body: Body) -> Result<Json<Registry>, Problem> {
    let asked: PutRegistry = extract::required(body).await?;
    let login = login(asked.username, asked.password)?
        .map(|(username, password)| app.store.seal_login(&host, username, &password))
        .transpose()
        .map_err(internal)?;
    let record = RegistryRecord {
        host,
        login,
        plain_http: asked.plain_http.unwrap_or_default(),
        updated_at: Utc::now().trunc_subsecs(3),
    };
    let kept = record.clone();
    app.store
        .write(move |writing| -> Result<(), StoreError> { writing.put_registry(&kept) })
        .await
        .map_err(internal)?;
    tracing::info!(host = record.host, "the login of a registry was changed");
    app.registry.all_orders_changed();
    Ok(Json(shown(record)))
}

/// `DELETE /registries/{host}`.
pub(crate) async fn remove(State(app): State<Arc<App>>, Host(host): Host) -> Result<StatusCode, Problem> {
    let gone = host.clone();
    let removed = app
        .store
        .write(move |writing| -> Result<bool, StoreError> { writing.remove_registry(&gone) })
        .await
        .map_err(internal)?;
    if !removed {
        return Err(Problem::not_found(format!("there is no registry `{host}`")));
    }
    tracing::info!(host, "the login of a registry was removed");
    app.registry.all_orders_changed();
    Ok(StatusCode::NO_CONTENT)
}

/// Checks a host. Docker's own has several names; references lead to one.
fn host(text: &str) -> Result<String, Problem> {
    let (name, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let good = text.len() <= HOST_LIMIT
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    if !good {
        return Err(Problem::invalid(
            "the host must be that of image references, like `ghcr.io` or `registry.example:5000`",
        ));
    }
    let text = text.to_ascii_lowercase();
    Ok(match text.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "hub.docker.com" => "docker.io".to_owned(),
        _ => text,
    })
}

/// Checks a login; it is whole or not there.
fn login(username: Option<LooseText>, password: Option<LooseText>) -> Result<Option<(String, Secret)>, Problem> {
    let given = |text: Option<LooseText>| text.map(|text| text.0).filter(|text| !text.is_empty());
    match (given(username), given(password)) {
        (None, None) => Ok(None),
        (Some(username), Some(password)) => {
            if username.len() > USERNAME_LIMIT || username.contains(|letter: char| letter == ':' || letter.is_control()) {
                return Err(Problem::invalid(format!(
                    "username must be at most {USERNAME_LIMIT} characters without `:`"
                )));
            }
            if password.len() > PASSWORD_LIMIT || password.contains(char::is_control) {
                return Err(Problem::invalid(format!(
                    "password must be one line of at most {PASSWORD_LIMIT} bytes"
                )));
            }
            Ok(Some((username, Secret::from(password))))
        }
        _ => Err(Problem::invalid("give username and password, or neither")),
    }
}

#[cfg(test)]
mod tests;
