//! Which images this node runs, whoever asks: its own list, which no coordinator can change. Pure.

use std::str::FromStr;

use crabshack_shared::image::{ImageReference, spell_out, split_tag};

/// The node's list; empty: any image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy(Vec<Pattern>);

/// Images by repository, and perhaps by tag or digest; `*` stands for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// With the registry, like `docker.io/owner/*`.
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Policy {
    pub(crate) fn new(patterns: Vec<Pattern>) -> Self {
        Self(patterns)
    }

    /// Why this node does not run an image; none: it does.
    pub(crate) fn refusal(&self, image: &ImageReference) -> Option<String> {
        let allowed = self.0.is_empty() || self.0.iter().any(|pattern| pattern.matches(image));
        (!allowed)
            .then(|| format!("this node does not run image `{image}`: its own list (CRABSHACK_ALLOWED_IMAGES) does not allow it"))
    }
}

impl Pattern {
    fn matches(&self, image: &ImageReference) -> bool {
        let location = image.location();
        let repository = format!("{}/{}", location.registry, location.repository);
        let tag_fits = |pattern: &String| location.tag.as_ref().is_some_and(|tag| glob(pattern, tag));
        glob(&self.repository, &repository)
            && self.tag.as_ref().is_none_or(tag_fits)
            && self.digest.as_deref().is_none_or(|digest| image.digest() == Some(digest))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        // Where the pattern has a star, any text could stand: the rest must be a reference.
        if text.replace('*', "x").parse::<ImageReference>().is_err() {
            return Err(format!(
                "`{text}` is no image pattern, like `ghcr.io/owner/*`, `owner/name:1.2` or `owner/name@sha256:...`"
            ));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        let (path, tag) = split_tag(name);
        let (registry, repository) = spell_out(path);
        let repository = if path == "*" {
            path.to_owned()
        } else {
            format!("{registry}/{repository}")
        };
        Ok(Self {
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Whether a text fits a pattern in which `*` stands for anything, also for nothing.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut left) = text.strip_prefix(start) else {
        return false;
    };
    let (middle, end) = rest
        .rsplit_once('*')
        .map_or((None, rest), |(middle, end)| (Some(middle), end));
    for part in middle.into_iter().flat_map(|middle| middle.split('*')) {
        match left.split_once(part) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy__should_allow_what_a_pattern_names_however_it_is_spelled() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let policy = |text: &str| Policy::new(text.split(',').map(|pattern| pattern.parse().unwrap()).collect());
        for (patterns, image, allowed) in [
            ("owner/*", "docker.io/owner/name:1", true),
            ("owner/*", "owner/deep/name", true),
            ("owner/*", "ghcr.io/owner/name", false),
            ("debian", "docker.io/library/debian:12", true),
            ("ghcr.io/*,owner/name:1.*", "owner/name:1.2", true),
            ("ghcr.io/*,owner/name:1.*", "owner/name:2.1", false),
            ("host:5000/*/agent", "host:5000/team/agent:1", true),
            ("host:5000/*/agent", "host:5000/team/agent-x:1", false),
            ("*", "anything/at:all", true),
            (&format!("owner/name@{digest}"), &format!("owner/name:3@{digest}"), true),
            (&format!("owner/name@{digest}"), "owner/name:3", false),
        ] {
            let refusal = policy(patterns).refusal(&image.parse().unwrap());
            assert_eq!(refusal.is_none(), allowed, "{patterns} {image}");
        }
        assert_eq!(Policy::default().refusal(&"a:1".parse().unwrap()), None);
        for bad in ["", "a b", "owner/", "x@md5:1"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn glob__should_match_parts_in_their_order() {
        for (pattern, text, fits) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*b*", "abc", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }
}
