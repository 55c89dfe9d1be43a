//! `POST /v1/report`: what a node observes. Always everything, so reports can be lost, doubled and
//! repeated; only what changed is written.

use std::{collections::BTreeSet, mem, sync::Arc};

use axum::{Json, body::Body, extract::State};
use chrono::Utc;
use crabshack_shared::{
    agent_api::v1::{Desired, InstanceReport, NodeEvent, NodeFacts, Phase, Report, ReportAnswer},
    api::events::{Origin, Wished},
    generation::Generation,
    ids::{InstanceId, NodeId},
    problem::Problem,
};

use super::identity::Node;
use crate::{
    api::{extract, internal},
    app::App,
    store::{NodeRecord, Observation, Reading, StoreError, UnknownPorts, Writing, wished},
};

/// What a report says that is new.
#[derive(Debug, Default)]
struct News {
    changed: Vec<Observation>,
    /// Known instances without a node that run on this one: the store is from an older dump.
    adopted: BTreeSet<InstanceId>,
    unknown: BTreeSet<InstanceId>,
    foreign: BTreeSet<InstanceId>,
    /// What they hold of the SSH ports.
    unknown_ports: UnknownPorts,
    /// These are not the ports that are held for them.
    ports_differ: bool,
    /// Known ones that this node had before and of which nothing is left on it.
    cleared: BTreeSet<InstanceId>,
    facts: Option<NodeFacts>,
    outranked_by: Option<Generation>,
    /// What was not sent before.
    events: Vec<NodeEvent>,
    /// The last event of this node that is kept already.
    events_kept: u64,
}

/// Takes a report in.
pub(crate) async fn report(State(app): State<Arc<App>>, Node(node): Node, body: Body) -> Result<Json<ReportAnswer>, Problem> {
    let report: Report = extract::from_agent(body).await?;
    // On its own task: what is written must also be announced when the node hangs up.
    let task = app.shutdown.tasks.spawn(take_in(Arc::clone(&app), node, report));
    let events_kept = task.await.map_err(internal)?.map_err(internal)?;
    Ok(Json(ReportAnswer { events_kept }))
}

/// Writes the news down and wakes whom they concern. Returns the sequence of the last event of the
/// node that is kept.
pub(crate) async fn take_in(app: Arc<App>, node: NodeId, mut report: Report) -> Result<u64, StoreError> {
    app.registry.found(&node, mem::take(&mut report.findings));
    let mut news = compare(&app.store.reading()?, &node, report)?;
    let (new_unknown, new_foreign) = app
        .registry
        .strangers(&node, mem::take(&mut news.unknown), mem::take(&mut news.foreign));
    for instance in new_unknown {
        tracing::warn!(node.id = %node, instance.id = %instance, "the node runs an instance that is not known here; it is left alone");
    }
    for instance in new_foreign {
        tracing::warn!(node.id = %node, instance.id = %instance, "ignored what the node says of an instance that belongs to another node");
    }
    if news.is_empty() {
        return Ok(news.events_kept);
    }
    let changed: Vec<(InstanceId, Phase)> = news
        .changed
        .iter()
        .map(|observation| (observation.report.id, observation.report.phase))
        .collect();
    let rearrange = news.facts.is_some() || !news.cleared.is_empty() || changed.iter().any(|(_, phase)| *phase == Phase::Deleted);
    let readopted = !news.adopted.is_empty();
    let ports_differ = news.ports_differ;
    let id = node.clone();
    let events_kept = app
        .store
        .write(move |writing| -> Result<u64, StoreError> {
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
            for instance in news.cleared {
                if let Some(mut record) = writing.instance(instance)? {
                    record.left.retain(|left| *left != id);
                    writing.put_instance(&record)?;
                }
            }
            if news.ports_differ {
                give_way(writing, &id, &news.unknown_ports)?;
            }
            // After the rest: an instance may have become this node's.
            writing.keep_node_events(&id, news.events)
        })
        .await?;
    if ports_differ {
        app.registry.orders_changed(&node);
    }
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
    Ok(events_kept)
}

impl News {
    /// True when there is nothing to write.
    fn is_empty(&self) -> bool {
        self.changed.is_empty()
            && self.cleared.is_empty()
            && self.facts.is_none()
            && self.outranked_by.is_none()
            && self.events.is_empty()
            && !self.ports_differ
    }
}

/// Holds the ports of unknown instances. Who was given one of them before the node told gets another.
fn give_way(writing: &Writing, node: &NodeId, unknown: &UnknownPorts) -> Result<(), StoreError> {
    for record in writing.hold_unknown_ports(node, unknown)? {
        let reason = format!(
            "another SSH port, {}: an instance that is not known here holds the old one",
            record.ssh_port
        );
        tracing::warn!(instance.id = %record.id, node.id = %node, "{reason}");
        let event = wished(
            Wished::Patched,
            Origin::Coordinator,
            record.generation,
            Utc::now(),
            Some(reason),
        );
        writing.note(record.id, &event)?;
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
    news.events_kept = reading.events_kept(node)?;
    news.events = report.events;
    news.events.retain(|event| event.sequence > news.events_kept);
    for instance in report.instances {
        compare_instance(reading, node, instance, &mut news)?;
    }
    news.ports_differ = !reading.port_changes(node, &news.unknown_ports)?.is_empty();
    Ok(news)
}

fn compare_instance(reading: &Reading, node: &NodeId, instance: InstanceReport, news: &mut News) -> Result<(), StoreError> {
    let id = instance.id;
    let Some(record) = reading.instance(id)? else {
        if instance.phase != Phase::Deleted
            && let Some(port) = instance.ssh_port
        {
            news.unknown_ports.insert(port, id);
        }
        // What is deleted here too needs no mention, nor does a disk that we know was kept.
        if instance.phase != Phase::Deleted && reading.retired(id)?.is_none() {
            news.unknown.insert(id);
        }
        return Ok(());
    };
    match &record.assignment {
        // It was moved away: this node is ordered to let go of its copy, and says when it has.
        Some(assigned) if assigned != node && record.left.contains(node) => {
            let purged = record.desired == Desired::Deleted { purge: true };
            let answers = instance.generation.is_some_and(|generation| generation >= record.generation);
            if purged && answers && instance.phase == Phase::Deleted {
                news.cleared.insert(id);
            }
            return Ok(());
        }
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
