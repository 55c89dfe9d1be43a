//! What an instance is called and what state it is in.

use std::{fmt, str::FromStr};

use rand::RngExt as _;
use serde::{Deserialize, Serialize};

/// Names that a host or a path of ours uses, so no instance may.
const RESERVED: [&str; 10] = [
    "admin",
    "api",
    "auth",
    "docs",
    "gateway",
    "health",
    "localhost",
    "mail",
    "metrics",
    "www",
];

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a DNS label.
    #[error("name must be one DNS label: 1 to 63 of a-z, 0-9 and `-`, not starting or ending with `-`")]
    Form,
    /// A name of ours.
    #[error("name `{0}` is reserved")]
    Reserved(String),
}

/// The label of an instance, unique among living ones; also its host under the zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

impl InstanceName {
    /// `agent-` and 8 random hex digits.
    pub fn random() -> Self {
        Self(format!("agent-{:08x}", rand::rng().random::<u32>()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for InstanceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = (1..=63).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !label {
            Err(InvalidName::Form)
        } else if RESERVED.contains(&text) {
            Err(InvalidName::Reserved(text.to_owned()))
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl TryFrom<String> for InstanceName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

/// The name of a recipe, like `openclaw`. Data, not an enum: the node that gets it decides whether
/// it knows a recipe of that name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceType(String);

impl ServiceType {
    /// The OpenClaw gateway with SSH beside it.
    pub const OPENCLAW: &'static str = "openclaw";

    /// Wraps a name; whether it is known is decided where it is used.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The four words of the API's `status`. What else there is to say stands in `phase` and `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceStatus {
    /// Wanted, but it never answered yet.
    Creating,
    /// Wanted and answering, or on its way back to it.
    Running,
    /// Stopped on request.
    Stopped,
    /// Wanted, but it needs a person.
    Error,
}

impl InstanceStatus {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_name__should_be_one_dns_label() {
        for text in ["a", "agent-1a2b3c4d", "0", &"x".repeat(63)] {
            assert!(text.parse::<InstanceName>().is_ok(), "{text}");
        }
        for text in ["", "-a", "a-", "A", "a.b", "../x", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(text.parse::<InstanceName>(), Err(InvalidName::Form), "{text}");
        }
        assert!(matches!("api".parse::<InstanceName>(), Err(InvalidName::Reserved(_))));
        assert!(InstanceName::random().as_str().parse::<InstanceName>().is_ok());
    }
}
