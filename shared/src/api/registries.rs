//! `/registries`: how to log in where images are pulled from.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::instances::LooseText;

/// Answer of `GET /registries`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegistryList {
    /// All, by host.
    pub registries: Vec<Registry>,
}

/// One registry; its password is never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// The key: host, perhaps with a port, as references name it.
    pub host: String,
    /// As whom to log in; null: nobody.
    pub username: Option<String>,
    /// It speaks HTTP without TLS.
    pub plain_http: bool,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// Body of `PUT /registries/{host}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PutRegistry {
    /// Together with `password`; none: no login.
    pub username: Option<LooseText>,
    /// Or a token with which images may be pulled.
    pub password: Option<LooseText>,
    /// It speaks HTTP without TLS.
    pub plain_http: Option<bool>,
}
