//! Our marks on Docker's objects.

use std::collections::HashMap;

use crabshack_shared::{generation::Generation, ids::InstanceId};

/// Whose a container or network is.
pub(super) const INSTANCE: &str = "crabshack.instance";
/// Hash of the spec a container was made from.
pub(super) const RECIPE: &str = "crabshack.recipe";
/// The asked restarts that led to a container.
pub(super) const RESTARTS: &str = "crabshack.restarts";
/// Revision of the specification a container was made from.
pub(super) const SPEC: &str = "crabshack.spec";
/// Generation of the order a container was made for.
pub(super) const GENERATION: &str = "crabshack.generation";

/// A label map as Docker gives it.
pub(super) type Labels = HashMap<String, String>;

/// The instance an object belongs to; none, with a warning, when it only looks like ours.
///
/// A label alone proves nothing (images hand theirs down to any container), so the name must fit.
pub(super) fn instance(kind: &'static str, name: &str, labels: Option<&Labels>) -> Option<InstanceId> {
    let text = labels?.get(INSTANCE)?;
    match text.parse::<InstanceId>() {
        Ok(id) if name.trim_start_matches('/') == super::docker_name(id) => Some(id),
        Ok(_) => {
            tracing::warn!(
                kind,
                name,
                label = INSTANCE,
                value = text,
                "ignored: has our label but not our name"
            );
            None
        }
        Err(error) => {
            tracing::warn!(kind, name, label = INSTANCE, %error, "ignored: has our label with a broken value");
            None
        }
    }
}

/// What a container was made from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MadeFrom {
    pub(super) recipe: String,
    pub(super) restarts: u64,
    pub(super) generation: Generation,
    pub(super) spec_revision: u64,
}

/// Reads what a container was made from. A broken label reads like that of the oldest container.
pub(super) fn made_from(labels: Option<&Labels>) -> MadeFrom {
    let get = |name: &str| labels.and_then(|labels| labels.get(name));
    MadeFrom {
        recipe: get(RECIPE).cloned().unwrap_or_default(),
        restarts: get(RESTARTS).and_then(|text| text.parse().ok()).unwrap_or_default(),
        generation: get(GENERATION).and_then(|text| generation(text)).unwrap_or_default(),
        spec_revision: get(SPEC).and_then(|text| text.parse().ok()).unwrap_or_default(),
    }
}

/// Reads what `Generation` displays.
fn generation(text: &str) -> Option<Generation> {
    let (epoch, counter) = text.split_once('.')?;
    Some(Generation {
        epoch: epoch.parse().ok()?,
        counter: counter.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels__should_be_believed_only_with_the_name() {
        let id = InstanceId::random();
        let labels = |value: String| Labels::from([(INSTANCE.to_owned(), value)]);
        let name = format!("/cs-{id}");
        assert_eq!(instance("container", &name, Some(&labels(id.to_string()))), Some(id));
        assert_eq!(instance("container", "/other", Some(&labels(id.to_string()))), None);
        assert_eq!(instance("container", &name, Some(&labels("x".to_owned()))), None);
        assert_eq!(instance("container", &name, None), None);
    }

    #[test]
    fn labels__should_read_broken_ones_as_the_oldest() {
        let read = |recipe: &str, restarts: &str, generation: &str| {
            let pairs = [
                (RECIPE, recipe),
                (RESTARTS, restarts),
                (SPEC, restarts),
                (GENERATION, generation),
            ];
            made_from(Some(&pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()))
        };
        let written = Generation { epoch: 2, counter: 30 };
        assert_eq!(
            read("ab", "7", &written.to_string()),
            MadeFrom {
                recipe: "ab".to_owned(),
                restarts: 7,
                generation: written,
                spec_revision: 7,
            }
        );
        assert_eq!(read("", "-7", "2"), MadeFrom::default());
        assert_eq!(made_from(None), MadeFrom::default());
    }
}
