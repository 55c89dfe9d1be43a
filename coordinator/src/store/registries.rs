//! How to log in to registries. Passwords are sealed, each bound to its host.

use chrono::{DateTime, Utc};
use crabshack_shared::{seal::Sealed, secret::Secret};
use serde::{Deserialize, Serialize};

use super::{Snapshot, Source, Store, StoreError, Writing, tables::Records};

/// By host.
pub(super) const REGISTRIES: Records = Records::new("registries");

/// One registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RegistryRecord {
    pub(crate) host: String,
    pub(crate) login: Option<LoginRecord>,
    pub(crate) plain_http: bool,
    pub(crate) updated_at: DateTime<Utc>,
}

/// As whom to log in, and what proves it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LoginRecord {
    pub(crate) username: String,
    sealed: Sealed,
}

impl Store {
    /// A login for a host, with its password sealed.
    pub(crate) fn seal_login(&self, host: &str, username: String, password: &Secret) -> Result<LoginRecord, StoreError> {
        let sealed = self.sealer.seal(&context(host), password)?;
        Ok(LoginRecord { username, sealed })
    }

    /// The password of a login.
    pub(crate) fn password(&self, host: &str, login: &LoginRecord) -> Result<Secret, StoreError> {
        Ok(self.sealer.open(&context(host), &login.sealed)?)
    }
}

fn context(host: &str) -> String {
    format!("registry {host}")
}

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// All registries, by host.
    pub(crate) fn registries(&self) -> Result<Vec<RegistryRecord>, StoreError> {
        let mut all = Vec::new();
        self.each_record(REGISTRIES, |record| all.push(record))?;
        Ok(all)
    }

    /// The registry of that host.
    pub(crate) fn registry(&self, host: &str) -> Result<Option<RegistryRecord>, StoreError> {
        self.record(REGISTRIES, host)
    }
}

impl Writing {
    /// Writes a new or changed registry.
    pub(crate) fn put_registry(&self, record: &RegistryRecord) -> Result<(), StoreError> {
        self.put(REGISTRIES, &record.host, record)
    }

    /// Forgets a registry. False: there is none.
    pub(crate) fn remove_registry(&self, host: &str) -> Result<bool, StoreError> {
        self.take_out(REGISTRIES, host)
    }
}
