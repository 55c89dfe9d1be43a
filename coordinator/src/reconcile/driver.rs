//! The loop of the reconciler.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::Utc;
use crabshack_shared::telemetry::Chain;
use tokio::time::MissedTickBehavior;

use super::{
    instances::{self, Action},
    moves,
};
use crate::{
    app::App,
    placement,
    store::{InstanceRecord, StoreError},
};

/// How long something that no signal told of may stay undone.
const PERIOD: Duration = Duration::from_secs(5);

/// Reconciles for ever.
pub(crate) async fn run(app: Arc<App>) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.reconciler.woken() => {}
            _ = period.tick() => {}
        }
        // On a task of its own: a panic must not end the loop.
        let pass = {
            let app = Arc::clone(&app);
            async move { pass(&app).await }
        };
        if let Err(error) = tokio::spawn(pass).await {
            tracing::error!("a pass of the reconciler ended early: {}", Chain(&error));
        }
    }
}

/// Plans once and does what was planned.
pub(crate) async fn pass(app: &Arc<App>) {
    let actions = match look(app) {
        Ok(actions) => actions,
        Err(error) => {
            tracing::error!("the reconciler cannot read the store: {}", Chain(&error));
            return;
        }
    };
    for action in actions {
        tracing::info!(action = action.name(), instance = %action.instance(), "action");
        let done = app.halt.around(action.name(), || instances::apply(app, &action)).await;
        if let Err(error) = done {
            tracing::error!("reconciling failed, it is tried again: {action:?}: {}", Chain(&error));
        }
    }
}

fn look(app: &App) -> Result<Vec<Action>, StoreError> {
    let reading = app.store.reading()?;
    let mut records = reading.instances()?;
    let mut retired = reading.retired_instances()?;
    let mut actions: Vec<Action> = instances::purges(&retired, app.settings.delete_grace, Utc::now()).collect();
    let is_lost = |record: &InstanceRecord| moves::lost(record, &app.registry).is_some();
    if !records
        .iter()
        .any(|record| instances::needs_attention(record) || is_lost(record))
    {
        return Ok(actions);
    }
    let nodes = reading.nodes()?;
    let mut observations = HashMap::new();
    for record in records.iter().filter(|record| !record.is_living() || is_lost(record)) {
        if let Some(observation) = reading.observation(record.id)? {
            observations.insert(record.id, observation);
        }
    }
    let instances = records.len();
    records.append(&mut retired);
    let mut candidates = placement::candidates(&nodes, &records, &app.registry);
    records.truncate(instances);
    actions.extend(instances::plan(
        &records,
        &observations,
        &nodes,
        candidates.clone(),
        app.placement.as_ref(),
    ));
    // Those that wait for a node come first.
    placement::seat_waiting(app.placement.as_ref(), &mut candidates, &records);
    let lost = records
        .iter()
        .filter(|record| is_lost(record) && moves::knows_its_lease(record, observations.get(&record.id)));
    actions.extend(moves::plan(lost.collect(), &mut candidates, app.placement.as_ref()));
    Ok(actions)
}
