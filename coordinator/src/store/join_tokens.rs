//! Join tokens: short-lived, for one node each. Only their SHA-256 is kept; they are 256 random bits.

use chrono::{DateTime, Utc};
use crabshack_shared::secret::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{StoreError, Writing, tables};
use crate::store::Source as _;

/// Why a join token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefused {
    /// Never given out, or used already.
    #[error("the join token is unknown or was used: ask for a new one with `crabshack join-token`")]
    Unknown,
    /// Too late.
    #[error("the join token has expired: ask for a new one with `crabshack join-token`")]
    Expired,
}

#[derive(Serialize, Deserialize)]
struct JoinTokenRecord {
    expires_at: DateTime<Utc>,
}

impl Writing {
    /// Writes down a new token, and forgets those whose time is over.
    pub(crate) fn put_join_token(
        &self,
        secret: &Secret,
        expires_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let mut over = Vec::new();
        self.0.each(tables::JOIN_TOKENS, |key, bytes| {
            let record: JoinTokenRecord = tables::decode(tables::JOIN_TOKENS, key, bytes)?;
            if record.expires_at <= now {
                over.push(key.to_owned());
            }
            Ok(())
        })?;
        for key in over {
            self.take_out(tables::JOIN_TOKENS, &key)?;
        }
        self.put(tables::JOIN_TOKENS, &digest(secret), &JoinTokenRecord { expires_at })
    }

    /// Uses a token up. It counts as used only when the whole transaction succeeds.
    pub(crate) fn use_join_token(&self, secret: &Secret, now: DateTime<Utc>) -> Result<Result<(), TokenRefused>, StoreError> {
        let key = digest(secret);
        let Some(record) = self.record::<JoinTokenRecord>(tables::JOIN_TOKENS, &key)? else {
            return Ok(Err(TokenRefused::Unknown));
        };
        if record.expires_at <= now {
            return Ok(Err(TokenRefused::Expired));
        }
        self.take_out(tables::JOIN_TOKENS, &key)?;
        Ok(Ok(()))
    }
}

fn digest(secret: &Secret) -> String {
    let digest = Sha256::digest(secret.expose().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
