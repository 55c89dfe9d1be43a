//! Tells how a wish comes true, as server-sent events. Every event is read off the store; the stream
//! causes nothing, so it can be cut at any time.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use axum::{
    http::{HeaderName, header::CACHE_CONTROL},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use crabshack_shared::{
    agent_api::v1::{Phase, PullProgress},
    api::progress::{Progress, Stage},
    generation::Generation,
    ids::InstanceId,
    instance::InstanceName,
    telemetry::Chain,
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Sleep, sleep};

use crate::{
    app::App,
    events::Changes,
    status,
    store::{InstanceRecord, Observation, StoreError},
};

/// Proxies and clients give up on silent connections.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What a stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Ready,
    Stopped,
    Deleted { purge: bool },
}

impl Goal {
    fn noun(self) -> &'static str {
        match self {
            Self::Ready => "Deploy",
            Self::Stopped => "Stop",
            Self::Deleted { .. } => "Delete",
        }
    }
}

/// Follows the wish that a record carries.
pub(super) fn follow(app: &Arc<App>, record: &InstanceRecord, goal: Goal, first: Option<Progress>) -> Response {
    let following = Following {
        changes: app.events.follow(record.id),
        app: Arc::clone(app),
        id: record.id,
        name: record.name.clone(),
        generation: record.generation,
        goal,
        first,
        said: None,
        patience: Box::pin(sleep(app.settings.ready_timeout)),
        ended: false,
    };
    sse(following.events())
}

/// Events as an answer that is not held back and does not fall silent.
pub(super) fn sse(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let keepalive = KeepAlive::new().interval(KEEPALIVE).text("keepalive");
    (
        [
            (CACHE_CONTROL, "no-cache"),
            // Or nginx would hold events back.
            (HeaderName::from_static("x-accel-buffering"), "no"),
        ],
        Sse::new(events).keep_alive(keepalive),
    )
        .into_response()
}

struct Following {
    app: Arc<App>,
    changes: Changes,
    id: InstanceId,
    name: InstanceName,
    generation: Generation,
    goal: Goal,
    first: Option<Progress>,
    /// The last message, so that none is repeated.
    said: Option<String>,
    patience: Pin<Box<Sleep>>,
    ended: bool,
}

impl Following {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> + Send {
        stream::unfold(self, |mut following| async move {
            let progress = following.next().await?;
            following.ended = progress.stage.ends();
            let event = Event::default().event(progress.event.as_str());
            // Plain texts always become JSON.
            let event = event.json_data(&progress).unwrap_or_default();
            Some((Ok(event), following))
        })
        .fuse()
    }

    async fn next(&mut self) -> Option<Progress> {
        if self.ended {
            return None;
        }
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let progress = match self.look() {
                Ok(progress) => progress,
                Err(error) => {
                    tracing::error!("a stream cannot read the store: {}", Chain(&error));
                    return Some(self.say(Stage::Error, "Internal server error"));
                }
            };
            if progress.stage.ends() || self.said.as_ref() != Some(&progress.message) {
                self.said = Some(progress.message.clone());
                return Some(progress);
            }
            tokio::select! {
                () = self.changes.next() => {}
                () = &mut self.patience => return Some(self.give_up(&progress.message)),
            }
        }
    }

    fn look(&self) -> Result<Progress, StoreError> {
        let reading = self.app.store.reading()?;
        let record = reading.instance(self.id)?;
        let observation = reading.observation(self.id)?;
        let (stage, message) = judge(self.goal, self.generation, record.as_ref(), observation.as_ref());
        Ok(self.say(stage, message))
    }

    fn say(&self, stage: Stage, message: impl Into<String>) -> Progress {
        let mut progress = Progress::new(stage, self.name.clone(), message);
        if let (Stage::Deleted, Goal::Deleted { purge }) = (stage, self.goal) {
            progress.purge = Some(purge);
        }
        progress
    }

    fn give_up(&self, last: &str) -> Progress {
        let seconds = self.app.settings.ready_timeout.as_secs();
        let noun = self.goal.noun();
        self.say(
            Stage::Error,
            format!("{noun} timed out after {seconds}s; the work goes on. Last: {last}"),
        )
    }
}

/// How far a wish has come: a function of what is wanted now and what was observed.
fn judge(
    goal: Goal,
    generation: Generation,
    record: Option<&InstanceRecord>,
    observation: Option<&Observation>,
) -> (Stage, String) {
    let Some(record) = record else {
        return match goal {
            Goal::Deleted { .. } => (Stage::Deleted, "Deleted".to_owned()),
            _ => (Stage::Superseded, "It was deleted meanwhile".to_owned()),
        };
    };
    if record.wish_generation > generation {
        return (Stage::Superseded, "A later request took over".to_owned());
    }
    if record.assignment.is_none() {
        return match goal {
            Goal::Stopped => (Stage::Stopped, "Stopped".to_owned()),
            _ => (Stage::Pending, "Waiting for scheduling...".to_owned()),
        };
    }
    let Some(report) = observation
        .filter(|observation| status::answers(record, observation))
        .map(|observation| &observation.report)
    else {
        return (Stage::Pending, "Waiting for the node...".to_owned());
    };
    let because = |text: &str| match &report.reason {
        Some(reason) => format!("{text}: {reason}"),
        None => text.to_owned(),
    };
    match (goal, report.phase) {
        (Goal::Ready, Phase::Ready) => (Stage::Ready, "Ready".to_owned()),
        (Goal::Stopped, Phase::Stopped) => (Stage::Stopped, "Stopped".to_owned()),
        (Goal::Deleted { .. }, Phase::Deleted) => (Stage::Deleted, "Deleted".to_owned()),
        (_, Phase::Failed) => (Stage::Error, because("Failed")),
        (_, Phase::Creating) => (Stage::Pending, because("Creating the container")),
        (_, Phase::Pulling) => (Stage::Pending, because(&pulling(report.pull))),
        (_, Phase::Starting) => (Stage::Pending, because("Starting")),
        (_, Phase::Waiting) => (Stage::Pending, because("It ended and will be started again")),
        (_, Phase::Unhealthy) => (Stage::Pending, because("It does not answer")),
        (_, Phase::Stopping) => (Stage::Pending, because("Stopping")),
        (_, phase) => (Stage::Pending, because(status::phase_word(phase))),
    }
}

/// How far the image has come, for people.
fn pulling(progress: Option<PullProgress>) -> String {
    let Some(PullProgress { done, total }) = progress.filter(|progress| progress.total > 0) else {
        return "Pulling the image".to_owned();
    };
    let percent = done.saturating_mul(100) / total;
    let (done, total) = (done >> 20, total.div_ceil(1 << 20));
    format!("Pulling the image: {percent} % ({done} of {total} MiB)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{observation, record};
    use crabshack_shared::agent_api::v1::Desired;

    const NODE: Option<&str> = Some("node-000000000001");

    fn stage(goal: Goal, record: &InstanceRecord, observation: Option<&Observation>) -> Stage {
        judge(goal, record.generation, Some(record), observation).0
    }

    #[test]
    fn judge__should_end_only_when_the_wish_itself_came_true() {
        let running = record(Desired::Running, NODE);
        assert_eq!(stage(Goal::Ready, &record(Desired::Running, None), None), Stage::Pending);
        assert_eq!(stage(Goal::Ready, &running, None), Stage::Pending);
        let ready = observation(&running, Phase::Ready, true);
        assert_eq!(stage(Goal::Ready, &running, Some(&ready)), Stage::Ready);
        let mut earlier = ready.clone();
        earlier.report.generation = None;
        assert_eq!(stage(Goal::Ready, &running, Some(&earlier)), Stage::Pending);
        let failed = observation(&running, Phase::Failed, false);
        assert_eq!(stage(Goal::Ready, &running, Some(&failed)), Stage::Error);
    }

    #[test]
    fn judge__should_not_claim_an_overtaken_wish() {
        let mut record = record(Desired::Running, NODE);
        let stop = record.generation;
        record.generation = stop.next();
        let seen = observation(&record, Phase::Stopped, true);
        let ended = judge(Goal::Stopped, stop, Some(&record), Some(&seen)).0;
        assert_eq!(ended, Stage::Stopped, "a change of what it is takes nothing over");
        record.wish_generation = record.generation;
        assert_eq!(judge(Goal::Stopped, stop, Some(&record), Some(&seen)).0, Stage::Superseded);
        assert_eq!(judge(Goal::Ready, stop, None, None).0, Stage::Superseded);
        assert_eq!(judge(Goal::Deleted { purge: true }, stop, None, None).0, Stage::Deleted);
    }
}
