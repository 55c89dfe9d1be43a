//! The first contact: a join token for a certificate.

use std::{fs, io, path::PathBuf, time::Duration};

use crabshack_shared::{
    agent_api::v1::EnrolRequest,
    secret::Secret,
    telemetry::Chain,
    tls::{self, JoinToken, TlsError},
};

use super::client::{Client, UplinkError};
use crate::{
    config::Settings,
    identity::{IdentityError, Key, NodeIdentity},
};

const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// Why the node could not enrol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    #[error(
        "this node is not enrolled: run `crabshack join-token` beside the coordinator and pass what it prints as CRABSHACK_JOIN_TOKEN"
    )]
    NoToken,
    #[error("the join token file {path} (CRABSHACK_JOIN_TOKEN_FILE) cannot be read")]
    TokenFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the join token cannot be used")]
    Token(#[from] TlsError),
    #[error("the node's identity cannot be kept")]
    Identity(#[from] IdentityError),
    #[error(
        "the coordinator does not let this node in; a join token works once and for an hour: make a new one with `crabshack join-token`"
    )]
    Refused(#[source] UplinkError),
}

/// Reads the identity of an earlier enrolment, or enrols. Waits for the coordinator as long as it
/// takes; what it refuses is final.
pub(crate) async fn identity(settings: &Settings, hostname: &str) -> Result<NodeIdentity, EnrolError> {
    if let Some(identity) = NodeIdentity::load(&settings.data_dir)? {
        return Ok(identity);
    }
    let token = JoinToken::decode(&token(settings)?)?;
    let key = Key::load_or_create(&settings.data_dir)?;
    let request = EnrolRequest {
        join_secret: token.secret.clone(),
        request: key.request()?,
        hostname: hostname.to_owned(),
    };
    let client = Client::new(settings.coordinator.clone(), tls::client(&token.authority, None)?);
    let mut told = false;
    let answer = loop {
        match client.enrol(&request).await {
            Ok(answer) => break answer,
            Err(error) if error.is_refusal() => return Err(EnrolError::Refused(error)),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = %Chain(&error), "waiting for the coordinator to enrol");
                }
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
        }
    };
    tracing::info!(node = %answer.node, "enrolled");
    Ok(NodeIdentity::enrolled(
        &settings.data_dir,
        key,
        token.authority,
        &answer.certificate,
    )?)
}

fn token(settings: &Settings) -> Result<Secret, EnrolError> {
    match (&settings.join_token, &settings.join_token_file) {
        (Some(token), _) => Ok(token.clone()),
        (None, Some(path)) => fs::read_to_string(path)
            .map(|text| Secret::from(text.trim().to_owned()))
            .map_err(|source| EnrolError::TokenFile {
                path: path.clone(),
                source,
            }),
        (None, None) => Err(EnrolError::NoToken),
    }
}
