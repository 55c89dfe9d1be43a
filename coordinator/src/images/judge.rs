//! Decides about an image from what its registry says and what the nodes have. Pure.

use std::collections::BTreeSet;

use crabshack_shared::{
    agent_api::v1::HeldImage,
    image::ImageReference,
    problem::{Code, Problem},
    telemetry::Chain,
};
use http::StatusCode;

use super::{
    Nodes,
    manifest::{Found, registry_word},
    registry::RegistryError,
};

/// When a registry that limits us does not say how long.
const RETRY_AFTER: u32 = 60;

/// The image as it is, when a node has it and it came from no registry.
pub(super) fn local(image: &ImageReference, held: &[HeldImage]) -> Option<ImageReference> {
    let mut fitting = held.iter().filter(|have| fits(image, have));
    fitting.any(|have| have.local).then(|| image.clone())
}

/// The digest under which a node has an image.
pub(super) fn held<'a>(image: &ImageReference, held: &'a [HeldImage]) -> Option<&'a str> {
    held.iter().find(|have| fits(image, have)).map(|have| have.digest.as_str())
}

/// Whether what a node has is this image: by its digest, else by its tag.
fn fits(image: &ImageReference, have: &HeldImage) -> bool {
    let Ok(name) = have.name.parse::<ImageReference>() else {
        return false;
    };
    let (asked, location) = (image.location(), name.location());
    match image.digest() {
        Some(digest) => asked.is_beside(&location) && digest == have.digest,
        // One that was pulled by digest has no tag, and must not be taken for `latest`.
        None => asked == location && have.name.rsplit('/').next().is_some_and(|last| last.contains(':')),
    }
}

/// What to order, or why not.
pub(super) fn judge(
    image: &ImageReference,
    asked: Result<Found, RegistryError>,
    nodes: &Nodes,
) -> Result<ImageReference, Problem> {
    match asked {
        Ok(found) => {
            runs_somewhere(image, &found, &nodes.architectures)?;
            image.pinned(&found.digest).map_err(|_| Problem::internal())
        }
        Err(error) => {
            if !matches!(error, RegistryError::Lies { .. })
                && let Some(usable) = on_nodes(image, nodes)
            {
                tracing::warn!(%image, error = %Chain(&error), "a registry does not give an image; it is used as nodes have it");
                return Ok(usable);
            }
            Err(problem(image, &error))
        }
    }
}

/// The image as a node has it, or may have it.
fn on_nodes(image: &ImageReference, nodes: &Nodes) -> Option<ImageReference> {
    let pinned = held(image, &nodes.held).and_then(|digest| image.pinned(digest).ok());
    pinned.or_else(|| nodes.not_telling.then(|| image.clone()))
}

fn runs_somewhere(image: &ImageReference, found: &Found, architectures: &BTreeSet<String>) -> Result<(), Problem> {
    let words: BTreeSet<&str> = architectures.iter().map(|word| registry_word(word)).collect();
    if words.is_empty() || found.architectures.iter().any(|known| words.contains(known.as_str())) {
        return Ok(());
    }
    let list = |words: Vec<&str>| {
        if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        }
    };
    let text = format!(
        "image `{image}` cannot run on any node: it is for {}, the nodes are {}",
        list(found.architectures.iter().map(String::as_str).collect()),
        list(words.into_iter().collect())
    );
    Err(Problem::new(StatusCode::BAD_REQUEST, Code::ImageUnusable, text))
}

/// What a client hears of a registry's trouble.
pub(super) fn problem(image: &ImageReference, error: &RegistryError) -> Problem {
    let text = format!("image `{image}`: {}", Chain(error));
    match error {
        RegistryError::NotFound | RegistryError::Refused => Problem::new(StatusCode::BAD_REQUEST, Code::ImageNotFound, text),
        RegistryError::Limited { retry_after } => {
            Problem::unavailable(Code::RegistryFailed, text, retry_after.unwrap_or(RETRY_AFTER))
        }
        RegistryError::Slow(_)
        | RegistryError::Unreachable(_)
        | RegistryError::Status(_)
        | RegistryError::Odd(_)
        | RegistryError::Lies { .. } => Problem::new(StatusCode::BAD_GATEWAY, Code::RegistryFailed, text),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn have(name: &str, letter: char, local: bool) -> HeldImage {
        HeldImage {
            name: name.to_owned(),
            digest: digest(letter),
            local,
        }
    }

    fn image(text: &str) -> ImageReference {
        text.parse().unwrap()
    }

    fn found(architecture: &str) -> Result<Found, RegistryError> {
        Ok(Found {
            digest: digest('f'),
            architectures: BTreeSet::from([architecture.to_owned()]),
        })
    }

    #[test]
    fn local__should_be_what_came_from_no_registry() {
        let nodes = [have("owner/own:1", 'a', true), have("owner/pulled:1", 'b', false)];
        assert!(local(&image("owner/own:1"), &nodes).is_some());
        assert!(local(&image("docker.io/owner/own:1"), &nodes).is_some());
        let by_id = format!("owner/own:1@{}", digest('a'));
        assert_eq!(local(&image(&by_id), &nodes).map(|image| image.to_string()), Some(by_id));
        for other in ["owner/own:2", "owner/pulled:1", "own:1"] {
            assert!(local(&image(other), &nodes).is_none(), "{other}");
        }
    }

    #[test]
    fn judge__should_pin_what_the_registry_says() {
        let nodes = Nodes {
            held: vec![have("a/b:1", 'o', false)],
            architectures: BTreeSet::from(["x86_64".to_owned()]),
            not_telling: false,
        };
        let pinned = judge(&image("a/b:1"), found("amd64"), &nodes).unwrap();
        assert_eq!(pinned.to_string(), format!("a/b:1@{}", digest('f')));
        let problem = judge(&image("a/b:1"), found("arm64"), &nodes).unwrap_err();
        assert_eq!(problem.code(), Code::ImageUnusable);
        assert!(problem.to_string().contains("it is for arm64, the nodes are amd64"));
        assert!(judge(&image("a/b:1"), found("arm64"), &Nodes::default()).is_ok());
    }

    #[test]
    fn judge__should_make_do_with_what_a_node_has_unless_the_registry_lies() {
        let mut nodes = Nodes {
            held: vec![have("a/b:1", 'b', false), have("a/digest-only", 'c', false)],
            ..Nodes::default()
        };
        let silent = || RegistryError::Slow(Duration::from_secs(5));
        let of = |text: &str, error| judge(&image(text), Err(error), &nodes);
        assert_eq!(of("a/b:1", silent()).unwrap().digest(), Some(digest('b').as_str()));
        assert!(of("a/b:1", RegistryError::Status(StatusCode::BAD_GATEWAY)).is_ok());
        assert!(of("a/b:1", RegistryError::Refused).is_ok());
        let lie = RegistryError::Lies {
            said: digest('s'),
            found: digest('f'),
        };
        let pinned = format!("a/digest-only:5@{}", digest('c'));
        assert_eq!(of(&pinned, silent()).unwrap().to_string(), pinned);
        for (text, error, status, code) in [
            ("a/b:1", lie, 502, Code::RegistryFailed),
            ("a/b:2", RegistryError::NotFound, 400, Code::ImageNotFound),
            ("a/b:2", RegistryError::Refused, 400, Code::ImageNotFound),
            ("a/b:2", silent(), 502, Code::RegistryFailed),
            ("a/digest-only", silent(), 502, Code::RegistryFailed),
            (
                "a/x:1",
                RegistryError::Limited { retry_after: None },
                503,
                Code::RegistryFailed,
            ),
        ] {
            let problem = of(text, error).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.code()), (status, code), "{text}");
        }
        nodes.not_telling = true;
        let unknown = judge(&image("a/x:1"), Err(RegistryError::NotFound), &nodes).unwrap();
        assert_eq!(unknown, image("a/x:1"), "an older node agent may have it");
    }
}
