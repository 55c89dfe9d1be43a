//! References to images.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why an image reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image must be a reference like `docker.io/owner/name:tag` or `name:tag@sha256:...`")]
pub struct InvalidImage;

/// An image by name, with a tag and perhaps a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference {
    name: String,
    digest: Option<String>,
}

impl ImageReference {
    /// `name:tag`, without the digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `sha256:...`, when the reference is pinned.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

impl FromStr for ImageReference {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let name_valid = (1..=255).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte))
            && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        let digest_valid = digest.is_none_or(|digest| {
            digest
                .strip_prefix("sha256:")
                .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        });
        if name_valid && digest_valid {
            Ok(Self {
                name: name.to_owned(),
                digest: digest.map(str::to_owned),
            })
        } else {
            Err(InvalidImage)
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.digest {
            Some(digest) => write!(formatter, "{}@{digest}", self.name),
            None => formatter.write_str(&self.name),
        }
    }
}

impl TryFrom<String> for ImageReference {
    type Error = InvalidImage;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageReference> for String {
    fn from(image: ImageReference) -> Self {
        image.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_reference__should_keep_tag_and_digest_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let image: ImageReference = format!("docker.io/owner/name:1.2@{digest}").parse().unwrap();
        assert_eq!(image.name(), "docker.io/owner/name:1.2");
        assert_eq!(image.digest(), Some(digest.as_str()));
        for text in ["", "-x", "a b", "a//b", "../x", "name@sha256:12", "name@md5:aa"] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }
}
