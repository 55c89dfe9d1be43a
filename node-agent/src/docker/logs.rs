//! What an instance printed.

use std::{future::ready, time::Duration};

use bollard::{errors::Error, query_parameters::LogsOptionsBuilder};
use chrono::{DateTime, Utc};
use crabshack_shared::ids::InstanceId;
use futures_util::{Stream, TryStreamExt as _, stream};

use super::{Docker, DockerError, NORMAL, docker_name, error::status};

/// Most bytes that are given; the oldest go first.
const LIMIT: usize = 1 << 20;
/// Reading a long log from a busy disk takes a while.
const PATIENCE: Duration = Duration::from_secs(30);
const OPERATION: &str = "read the log";

/// Whose log it is, and whether more may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSource {
    /// Docker's id of the container.
    pub(crate) docker_id: String,
    /// When it was made.
    pub(crate) created: DateTime<Utc>,
    /// It runs, or is paused.
    pub(crate) up: bool,
    /// When it last ended, in Docker's words.
    pub(crate) finished: Option<String>,
}

/// A part of a log, mostly one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// When Docker read it; none: it does not say.
    pub(crate) at: Option<DateTime<Utc>>,
    /// As printed, with its line break.
    pub(crate) text: Vec<u8>,
}

/// The end of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogEnd {
    /// Whole lines, oldest first.
    pub(crate) text: String,
    /// There were more bytes than are given, so lines before these are missing.
    pub(crate) cut: bool,
}

impl Docker {
    /// The last lines, standard output and standard error. Empty when there is no container.
    pub(crate) async fn logs(&self, instance: InstanceId, tail: u32) -> Result<LogEnd, DockerError> {
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(&tail.to_string())
            .build();
        let result = self
            .call(PATIENCE, |client| async move {
                let mut lines = client.logs(&docker_name(instance), Some(options));
                let mut output = LastBytes::new(LIMIT);
                while let Some(line) = lines.try_next().await? {
                    output.add(line.as_ref());
                }
                let cut = output.is_cut();
                Ok(LogEnd {
                    text: output.into_text(),
                    cut,
                })
            })
            .await;
        match result {
            Ok(end) => Ok(end),
            Err(error) if status(&error) == Some(404) => Ok(LogEnd::default()),
            Err(error) => Err(DockerError::of(OPERATION, error)),
        }
    }

    /// Where an instance's log is now; none: it has no container.
    pub(crate) async fn log_source(&self, instance: InstanceId) -> Result<Option<LogSource>, DockerError> {
        let found = self.inspect(&docker_name(instance)).await?;
        Ok(found.and_then(|found| {
            let state = found.state?;
            Some(LogSource {
                docker_id: found.id?,
                created: found.created.and_then(|text| text.parse().ok()).unwrap_or_default(),
                up: state.running.unwrap_or_default(),
                finished: state.finished_at,
            })
        }))
    }

    /// The last lines of a container (all that it prints when `tail` is none), then each further one
    /// until it ends. Lines before `since` are left out, in whole seconds.
    pub(crate) fn follow(
        &self,
        docker_id: &str,
        tail: Option<u32>,
        since: Option<DateTime<Utc>>,
    ) -> impl Stream<Item = Result<LogLine, DockerError>> + Send + use<> {
        let since = since.map_or(0, |since| i32::try_from(since.timestamp()).unwrap_or_default());
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .follow(true)
            .timestamps(true)
            .since(since)
            .tail(&tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string()))
            .build();
        let docker_id = docker_id.to_owned();
        stream::once(ready(self.client(NORMAL)))
            .map_ok(move |client| client.logs(&docker_id, Some(options.clone())))
            .try_flatten()
            .map_ok(|output| line(output.as_ref()))
            .map_err(|error: Error| DockerError::of(OPERATION, error))
    }
}

/// Takes the time off that Docker puts before a line.
fn line(bytes: &[u8]) -> LogLine {
    let stamped = bytes.iter().position(|byte| *byte == b' ').and_then(|end| {
        let at = std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()?;
        Some((at, &bytes[end + 1..]))
    });
    match stamped {
        Some((at, text)) => LogLine {
            at: Some(at),
            text: text.to_vec(),
        },
        None => LogLine {
            at: None,
            text: bytes.to_vec(),
        },
    }
}

/// Keeps the end of a stream of any length.
pub(super) struct LastBytes {
    bytes: Vec<u8>,
    limit: usize,
    cut: bool,
}

impl LastBytes {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
            cut: false,
        }
    }

    pub(super) fn add(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        // Seldom, so that moving the rest stays cheap on the whole.
        if self.bytes.len() > self.limit * 2 {
            self.trim();
        }
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut || self.bytes.len() > self.limit
    }

    /// The end, from the start of a line when something was cut off.
    pub(super) fn into_text(mut self) -> String {
        if self.bytes.len() > self.limit {
            self.trim();
        }
        if self.cut
            && let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n')
        {
            self.bytes.drain(..=end);
        }
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn trim(&mut self) {
        self.bytes.drain(..self.bytes.len() - self.limit);
        self.cut = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line__should_be_parted_from_its_time() {
        let read = line(b"2026-01-02T03:04:05.000000006Z a b\n");
        assert_eq!(
            (read.at, read.text.as_slice()),
            ("2026-01-02T03:04:05.000000006Z".parse().ok(), &b"a b\n"[..])
        );
        assert_eq!(
            line(b"a b\n"),
            LogLine {
                at: None,
                text: b"a b\n".to_vec()
            }
        );
    }

    #[test]
    fn last_bytes__should_keep_whole_lines_of_the_end() {
        let mut output = LastBytes::new(8);
        output.add(b"ab\n");
        output.add(b"cd\n");
        assert_eq!(output.into_text(), "ab\ncd\n");

        let mut output = LastBytes::new(8);
        for _ in 0..100 {
            output.add(b"abc\n");
        }
        output.add(b"xyz");
        assert_eq!(output.into_text(), "abc\nxyz");
    }
}
