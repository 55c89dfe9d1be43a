//! References to images.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why an image reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image must be a reference like `docker.io/owner/name:tag` or `name:tag@sha256:...`")]
pub struct InvalidImage;

/// An image by name, with a tag and perhaps a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

    /// The same image pinned to a digest.
    ///
    /// # Errors
    /// When that is no digest.
    pub fn pinned(&self, digest: &str) -> Result<Self, InvalidImage> {
        format!("{}@{digest}", self.name).parse()
    }

    /// Where it is kept, spelled out.
    pub fn location(&self) -> Location {
        Location::of(self)
    }
}

/// Where an image is kept, with all that a short reference leaves out: two references to one image
/// have the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// Host, perhaps with a port; `docker.io` when the reference names none.
    pub registry: String,
    /// Path in it, like `library/debian`.
    pub repository: String,
    /// `latest` when the reference has neither tag nor digest.
    pub tag: Option<String>,
}

/// Where short references lead.
pub const DEFAULT_REGISTRY: &str = "docker.io";

impl Location {
    fn of(image: &ImageReference) -> Self {
        let (path, tag) = split_tag(&image.name);
        let (registry, repository) = spell_out(path);
        let latest = || image.digest.is_none().then_some("latest");
        Self {
            registry,
            repository,
            tag: tag.or_else(latest).map(str::to_owned),
        }
    }

    /// The same repository.
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.registry, &self.repository) == (&other.registry, &other.repository)
    }
}

/// `registry/repository:tag`.
impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        match &self.tag {
            Some(tag) => write!(formatter, ":{tag}"),
            None => Ok(()),
        }
    }
}

/// The registry and the path in it that a name without a tag leads to.
pub fn spell_out(path: &str) -> (String, String) {
    let (registry, repository) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (DEFAULT_REGISTRY, path),
    };
    if registry != DEFAULT_REGISTRY && registry != "index.docker.io" {
        return (registry.to_owned(), repository.to_owned());
    }
    let library = if repository.contains('/') { "" } else { "library/" };
    (DEFAULT_REGISTRY.to_owned(), format!("{library}{repository}"))
}

/// The path and the tag of a name; a colon before the last slash belongs to a port.
pub fn split_tag(name: &str) -> (&str, Option<&str>) {
    let start_of_last = name.rfind('/').map_or(0, |at| at + 1);
    match name[start_of_last..].find(':') {
        Some(at) => {
            let (path, tag) = name.split_at(start_of_last + at);
            (path, Some(&tag[1..]))
        }
        None => (name, None),
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
        let bare: ImageReference = "name:1".parse().unwrap();
        assert_eq!(bare.pinned(&digest).unwrap().to_string(), format!("name:1@{digest}"));
        assert!(bare.pinned("sha256:1").is_err());
    }

    #[test]
    fn location__should_spell_out_what_a_short_reference_leaves_out() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, location) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("index.docker.io/owner/name:1", "docker.io/owner/name:1".to_owned()),
            ("owner/name", "docker.io/owner/name:latest".to_owned()),
            ("localhost/name:1", "localhost/name:1".to_owned()),
            ("host:5000/a/b/name", "host:5000/a/b/name:latest".to_owned()),
            (&format!("ghcr.io/a/name@{digest}"), "ghcr.io/a/name".to_owned()),
            (&format!("ghcr.io/a/name:2@{digest}"), "ghcr.io/a/name:2".to_owned()),
        ] {
            assert_eq!(
                text.parse::<ImageReference>().unwrap().location().to_string(),
                location,
                "{text}"
            );
        }
    }
}
