//! `/images`: the list of images that instances may be made from. While it is empty every image may be
//! used.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State, http::StatusCode};
use chrono::{SubsecRound as _, Utc};
use crabshack_shared::{
    api::{
        images::{ALLOW_CREATE, AddImage, Image, RemoveImage, Resolved, Unresolved},
        instances::LooseText,
    },
    image::ImageReference,
    problem::{Code, Problem},
};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{
    extract::{self, Parameters},
    internal,
};
use crate::{
    app::App,
    images,
    store::{ImageRecord, StoreError},
};

/// Longest texts.
const WORD_LIMIT: usize = 64;
const TEXT_LIMIT: usize = 4096;
/// So many registries are asked at once.
const AT_ONCE: usize = 4;

/// `GET /images`: a bare array, oldest first, as clients expect it.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<Vec<Image>>, Problem> {
    Ok(Json(all(&app).map_err(internal)?.into_iter().map(shown).collect()))
}

fn all(app: &App) -> Result<Vec<ImageRecord>, StoreError> {
    app.store.reading()?.images()
}

fn shown(record: ImageRecord) -> Image {
    Image {
        digest: record.digest().map(str::to_owned),
        reference: record.reference.to_string(),
        service_type: record.service_type,
        status: record.status,
        created_at: record.created_at,
        label: record.label,
        preferred: record.preferred,
        note: record.note,
    }
}

/// `POST /images`: 201, or 409 when the reference is there, for whichever type. Its digest is looked up
/// if its registry answers at once; `resolve-digests` does it later.
pub(crate) async fn add(State(app): State<Arc<App>>, body: Body) -> Result<(StatusCode, Json<Image>), Problem> {
    let mut record = check(extract::required(body).await?)?;
    let taken = |reference: &ImageReference| {
        let text = format!("image `{reference}` is in the list already: DELETE it first");
        Problem::conflict(Code::Conflict, text)
    };
    let known = all(&app).map_err(internal)?;
    if known.iter().any(|entry| entry.reference == record.reference) {
        return Err(taken(&record.reference));
    }
    record.digest = match images::digest(&app, &record.reference).await {
        Ok(digest) => Some(digest),
        Err(problem) => {
            tracing::warn!(image = %record.reference, "added without a digest: {problem}");
            None
        }
    };
    let kept = record.clone();
    let task = {
        let app = Arc::clone(&app);
        async move {
            let added = app
                .store
                .write(move |writing| -> Result<bool, StoreError> { writing.add_image(&kept) })
                .await?;
            if added {
                app.registry.all_orders_changed();
            }
            Ok::<bool, StoreError>(added)
        }
    };
    let added = app.shutdown.tasks.spawn(task).await.map_err(internal)?.map_err(internal)?;
    if !added {
        return Err(taken(&record.reference));
    }
    tracing::info!(image = %record.reference, service_type = record.service_type, "added to the list of images");
    Ok((StatusCode::CREATED, Json(shown(record))))
}

/// Parameters of `DELETE /images`.
#[derive(Debug, Deserialize)]
pub(crate) struct Remove {
    #[serde(rename = "ref")]
    reference: Option<String>,
}

/// `DELETE /images?ref=REF`, or with `{"ref": ...}`. Instances that run from it run on.
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Parameters(query): Parameters<Remove>,
    body: Body,
) -> Result<StatusCode, Problem> {
    let body: RemoveImage = extract::optional(body).await?.unwrap_or_default();
    let text = query.reference.or(body.reference.map(|text| text.0));
    let reference = reference(text)?;
    let gone = reference.clone();
    let removed = app
        .store
        .write(move |writing| -> Result<bool, StoreError> { writing.remove_image(&gone) })
        .await
        .map_err(internal)?;
    if !removed {
        return Err(Problem::not_found(format!("image `{reference}` is not in the list")));
    }
    tracing::info!(image = %reference, "removed from the list of images");
    app.registry.all_orders_changed();
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /images/resolve-digests`: asks every registry again what the references lead to. Goes on when
/// the caller goes away.
pub(crate) async fn resolve(State(app): State<Arc<App>>, body: Body) -> Result<Json<Resolved>, Problem> {
    extract::optional::<IgnoredAny>(body).await?;
    let task = resolve_all(Arc::clone(&app));
    Ok(Json(app.shutdown.tasks.spawn(task).await.map_err(internal)??))
}

async fn resolve_all(app: Arc<App>) -> Result<Resolved, Problem> {
    let references = all(&app).map_err(internal)?.into_iter().map(|record| record.reference);
    let found: Vec<(ImageReference, Result<String, Problem>)> = stream::iter(references)
        .map(|reference| async {
            let digest = images::digest(&app, &reference).await;
            (reference, digest)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failed = found.iter().filter_map(|(reference, digest)| {
        Some(Unresolved {
            reference: reference.to_string(),
            error: digest.as_ref().err()?.to_string(),
        })
    });
    let failed = failed.collect();
    let changed = app
        .store
        .write(move |writing| -> Result<bool, StoreError> {
            let mut changed = false;
            for (reference, digest) in found {
                if let Ok(digest) = digest {
                    changed |= writing.note_digest(&reference, &digest)?;
                }
            }
            Ok(changed)
        })
        .await
        .map_err(internal)?;
    if changed {
        app.registry.all_orders_changed();
    }
    Ok(Resolved {
        images: all(&app).map_err(internal)?.into_iter().map(shown).collect(),
        failed,
    })
}

/// Checks a new entry; pure.
fn check(asked: AddImage) -> Result<ImageRecord, Problem> {
    let given = |text: Option<LooseText>| text.map(|text| text.0).filter(|text| !text.trim().is_empty());
    let text = |name: &str, value: Option<LooseText>| match given(value) {
        Some(text) if text.len() > TEXT_LIMIT => Err(Problem::invalid(format!("{name} must be at most {TEXT_LIMIT} bytes"))),
        text => Ok(text),
    };
    let (reference_text, service_type) = match (given(asked.reference), given(asked.service_type)) {
        (Some(reference), Some(service_type)) => (reference, service_type),
        (None, Some(_)) => return Err(Problem::invalid("Missing required fields: ref")),
        (Some(_), None) => return Err(Problem::invalid("Missing required fields: service_type")),
        (None, None) => return Err(Problem::invalid("Missing required fields: ref, service_type")),
    };
    Ok(ImageRecord {
        reference: reference(Some(reference_text))?,
        service_type: word("service_type", service_type)?,
        status: match given(asked.status) {
            Some(status) => word("status", status)?,
            None => ALLOW_CREATE.to_owned(),
        },
        created_at: Utc::now().trunc_subsecs(3),
        digest: None,
        label: text("label", asked.label)?,
        preferred: match asked.preferred {
            None | Some(Value::Null) => 0,
            Some(Value::Bool(preferred)) => preferred.into(),
            Some(number) => number
                .as_i64()
                .ok_or_else(|| Problem::invalid("preferred must be a whole number"))?,
        },
        note: text("note", asked.note)?,
    })
}

fn reference(text: Option<String>) -> Result<ImageReference, Problem> {
    let text = text.ok_or_else(|| Problem::invalid("Missing required fields: ref"))?;
    text.parse().map_err(|error| Problem::invalid(format!("ref: {error}")))
}

fn word(name: &str, text: String) -> Result<String, Problem> {
    let good = text.len() <= WORD_LIMIT
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if good {
        Ok(text)
    } else {
        Err(Problem::invalid(format!(
            "{name} must be at most {WORD_LIMIT} letters, digits, `-`, `_` and `.`"
        )))
    }
}

#[cfg(test)]
mod tests;
