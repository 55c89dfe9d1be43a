//! Reading requests, so that whatever is wrong is answered by a problem.
//!
//! Bodies are JSON whatever the Content-Type says: clients in use send none.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{FromRequestParts, Query, RawPathParams},
    http::{StatusCode, request::Parts},
};
use bytes::{Bytes, BytesMut};
use crabshack_shared::{
    instance::InstanceName,
    problem::{Code, Problem},
};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use crate::app::App;

/// The largest body of the public API.
const LIMIT: usize = 1 << 20;
/// The largest report of a node: tens of thousands of instances.
const AGENT_LIMIT: usize = 16 << 20;
/// So much of a body that is too large is read and thrown away: a client that is still sending
/// would see a broken connection instead of the answer.
const DRAIN: usize = 16 << 20;

/// The instance name in the path. Texts that cannot be names are not found.
#[derive(Debug)]
pub(crate) struct Named(pub(crate) InstanceName);

impl FromRequestParts<Arc<App>> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|error| Problem::invalid(error.body_text()))?;
        let text = params
            .iter()
            .find_map(|(key, value)| (key == "name").then_some(value))
            .unwrap_or_default();
        text.parse().map(Self).map_err(|_| no_such_instance(text))
    }
}

/// 404 for an instance.
pub(crate) fn no_such_instance(name: impl std::fmt::Display) -> Problem {
    let name: String = name.to_string().chars().take(64).collect();
    Problem::not_found(format!("there is no instance `{name}`"))
}

/// The query; unknown parameters are accepted.
#[derive(Debug)]
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Query(query) = Query::from_request_parts(parts, app)
            .await
            .map_err(|error| Problem::invalid(error.body_text()))?;
        Ok(Self(query))
    }
}

/// The body; it must be there.
pub(crate) async fn required<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    optional(body)
        .await?
        .ok_or_else(|| Problem::invalid("the request needs a body: one JSON object"))
}

/// The body, or none when it is empty.
pub(crate) async fn optional<T: DeserializeOwned>(body: Body) -> Result<Option<T>, Problem> {
    let bytes = read(body, LIMIT).await?;
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    parse(&bytes).map(Some)
}

/// The body of a node's report.
pub(crate) async fn from_agent<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    parse(&read(body, AGENT_LIMIT).await?)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would also take an array for a struct.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::invalid("the body must be one JSON object"));
    }
    let not_json = |error: &serde_json::Error| Problem::invalid(format!("the body is not JSON: {error}"));
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        if error.is_data() {
            Problem::invalid(format!("the body does not fit: {field}: {error}"))
        } else {
            not_json(&error)
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

async fn read(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    let mut drained = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::invalid("the body was cut off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if drained > 0 || bytes.len() + data.len() > limit {
            drained += data.len();
            if drained > DRAIN {
                break;
            }
        } else {
            bytes.extend_from_slice(&data);
        }
    }
    if drained > 0 {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::TooLarge,
            format!("the body is larger than {} MiB", limit >> 20),
        ));
    }
    Ok(bytes.freeze())
}
