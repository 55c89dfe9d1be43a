//! Texts that must not be printed.

use std::fmt;

use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq as _;

/// A token, key or password. `Debug` shows nothing; memory is wiped when it is dropped.
///
/// It serialises as plain text: only wire types that travel over mTLS and records that are sealed
/// may hold one.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// 256 random bits as 64 hex digits.
    pub fn random() -> Self {
        let bytes: [u8; 32] = rand::rng().random();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self::from(text)
    }

    /// The text itself. Every call is a place where it could leak: keep them few.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Compares in constant time for texts of the same length.
    pub fn matches(&self, candidate: &str) -> bool {
        self.expose().as_bytes().ct_eq(candidate.as_bytes()).into()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(SecretString::from(text))
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.expose())
    }
}

impl Eq for Secret {}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret__should_not_print() {
        let secret = Secret::random();
        assert_eq!(secret.expose().len(), 64);
        assert!(!format!("{secret:?}").contains(secret.expose()));
        assert!(secret.matches(secret.expose()));
        assert!(!secret.matches("other"));
    }
}
