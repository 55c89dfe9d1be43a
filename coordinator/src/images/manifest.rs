//! What a manifest says: which architectures there are. Pure.

use std::collections::BTreeSet;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// What registries are asked for.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// An image as its registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// `sha256:...` of its manifest, as it was computed here.
    pub(super) digest: String,
    /// In the registry's words, like `amd64`.
    pub(super) architectures: BTreeSet<String>,
}

/// What a manifest leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Manifest {
    /// Several images, one per architecture.
    Index(BTreeSet<String>),
    /// One image, whose configuration says for which architecture.
    Image { configuration: String },
}

#[derive(Deserialize)]
struct Body {
    manifests: Option<Vec<Entry>>,
    config: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Entry {
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// Reads a manifest; none: it is of no form that Docker runs.
pub(super) fn read(bytes: &[u8]) -> Option<Manifest> {
    let body: Body = serde_json::from_slice(bytes).ok()?;
    match (body.manifests, body.config) {
        (Some(entries), _) => {
            let platforms = entries.into_iter().filter_map(|entry| entry.platform);
            let linux = platforms.filter(|platform| platform.os == "linux");
            Some(Manifest::Index(linux.map(|platform| platform.architecture).collect()))
        }
        (None, Some(configuration)) if is_digest(&configuration.digest) => Some(Manifest::Image {
            configuration: configuration.digest,
        }),
        _ => None,
    }
}

/// The architecture in an image's configuration; none: it is for no Linux.
pub(super) fn architecture(bytes: &[u8]) -> Option<String> {
    let platform: Platform = serde_json::from_slice(bytes).ok()?;
    (platform.os == "linux" && !platform.architecture.is_empty()).then_some(platform.architecture)
}

/// `sha256:...` of bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// What registries call a node's architecture.
pub(super) fn registry_word(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest__should_tell_an_index_from_an_image() {
        let index = br#"{"schemaVersion":2,"manifests":[
            {"digest":"sha256:1","platform":{"os":"linux","architecture":"amd64"}},
            {"digest":"sha256:2","platform":{"os":"windows","architecture":"arm64"}},
            {"digest":"sha256:3","platform":{"os":"unknown","architecture":"unknown"}}]}"#;
        assert_eq!(read(index), Some(Manifest::Index(BTreeSet::from(["amd64".to_owned()]))));
        let configuration = digest(b"{}");
        let image = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{configuration}"}},"layers":[]}}"#);
        assert_eq!(read(image.as_bytes()), Some(Manifest::Image { configuration }));
        for odd in [&b"{}"[..], b"[", br#"{"config":{"digest":"sha256:../x"}}"#] {
            assert_eq!(read(odd), None);
        }
    }

    #[test]
    fn architecture__should_be_that_of_a_linux_image() {
        assert_eq!(
            architecture(br#"{"os":"linux","architecture":"arm64"}"#).as_deref(),
            Some("arm64")
        );
        assert_eq!(architecture(br#"{"os":"windows","architecture":"amd64"}"#), None);
        assert_eq!(architecture(b"x"), None);
    }
}
