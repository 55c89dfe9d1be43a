//! `/images`: which images instances may be made from.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::instances::LooseText;

/// An entry with this status may be used; with any other it is only remembered.
pub const ALLOW_CREATE: &str = "allow-create";

/// One element of `GET /images`, whose answer is a bare array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The key: a reference with a tag, a digest, or both.
    #[serde(rename = "ref")]
    pub reference: String,
    /// For which service type.
    pub service_type: String,
    /// `allow-create`, or any other word.
    pub status: String,
    /// When it was added.
    pub created_at: DateTime<Utc>,
    /// `sha256:...` that the reference led to when it was last looked up.
    pub digest: Option<String>,
    /// For people.
    pub label: Option<String>,
    /// For user interfaces: which one to offer first.
    pub preferred: i64,
    /// For people.
    pub note: Option<String>,
}

/// Body of `POST /images`. Unknown fields and nulls are accepted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AddImage {
    /// Required.
    #[serde(rename = "ref")]
    pub reference: Option<LooseText>,
    /// Required.
    pub service_type: Option<LooseText>,
    /// `allow-create` when left out.
    pub status: Option<LooseText>,
    /// For people.
    pub label: Option<LooseText>,
    /// A number; some clients send true or false.
    pub preferred: Option<serde_json::Value>,
    /// For people.
    pub note: Option<LooseText>,
}

/// Body of `DELETE /images`, whose `ref` may stand in the query instead.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RemoveImage {
    /// Which.
    #[serde(rename = "ref")]
    pub reference: Option<LooseText>,
}

/// Answer of `POST /images/resolve-digests`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    /// All entries as they are now.
    pub images: Vec<Image>,
    /// Those whose registry gave no digest; they keep the one they had.
    pub failed: Vec<Unresolved>,
}

/// An entry that could not be looked up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unresolved {
    /// Which.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Why.
    pub error: String,
}
