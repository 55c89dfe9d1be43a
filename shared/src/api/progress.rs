//! Progress as server-sent events: `event: NAME` and one JSON object, which says the same again,
//! because some clients read only the data.

use serde::{Deserialize, Serialize};

use crate::instance::InstanceName;

/// What happened. The last one of a stream is `ready`, `stopped`, `deleted`, `error` or `superseded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The wish is written down.
    Created,
    /// On its way; the message says where.
    Pending,
    /// It answers.
    Ready,
    /// It is down.
    Stopped,
    /// It is gone.
    Deleted,
    /// It needs a person, or took too long.
    Error,
    /// A later request about the same instance took over.
    Superseded,
}

impl Stage {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
            Self::Error => "error",
            Self::Superseded => "superseded",
        }
    }

    /// True for the last event of a stream.
    pub fn ends(self) -> bool {
        !matches!(self, Self::Created | Self::Pending)
    }
}

/// The data of one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What happened.
    pub event: Stage,
    /// The same, for those who look here.
    pub stage: Stage,
    /// For people.
    pub message: String,
    /// Of which instance.
    pub name: InstanceName,
    /// With `deleted`: whether the volume went too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge: Option<bool>,
}

impl Progress {
    /// An event about an instance.
    pub fn new(stage: Stage, name: InstanceName, message: impl Into<String>) -> Self {
        Self {
            event: stage,
            stage,
            message: message.into(),
            name,
            purge: None,
        }
    }
}
