//! A log as it grows, over the ends of containers: until whoever reads hangs up, or the instance goes.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use crabshack_shared::{ids::InstanceId, telemetry::Chain};
use futures_util::{Stream, StreamExt as _, stream};

use super::tail;
use crate::{
    docker::{Docker, DockerError, LogLine, LogSource},
    volume::InstanceFolder,
};

/// How often it is looked for the next container, or the next start of this one.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

type Lines = Pin<Box<dyn Stream<Item = Result<LogLine, DockerError>> + Send>>;

struct Follower<W> {
    docker: Docker,
    instance: InstanceId,
    wanted: W,
    /// What is given out before anything else is read.
    first: VecDeque<Bytes>,
    lines: Option<Lines>,
    /// The ended container that was read to its end, and that end.
    done: Option<(String, Option<String>)>,
    /// Time of the youngest line given out.
    seen: Option<DateTime<Utc>>,
    /// The same as this reading began: what is not younger was given out by the one before.
    since: Option<DateTime<Utc>>,
}

/// The last lines, then each further one. `wanted` says whether the instance is still to be followed.
pub(crate) async fn follow<W>(
    docker: Docker,
    folder: &InstanceFolder,
    instance: InstanceId,
    lines: u32,
    wanted: W,
) -> Result<impl Stream<Item = Bytes> + Send + use<W>, DockerError>
where
    W: Fn() -> bool + Send + 'static,
{
    // Lines of this moment may come twice, none is lost.
    let seen = Some(Utc::now());
    let source = docker.log_source(instance).await?;
    let text = tail(&docker, folder, instance, lines).await?;
    let follower = Follower {
        docker,
        instance,
        wanted,
        first: VecDeque::from([Bytes::from(text)]),
        lines: None,
        done: source
            .filter(|source| !source.up)
            .map(|source| (source.docker_id, source.finished)),
        seen,
        since: seen,
    };
    Ok(stream::unfold(follower, |mut follower| async {
        let part = follower.next().await?;
        Some((part, follower))
    }))
}

impl<W: Fn() -> bool> Follower<W> {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(part) = self.first.pop_front().filter(|part| !part.is_empty()) {
            return Some(part);
        }
        loop {
            let Some(lines) = &mut self.lines else {
                self.attach().await?;
                continue;
            };
            match lines.next().await {
                Some(Ok(line)) => {
                    if let Some(part) = self.fresh(line) {
                        return Some(part);
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(instance = %self.instance, error = %Chain(&error), "a followed log broke off");
                    self.lines = None;
                    tokio::time::sleep(LOOK_PERIOD).await;
                }
                None => {
                    self.lines = None;
                    tokio::time::sleep(LOOK_PERIOD).await;
                }
            }
        }
    }

    /// Waits for something to read; none: the instance goes.
    async fn attach(&mut self) -> Option<()> {
        loop {
            if !(self.wanted)() {
                return None;
            }
            // Docker may be away for a moment.
            let source = self.docker.log_source(self.instance).await.ok().flatten();
            if let Some(source) = source.filter(|source| self.has_more(source)) {
                let lines = self.docker.follow(&source.docker_id, None, self.seen);
                self.lines = Some(Box::pin(lines));
                self.since = self.seen;
                self.done = (!source.up).then_some((source.docker_id, source.finished));
                return Some(());
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    /// An ended container that was read to its end has nothing more, until it ends another time.
    fn has_more(&self, source: &LogSource) -> bool {
        let done = self
            .done
            .as_ref()
            .is_some_and(|(docker_id, end)| *docker_id == source.docker_id && *end == source.finished);
        source.up || !done
    }

    fn fresh(&mut self, line: LogLine) -> Option<Bytes> {
        if line.at.is_some() && line.at <= self.since {
            return None;
        }
        self.seen = self.seen.max(line.at);
        Some(Bytes::from(line.text))
    }
}
