//! The loop of the reconciler.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crabshack_shared::telemetry::Chain;
use tokio::time::MissedTickBehavior;

use super::instances::{self, Action};
use crate::{app::App, placement, store::StoreError};

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
    let records = reading.instances()?;
    if !records.iter().any(instances::needs_attention) {
        return Ok(Vec::new());
    }
    let nodes = reading.nodes()?;
    let mut observations = HashMap::new();
    for record in records.iter().filter(|record| !record.is_living()) {
        if let Some(observation) = reading.observation(record.id)? {
            observations.insert(record.id, observation);
        }
    }
    let candidates = placement::candidates(&nodes, &records, &app.registry);
    Ok(instances::plan(
        &records,
        &observations,
        &nodes,
        candidates,
        app.placement.as_ref(),
    ))
}
