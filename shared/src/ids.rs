//! Typed ids: one cannot be passed where another is meant.

use std::{fmt, str::FromStr};

use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An id that is not of its kind's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {kind}")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
}

/// Keys the volume, the link, the container and the records of one instance. Random, never reused.
///
/// Written as 32 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(Uuid);

impl InstanceId {
    /// A new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The first 12 hex digits: 48 random bits that name things with short names (bridges).
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(formatter)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for InstanceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidId {
            kind: "an instance id (32 lowercase hex digits)",
            text: text.to_owned(),
        };
        let id = Self(Uuid::try_parse(text).map_err(|_| invalid())?);
        // One spelling only, so that an id can be a file name and a key.
        if id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.to_string()
    }
}

/// A machine that runs a node agent: `node-` and 12 lowercase hex digits, given at enrolment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

impl NodeId {
    const PREFIX: &'static str = "node-";

    /// A new random id.
    pub fn random() -> Self {
        Self(format!("{}{:012x}", Self::PREFIX, rand::rng().random::<u64>() >> 16))
    }

    /// The id as text, a valid DNS label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text
            .strip_prefix(Self::PREFIX)
            .is_some_and(|random| random.len() == 12 && random.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId {
                kind: "a node id (`node-` and 12 hex digits)",
                text: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for NodeId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0
    }
}

/// A person or machine that owns instances.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(String);

impl UserId {
    /// Who acts with the admin secret.
    pub fn admin() -> Self {
        Self("admin".to_owned())
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_id__should_have_one_spelling() {
        let id = InstanceId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(
            id.to_string().to_uppercase().parse::<InstanceId>().is_err() || !id.to_string().contains(|c: char| c.is_alphabetic())
        );
        assert!(Uuid::new_v4().to_string().parse::<InstanceId>().is_err());
        assert_eq!(id.short().len(), 12);
    }

    #[test]
    fn node_id__should_be_a_dns_label() {
        assert!(NodeId::random().as_str().parse::<NodeId>().is_ok());
        for text in ["node-", "node-xyz", "node-0123456789AB", "../node-0123456789ab"] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }
}
