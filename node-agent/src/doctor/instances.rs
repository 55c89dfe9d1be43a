//! Looks at every container, distrusting whoever made it, and has the reconciler mend what it can.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crabshack_shared::{agent_api::v1::Finding, ids::InstanceId};
use futures_util::{StreamExt as _, stream};

use super::{
    Doctor,
    checkup::{found, unknown},
    container::{self, Cure, Drift, Expected},
};
use crate::{
    docker::{DockerError, DockerState},
    ledger::Entry,
    recipe::{self, MemberRecipe},
};

/// How long the reconciler may take to put right what is its own, and how often that is looked at.
const MENDED_WITHIN: Duration = Duration::from_secs(5);
const MENDING: Duration = Duration::from_millis(500);
/// Containers that are looked at at the same time.
const CONCURRENCY: usize = 4;

impl Doctor {
    /// Findings about containers that are there.
    pub(super) async fn containers(&self, state: &DockerState) -> Vec<Finding> {
        let there: BTreeSet<InstanceId> = state.containers.keys().map(|(id, _)| *id).collect();
        let there = |entry: &Arc<Entry>| there.contains(&entry.order.id);
        let entries: Vec<Arc<Entry>> = self.ledger.entries().into_iter().filter(there).collect();
        let mut found = self.drifts(entries).await;
        let ours: Vec<Arc<Entry>> = found
            .iter()
            .filter(|(_, drifts)| is_ours(drifts))
            .map(|(entry, _)| Arc::clone(entry))
            .collect();
        let left = self.mend(ours).await;
        let mut findings = Vec::new();
        found.sort_by_key(|(entry, _)| entry.order.id);
        for (entry, drifts) in found {
            let id = entry.order.id;
            match drifts {
                Ok(drifts) => findings.extend(drifts.into_iter().map(|drift| {
                    let is_left = left
                        .get(&id)
                        .is_some_and(|left| left.iter().any(|other| other.subject == drift.subject));
                    told(id, drift, is_left)
                })),
                Err(error) => findings.push(Finding {
                    instance: Some(id),
                    ..unknown(container::FLAGS, &error)
                }),
            }
        }
        findings
    }

    /// Has the reconciler look at these, waits a little, and returns what is still not right.
    async fn mend(&self, mut entries: Vec<Arc<Entry>>) -> BTreeMap<InstanceId, Vec<Drift>> {
        let ids: BTreeSet<InstanceId> = entries.iter().map(|entry| entry.order.id).collect();
        let deadline = Instant::now() + MENDED_WITHIN;
        let mut left = BTreeMap::new();
        while !entries.is_empty() && Instant::now() < deadline {
            self.node.docker.forget(|id| ids.contains(&id));
            self.wake.notify_one();
            tokio::time::sleep(MENDING).await;
            left.clear();
            for (entry, drifts) in self.drifts(std::mem::take(&mut entries)).await {
                if is_ours(&drifts) {
                    left.insert(entry.order.id, drifts.unwrap_or_default());
                    entries.push(entry);
                }
            }
        }
        left
    }

    async fn drifts(&self, entries: Vec<Arc<Entry>>) -> Vec<(Arc<Entry>, Result<Vec<Drift>, DockerError>)> {
        stream::iter(entries)
            .map(|entry| async move {
                let drifts = self.members(&entry).await;
                (entry, drifts)
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await
    }

    async fn members(&self, entry: &Entry) -> Result<Vec<Drift>, DockerError> {
        let Some(recipe) = recipe::recipe(&entry.order.spec) else {
            return Ok(Vec::new());
        };
        let mut drifts = Vec::new();
        for member in recipe.members {
            drifts.extend(self.container(entry, member).await?);
        }
        Ok(drifts)
    }

    async fn container(&self, entry: &Entry, recipe: &MemberRecipe) -> Result<Vec<Drift>, DockerError> {
        let Some(found) = self.node.docker.hardening(entry.order.id, recipe.member).await? else {
            return Ok(Vec::new());
        };
        let folder = self.node.folder(entry);
        let spec = (recipe.container)(&self.node.recipe_input(entry, &folder));
        let security = self.node.docker.security_options(spec.profile);
        let expected = Expected {
            instance: entry.order.id,
            spec: &spec,
            limits: self.node.docker.applied(&(recipe.limits)(&entry.order.spec.resources)),
            security: &security,
            folder: &folder.root,
        };
        Ok(container::compare(&expected, &found))
    }
}

/// Whether the reconciler can put any of these right.
fn is_ours(drifts: &Result<Vec<Drift>, DockerError>) -> bool {
    drifts
        .as_ref()
        .is_ok_and(|drifts| drifts.iter().any(|drift| drift.cure == Cure::Reconcile))
}

fn told(id: InstanceId, drift: Drift, is_left: bool) -> Finding {
    let Drift { subject, text, cure } = drift;
    match cure {
        // A restart is its owner's to choose.
        Cure::Restart => found(subject, Some(id), format!("{text}: restart the instance")),
        Cure::Reconcile if is_left => found(
            subject,
            Some(id),
            format!("{text}, and that could not be put right yet: see the instance's reason"),
        ),
        Cure::Reconcile => Finding {
            repaired: true,
            ..found(subject, Some(id), format!("{text}; it was put right"))
        },
    }
}
