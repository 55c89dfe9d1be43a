//! `GET /instances/{name}/events`: what happened to an instance.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::agent_api::v1::Phase;

/// The last transitions of an instance, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceEvents {
    /// At most the last 200.
    pub events: Vec<InstanceEvent>,
}

/// One transition: a wish, or a phase that its node saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEvent {
    /// By the clock of whoever noted it.
    pub at: DateTime<Utc>,
    /// What was wished or decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Wished>,
    /// Where it was from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Why, for people.
    pub reason: Option<String>,
    /// Who noted it.
    pub origin: Origin,
    /// Of the wish, like `1.17`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
}

/// What was wished or decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wished {
    /// It was asked for.
    Created,
    /// Its start was asked for.
    Start,
    /// Its stop was asked for.
    Stop,
    /// Its restart was asked for.
    Restart,
    /// Something of it was changed; the reason names the fields.
    Patched,
    /// It got another token.
    TokenRotated,
    /// Its deletion was asked for.
    Deleted,
    /// It was asked back.
    Undeleted,
    /// The removal of its disk was asked for, or its time had come.
    Purged,
    /// It was given to another node.
    Moved,
    /// A command was run in it; the reason names it and says how it ended.
    Exec,
}

/// Who noted an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Somebody asked for it.
    Api,
    /// Its node saw it.
    Node,
    /// The coordinator decided it.
    Coordinator,
}
