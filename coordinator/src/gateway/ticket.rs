//! Tickets: what the gateway's cookie holds. A ticket says what it is for, under which origin, for
//! which instance, until when and for which token, so that none can be used anywhere else and a
//! changed token voids them all.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use crabshack_shared::{ids::InstanceId, seal::write_private, secret::Secret};
use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How long a ticket is good.
pub(crate) const LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const PURPOSE: &str = "gateway";
const KEY_LENGTH: usize = 32;

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TicketKeyError {
    /// The file can be neither read nor made.
    #[error("the gateway's ticket key {path} cannot be read or made")]
    File {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file does not hold a key.
    #[error("the gateway's ticket key {path} is damaged: remove it, and everybody enters again with their token")]
    Damaged {
        /// Where it is.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("the system gives no random bytes for the gateway's ticket key")]
    Random,
}

/// What a ticket is good for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// The instance.
    pub(crate) instance: InstanceId,
    /// The instance's origin.
    pub(crate) origin: &'a str,
    /// The instance's token as it is now.
    pub(crate) token: &'a Secret,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    purpose: String,
    audience: String,
    instance: InstanceId,
    /// Seconds since 1970.
    expires: u64,
    /// Hash of the token, base64.
    token: String,
}

/// Signs tickets and checks them.
pub(crate) struct TicketKey(hmac::Key);

impl TicketKey {
    /// Reads the key file, or makes one (mode 0600) when there is none.
    pub(crate) fn load_or_create(path: &Path) -> Result<Self, TicketKeyError> {
        let at = |source| TicketKeyError::File {
            path: path.to_owned(),
            source,
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) if bytes.len() == KEY_LENGTH => bytes,
            Ok(_) => return Err(TicketKeyError::Damaged { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = vec![0; KEY_LENGTH];
                SystemRandom::new().fill(&mut bytes).map_err(|_| TicketKeyError::Random)?;
                write_private(path, &bytes).map_err(at)?;
                bytes
            }
            Err(error) => return Err(at(error)),
        };
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// A ticket for whoever showed the token.
    pub(crate) fn issue(&self, scope: Scope<'_>, now: SystemTime) -> String {
        self.sign(&Claims {
            purpose: PURPOSE.to_owned(),
            audience: scope.origin.to_owned(),
            instance: scope.instance,
            expires: seconds(now + LIFE),
            token: hash(scope.token),
        })
    }

    /// True when the ticket is ours, unchanged, not over, and for exactly this.
    pub(crate) fn admits(&self, ticket: &str, scope: Scope<'_>, now: SystemTime) -> bool {
        let Some(claims) = self.open(ticket) else {
            return false;
        };
        claims.purpose == PURPOSE
            && claims.audience == scope.origin
            && claims.instance == scope.instance
            && claims.expires > seconds(now)
            && claims.token == hash(scope.token)
    }

    fn sign(&self, claims: &Claims) -> String {
        // Claims are plain texts and numbers, which always serialise.
        let text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims).unwrap_or_default());
        let tag = hmac::sign(&self.0, text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    fn open(&self, ticket: &str) -> Option<Claims> {
        let (text, tag) = ticket.split_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.0, text.as_bytes(), &tag).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    }
}

fn hash(token: &Secret) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(token.expose().as_bytes()))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn key() -> TicketKey {
        TicketKey(hmac::Key::new(hmac::HMAC_SHA256, &[7; KEY_LENGTH]))
    }

    #[test]
    fn ticket__should_be_good_for_one_scope_and_time_only() {
        let (key, now, token) = (key(), SystemTime::now(), Secret::random());
        let scope = Scope {
            instance: InstanceId::random(),
            origin: "http://a.localhost:3000",
            token: &token,
        };
        let ticket = key.issue(scope, now);
        assert!(key.admits(&ticket, scope, now));
        assert!(key.admits(&ticket, scope, now + LIFE - Duration::from_secs(2)));
        assert!(!key.admits(&ticket, scope, now + LIFE));
        let rotated = Secret::random();
        for other in [
            Scope {
                instance: InstanceId::random(),
                ..scope
            },
            Scope {
                origin: "https://a.localhost:3000",
                ..scope
            },
            Scope {
                token: &rotated,
                ..scope
            },
        ] {
            assert!(!key.admits(&ticket, other, now), "{other:?}");
        }
        let other_key = TicketKey(hmac::Key::new(hmac::HMAC_SHA256, &[8; KEY_LENGTH]));
        assert!(!other_key.admits(&ticket, scope, now));
    }

    #[test]
    fn ticket__should_be_refused_when_made_for_another_purpose_or_changed() {
        let (key, now, token) = (key(), SystemTime::now(), Secret::random());
        let scope = Scope {
            instance: InstanceId::random(),
            origin: "http://a.localhost:3000",
            token: &token,
        };
        let other_purpose = key.sign(&Claims {
            purpose: "terminal".to_owned(),
            audience: scope.origin.to_owned(),
            instance: scope.instance,
            expires: seconds(now + LIFE),
            token: hash(&token),
        });
        assert!(!key.admits(&other_purpose, scope, now));
        let ticket = key.issue(scope, now);
        for place in [0, 10, ticket.len() - 1] {
            let mut changed = ticket.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            assert!(!key.admits(&String::from_utf8(changed).unwrap(), scope, now), "{place}");
        }
        for text in ["", ".", "x.y", &ticket[..ticket.len() - 4]] {
            assert!(!key.admits(text, scope, now), "{text}");
        }
    }

    #[test]
    fn ticket_key__should_be_private_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.key");
        let token = Secret::random();
        let scope = Scope {
            instance: InstanceId::random(),
            origin: "http://a.localhost:3000",
            token: &token,
        };
        let now = SystemTime::now();
        let ticket = TicketKey::load_or_create(&path).unwrap().issue(scope, now);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(TicketKey::load_or_create(&path).unwrap().admits(&ticket, scope, now));
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(
            TicketKey::load_or_create(&path),
            Err(TicketKeyError::Damaged { .. })
        ));
    }
}
