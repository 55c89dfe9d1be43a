//! `POST /v1/report`: what a node observes. Always everything, so reports can be lost, doubled and
//! repeated; only what changed is written.

use std::{collections::BTreeSet, sync::Arc};

use axum::{body::Body, extract::State, http::StatusCode};
use crabshack_shared::{
    agent_api::v1::{InstanceReport, NodeFacts, Phase, Report},
    generation::Generation,
    ids::{InstanceId, NodeId},
    problem::Problem,
};

use super::identity::Node;
use crate::{
    api::{extract, internal},
    app::App,
    store::{NodeRecord, Observation, Reading, StoreError},
};

/// What a report says that is new.
#[derive(Debug, Default)]
struct News {
    changed: Vec<Observation>,
    /// Known instances without a node that run on this one: the store is from an older dump.
    adopted: BTreeSet<InstanceId>,
    unknown: BTreeSet<InstanceId>,
    foreign: BTreeSet<InstanceId>,
    facts: Option<NodeFacts>,
    outranked_by: Option<Generation>,
}

/// Takes a report in.
pub(crate) async fn report(State(app): State<Arc<App>>, Node(node): Node, body: Body) -> Result<StatusCode, Problem> {
    let report: Report = extract::from_agent(body).await?;
    // On its own task: what is written must also be announced when the node hangs up.
    let task = app.shutdown.tasks.spawn(take_in(Arc::clone(&app), node, report));
    task.await.map_err(internal)?.map_err(internal)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Writes the news down and wakes whom they concern.
pub(crate) async fn take_in(app: Arc<App>, node: NodeId, report: Report) -> Result<(), StoreError> {
    let news = compare(&app.store.reading()?, &node, report)?;
    let (new_unknown, new_foreign) = app.registry.strangers(&node, news.unknown, news.foreign);
    for instance in new_unknown {
        tracing::warn!(node.id = %node, instance.id = %instance, "the node runs an instance that is not known here; it is left alone");
    }
    for instance in new_foreign {
        tracing::warn!(node.id = %node, instance.id = %instance, "ignored what the node says of an instance that belongs to another node");
    }
    if news.changed.is_empty() && news.facts.is_none() && news.outranked_by.is_none() {
        return Ok(());
    }
    let changed: Vec<(InstanceId, Phase)> = news
        .changed
        .iter()
        .map(|observation| (observation.report.id, observation.report.phase))
        .collect();
    let rearrange = news.facts.is_some() || changed.iter().any(|(_, phase)| *phase == Phase::Deleted);
    let readopted = !news.adopted.is_empty();
    let id = node.clone();
    app.store
        .write(move |writing| -> Result<(), StoreError> {
            if let Some(seen) = news.outranked_by
                && let Some(raised) = writing.raise_epoch_above(seen)?
            {
                tracing::error!(
                    node.id = %id,
                    "the node has seen generation {seen}, which is newer than this store: it was restored from an older state; \
                     its next wishes carry generation {raised}"
                );
            }
            if let Some(facts) = news.facts
                && let Some(mut record) = writing.node(&id)?
            {
                record.facts = Some(facts);
                writing.put_node(&record)?;
            }
            for observation in &news.changed {
                // It may have been let go of meanwhile.
                let Some(mut record) = writing.instance(observation.report.id)? else {
                    continue;
                };
                if news.adopted.contains(&record.id) && record.assignment.is_none() {
                    record.assignment = Some(id.clone());
                    writing.put_instance(&record)?;
                }
                if record.assignment.as_ref() == Some(&id) {
                    writing.put_observation(observation)?;
                }
            }
            Ok(())
        })
        .await?;
    for (instance, phase) in changed {
        tracing::debug!(node.id = %node, instance.id = %instance, ?phase, "observed");
        app.events.changed(instance);
    }
    if readopted {
        app.registry.orders_changed(&node);
    }
    if rearrange {
        app.reconciler.wake();
    }
    Ok(())
}

/// What is new in a report.
fn compare(reading: &Reading, node: &NodeId, report: Report) -> Result<News, StoreError> {
    let mut news = News::default();
    if report.highest_generation > reading.last_generation()? {
        news.outranked_by = Some(report.highest_generation);
    }
    let known = reading.node(node)?.and_then(|record: NodeRecord| record.facts);
    if known.as_ref() != Some(&report.facts) {
        news.facts = Some(report.facts);
    }
    for instance in report.instances {
        compare_instance(reading, node, instance, &mut news)?;
    }
    Ok(news)
}

fn compare_instance(reading: &Reading, node: &NodeId, instance: InstanceReport, news: &mut News) -> Result<(), StoreError> {
    let id = instance.id;
    let Some(record) = reading.instance(id)? else {
        // What is deleted here too needs no mention, nor does a disk that we know was kept.
        if instance.phase != Phase::Deleted && !reading.is_retired(id)? {
            news.unknown.insert(id);
        }
        return Ok(());
    };
    match &record.assignment {
        Some(assigned) if assigned != node => {
            news.foreign.insert(id);
            return Ok(());
        }
        Some(_) => {}
        None => {
            news.adopted.insert(id);
        }
    }
    let previous = reading.observation(id)?;
    let observation = Observation::after(previous.as_ref(), node, instance);
    if previous.as_ref() != Some(&observation) {
        news.changed.push(observation);
    }
    Ok(())
}
