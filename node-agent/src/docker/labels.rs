//! Our marks on Docker's objects.

use std::collections::HashMap;

use crabshack_shared::{generation::Generation, ids::InstanceId};

use crate::recipe::{ContainerSpec, Member};

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

/// Which of an instance's containers it is; without it, the main one.
pub(super) const MEMBER: &str = "crabshack.member";

/// A label map as Docker gives it.
pub(super) type Labels = HashMap<String, String>;

/// The instance a network belongs to; none, with a warning, when it only looks like ours.
///
/// A label alone proves nothing (images hand theirs down to any container), so the name must fit.
pub(super) fn network(name: &str, labels: Option<&Labels>) -> Option<InstanceId> {
    labelled("network", name, labels, |id| Some(super::docker_name(id)))
}

fn labelled(
    kind: &'static str,
    name: &str,
    labels: Option<&Labels>,
    own_name: impl FnOnce(InstanceId) -> Option<String>,
) -> Option<InstanceId> {
    let text = labels?.get(INSTANCE)?;
    match text.parse::<InstanceId>() {
        Ok(id) if own_name(id).as_deref() == Some(name.trim_start_matches('/')) => Some(id),
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

/// The instance and the part of it that a container is; none as for [`network`].
pub(super) fn container(name: &str, labels: Option<&Labels>) -> Option<(InstanceId, Member)> {
    let text = labels.and_then(|labels| labels.get(MEMBER));
    let member = text.map_or(Some(Member::Main), |text| {
        Member::ALL.into_iter().find(|member| member.name() == text)
    });
    let id = labelled("container", name, labels, |id| {
        member.map(|member| super::container_name(id, member))
    })?;
    Some((id, member?))
}

/// The labels of a container to make.
pub(super) fn of(spec: &ContainerSpec) -> Labels {
    let member = (!spec.member.is_main()).then(|| (MEMBER, spec.member.name().to_owned()));
    [
        (INSTANCE, spec.instance.to_string()),
        (RECIPE, spec.recipe.clone()),
        (RESTARTS, spec.restarts.to_string()),
        (SPEC, spec.spec_revision.to_string()),
        (GENERATION, spec.generation.to_string()),
    ]
    .into_iter()
    .chain(member)
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
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
        let of_main = Some((id, Member::Main));
        assert_eq!(container(&name, Some(&labels(id.to_string()))), of_main);
        assert_eq!(container("/other", Some(&labels(id.to_string()))), None);
        assert_eq!(container(&name, Some(&labels("x".to_owned()))), None);
        assert_eq!(container(&name, None), None);
        assert_eq!(network(&name, Some(&labels(id.to_string()))), Some(id));
        let of_member = |member: &str| {
            let mut labels = labels(id.to_string());
            labels.insert(MEMBER.to_owned(), member.to_owned());
            labels
        };
        let sidecar = format!("{name}-ssh");
        assert_eq!(container(&sidecar, Some(&of_member("ssh"))), Some((id, Member::Ssh)));
        assert_eq!(container(&sidecar, Some(&labels(id.to_string()))), None);
        assert_eq!(container(&name, Some(&of_member("ssh"))), None);
        assert_eq!(container(&name, Some(&of_member("other"))), None);
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
