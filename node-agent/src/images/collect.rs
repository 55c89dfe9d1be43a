//! Which pulled images go. Pure: only what this node agent pulled is ever named here, and nothing that an
//! instance needs, ran before, or may be made from, nor what any container uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use crabshack_shared::image::ImageReference;

/// An image on the node, whoever brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Present {
    /// Docker's own.
    pub(crate) id: String,
    /// `name:tag` and `name@digest` under which it is known.
    pub(crate) names: Vec<ImageReference>,
}

/// An image that this node agent pulled, or is pulling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pulled {
    pub(crate) image: ImageReference,
    pub(crate) at: DateTime<Utc>,
    /// Nobody has needed it since then.
    pub(crate) unneeded_since: Option<DateTime<Utc>>,
}

/// What to do about the images that were pulled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// To be removed from the node, in this order.
    pub(crate) remove: Vec<ImageReference>,
    /// Not on the node any more.
    pub(crate) forget: Vec<ImageReference>,
    /// Since when each is unneeded, where that is another time than was known; none: it is needed.
    pub(crate) noted: BTreeMap<String, Option<DateTime<Utc>>>,
}

/// What a decision needs to know.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) pulled: &'a [Pulled],
    pub(crate) present: &'a [Present],
    /// Ids of the images of all containers, running or not, of anybody.
    pub(crate) used: &'a BTreeSet<String>,
    /// Of instances, now and before, and of the coordinator's list.
    pub(crate) needed: &'a [ImageReference],
    /// Being pulled at this moment.
    pub(crate) busy: &'a BTreeSet<String>,
    pub(crate) now: DateTime<Utc>,
    /// So long what nobody needs is kept, while there is room.
    pub(crate) grace: Duration,
    /// There is none.
    pub(crate) pressed: bool,
}

/// Decides.
pub(crate) fn decide(facts: &Facts<'_>) -> Verdict {
    let needed: BTreeSet<&str> = facts
        .needed
        .iter()
        .filter_map(|image| find(image, facts.present))
        .map(|present| present.id.as_str())
        .collect();
    let mut verdict = Verdict::default();
    let mut removable = Vec::new();
    for pulled in facts.pulled {
        let key = pulled.image.to_string();
        if facts.busy.contains(&key) {
            continue;
        }
        let Some(present) = find(&pulled.image, facts.present) else {
            verdict.forget.push(pulled.image.clone());
            continue;
        };
        let wanted = needed.contains(present.id.as_str()) || facts.used.contains(&present.id);
        let since = match pulled.unneeded_since {
            _ if wanted => None,
            // A clock that was set back must not keep it for ever.
            Some(since) => Some(since.min(facts.now)),
            None => Some(facts.now),
        };
        if since != pulled.unneeded_since {
            verdict.noted.insert(key, since);
        }
        if let Some(since) = since {
            let waited = (facts.now - since).to_std().unwrap_or_default();
            if facts.pressed || waited >= facts.grace {
                removable.push((since, pulled.at, pulled.image.clone()));
            }
        }
    }
    removable.sort_by_key(|(since, at, _)| (*since, *at));
    verdict.remove = removable.into_iter().map(|(_, _, image)| image).collect();
    verdict
}

/// The image behind a reference, as Docker would find it.
fn find<'a>(image: &ImageReference, present: &'a [Present]) -> Option<&'a Present> {
    let asked = image.location();
    present.iter().find(|present| match image.digest() {
        Some(digest) => {
            present.id == digest
                || present
                    .names
                    .iter()
                    .any(|name| name.digest() == Some(digest) && name.location().is_beside(&asked))
        }
        None => present
            .names
            .iter()
            .any(|name| name.digest().is_none() && name.location() == asked),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::<Utc>::UNIX_EPOCH + chrono::TimeDelta::hours(hours)
    }

    fn image(letter: char) -> ImageReference {
        format!("registry.example/agent:1@sha256:{}", letter.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    /// As Docker shows an image that was pulled by digest.
    fn present(letter: char) -> Present {
        let name = format!("registry.example/agent@sha256:{}", letter.to_string().repeat(64));
        Present {
            id: format!("id-{letter}"),
            names: vec![name.parse().unwrap()],
        }
    }

    fn pulled(letter: char, hour: i64, unneeded_since: Option<i64>) -> Pulled {
        Pulled {
            image: image(letter),
            at: at(hour),
            unneeded_since: unneeded_since.map(at),
        }
    }

    #[derive(Default)]
    struct Case {
        used: BTreeSet<String>,
        needed: Vec<ImageReference>,
        busy: BTreeSet<String>,
        pressed: bool,
    }

    fn of(case: &Case, pulled: &[Pulled], present: &[Present]) -> Verdict {
        decide(&Facts {
            pulled,
            present,
            used: &case.used,
            needed: &case.needed,
            busy: &case.busy,
            now: at(10),
            grace: HOUR,
            pressed: case.pressed,
        })
    }

    #[test]
    fn collection__should_keep_what_is_needed_or_used_or_not_ours() {
        let case = Case {
            used: BTreeSet::from(["id-b".to_owned()]),
            needed: vec![image('a')],
            ..Case::default()
        };
        let all = ['a', 'b', 'c', 'd'].map(present);
        let ours = [pulled('a', 0, Some(1)), pulled('b', 0, None), pulled('c', 0, Some(1))];
        let verdict = of(&case, &ours, &all);
        assert_eq!(verdict.remove, [image('c')], "d is somebody else's");
        assert_eq!(verdict.noted, BTreeMap::from([(image('a').to_string(), None)]));
    }

    #[test]
    fn collection__should_wait_for_the_grace_unless_the_disk_is_full_and_then_take_the_oldest_first() {
        let ours = [pulled('a', 3, None), pulled('b', 2, Some(9)), pulled('c', 1, Some(8))];
        let all = ['a', 'b', 'c'].map(present);
        let verdict = of(&Case::default(), &ours, &all);
        assert_eq!(verdict.remove, [image('c'), image('b')]);
        assert_eq!(verdict.noted, BTreeMap::from([(image('a').to_string(), Some(at(10)))]));
        let pressed = Case {
            pressed: true,
            ..Case::default()
        };
        assert_eq!(of(&pressed, &ours, &all).remove, [image('c'), image('b'), image('a')]);
        let needed = Case {
            needed: vec![image('c')],
            ..pressed
        };
        assert_eq!(of(&needed, &ours, &all).remove, [image('b'), image('a')]);
    }

    #[test]
    fn collection__should_forget_what_is_gone_but_not_what_is_on_its_way() {
        let ours = [pulled('a', 0, None), pulled('b', 0, None)];
        let case = Case {
            busy: BTreeSet::from([image('b').to_string()]),
            ..Case::default()
        };
        let verdict = of(&case, &ours, &[]);
        assert_eq!((verdict.forget, verdict.remove), (vec![image('a')], Vec::new()));
    }

    #[test]
    fn collection__should_know_an_image_by_tag_digest_and_id() {
        let mut both = present('a');
        both.names.push("registry.example/agent:1".parse().unwrap());
        let all = [both];
        let id: ImageReference = "registry.example/agent:1".parse().unwrap();
        for (reference, found) in [
            (image('a'), true),
            (id, true),
            ("registry.example/agent:2".parse().unwrap(), false),
            ("registry.example/other:1".parse().unwrap(), false),
            (image('b'), false),
        ] {
            assert_eq!(find(&reference, &all).is_some(), found, "{reference}");
        }
    }

    #[test]
    fn collection__should_not_wait_for_ever_for_a_clock_that_was_set_back() {
        let verdict = of(&Case::default(), &[pulled('a', 0, Some(500))], &[present('a')]);
        assert_eq!(verdict.noted, BTreeMap::from([(image('a').to_string(), Some(at(10)))]));
    }
}
