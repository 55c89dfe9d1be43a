//! What an instance printed.

use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use crabshack_shared::ids::InstanceId;
use futures_util::TryStreamExt as _;

use super::{Docker, DockerError, docker_name, error::status};

/// Most bytes that are given; the oldest go first.
const LIMIT: usize = 1 << 20;
/// Reading a long log from a busy disk takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

impl Docker {
    /// The last lines, standard output and standard error, oldest first. Empty when there is no
    /// container.
    pub(crate) async fn logs(&self, instance: InstanceId, tail: u32) -> Result<String, DockerError> {
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
                Ok(output.into_text())
            })
            .await;
        match result {
            Ok(text) => Ok(text),
            Err(error) if status(&error) == Some(404) => Ok(String::new()),
            Err(error) => Err(DockerError::of("read the log", error)),
        }
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
