//! Running a command in a running instance: to its end for ourselves, or with its streams attached for
//! somebody else.

mod attached;
mod output;

use std::time::Duration;

use bollard::{
    errors::Error,
    exec::{CreateExecOptions, StartExecResults},
};
use crabshack_shared::ids::InstanceId;
use futures_util::TryStreamExt as _;

pub(crate) use self::attached::{Attached, AttachedOutput};
use self::output::Output;
use super::{Docker, DockerError, docker_name, error::status, logs::LastBytes};

/// Most bytes of output that are kept; the oldest go first.
const LIMIT: usize = 64 << 10;
/// The longest a command may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether a command that closed its output is over.
const EXIT_PERIOD: Duration = Duration::from_millis(50);

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecResult {
    /// Exit code; 0 is success.
    pub(crate) code: i64,
    /// The end of standard output and standard error.
    pub(crate) output: String,
}

impl Docker {
    /// Runs a command in the instance as its own user, and waits for its end, a minute at most
    /// (then it goes on without us).
    pub(crate) async fn exec(&self, instance: InstanceId, argv: &[&str]) -> Result<ExecResult, DockerError> {
        let options = CreateExecOptions {
            cmd: Some(argv.iter().copied().map(str::to_owned).collect()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let result = self
            .call(PATIENCE, |client| async move {
                let exec = client.create_exec(&docker_name(instance), options).await?.id;
                let output = match client.start_exec(&exec, None).await? {
                    StartExecResults::Attached { output, .. } => collect(output).await?,
                    StartExecResults::Detached => String::new(),
                };
                // The output may be closed a moment before the exit code is known.
                loop {
                    let state = client.inspect_exec(&exec).await?;
                    if let (Some(code), Some(false)) = (state.exit_code, state.running) {
                        return Ok(ExecResult { code, output });
                    }
                    tokio::time::sleep(EXIT_PERIOD).await;
                }
            })
            .await;
        result.map_err(|error| refused(instance, error))
    }
}

fn refused(instance: InstanceId, error: Error) -> DockerError {
    match status(&error) {
        Some(404) => DockerError::NoSuchContainer { instance },
        Some(409) => DockerError::NotRunning { instance },
        _ => DockerError::of("run a command in the container", error),
    }
}

async fn collect(
    mut stream: impl futures_util::Stream<Item = Result<bollard::container::LogOutput, Error>> + Unpin,
) -> Result<String, Error> {
    let mut output = LastBytes::new(LIMIT);
    while let Some(part) = stream.try_next().await? {
        output.add(part.as_ref());
    }
    Ok(output.into_text())
}
