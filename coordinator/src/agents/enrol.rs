//! How a node gets its certificates: the first one for a join token, each later one for the one before.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use chrono::{SubsecRound as _, Utc};
use crabshack_shared::{
    agent_api::v1::{EnrolAnswer, EnrolRequest, RenewAnswer, RenewRequest},
    ids::NodeId,
    problem::Problem,
    telemetry::Chain,
};

use super::identity::Renewing;
use crate::{
    api::{extract, internal},
    app::App,
    ca::{CaError, Issued},
    store::{NodeRecord, StoreError, TokenRefused},
};

/// Why nobody was enrolled.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Token(#[from] TokenRefused),
}

/// `POST /v1/enrol`: a fresh node id for a join token, which is used up by it.
pub(crate) async fn enrol(State(app): State<Arc<App>>, body: Body) -> Result<Json<EnrolAnswer>, Problem> {
    let request: EnrolRequest = extract::required(body).await?;
    let node = NodeId::random();
    // Before the token is touched, so that a bad request does not use it up.
    let issued = issue(&app, &node, &request.request)?;
    let record = NodeRecord {
        id: node.clone(),
        hostname: request.hostname.chars().take(253).collect(),
        facts: None,
        revoked: false,
        enrolled_at: Utc::now().trunc_subsecs(3),
        certificate_serial: Some(issued.serial),
    };
    let enrolled = app
        .store
        .write(move |writing| -> Result<(), Refused> {
            writing.use_join_token(&request.join_secret, Utc::now())??;
            writing.put_node(&record)?;
            Ok(())
        })
        .await;
    match enrolled {
        Ok(()) => {
            tracing::info!(node.id = %node, "a node enrolled");
            Ok(Json(EnrolAnswer {
                node,
                certificate: issued.pem,
            }))
        }
        Err(Refused::Token(refused)) => {
            tracing::warn!("refused to enrol a node: {refused}");
            Err(Problem::forbidden(refused.to_string()))
        }
        Err(Refused::Store(error)) => Err(internal(error)),
    }
}

/// `POST /v1/renew`: the next certificate of the node that asks.
pub(crate) async fn renew(
    State(app): State<Arc<App>>,
    Renewing(node): Renewing,
    body: Body,
) -> Result<Json<RenewAnswer>, Problem> {
    let request: RenewRequest = extract::required(body).await?;
    let issued = issue(&app, &node, &request.request)?;
    let id = node.clone();
    app.store
        .write(move |writing| -> Result<(), StoreError> {
            match writing.node(&id)? {
                Some(mut record) => {
                    record.certificate_serial = Some(issued.serial);
                    writing.put_node(&record)
                }
                None => Ok(()),
            }
        })
        .await
        .map_err(internal)?;
    tracing::info!(node.id = %node, "renewed a node's certificate");
    Ok(Json(RenewAnswer { certificate: issued.pem }))
}

fn issue(app: &App, node: &NodeId, request: &str) -> Result<Issued, Problem> {
    app.ca.issue_node(node, request).map_err(|error| match error {
        CaError::Request(_) => {
            tracing::warn!("refused a certificate request: {}", Chain(&error));
            Problem::invalid(error.to_string())
        }
        _ => internal(error),
    })
}
