//! Runs the system's network tools: environment cleared, input closed, never longer than a deadline.
//!
//! `nftables` (the crate) brings the words of the JSON; its own runner neither hands back what nft
//! says on stderr nor ends nft at a deadline, so nft runs here like the others.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt as _, process};

/// Far beyond what any of them needs; a tool that hangs must not hang the agent.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where distributions put these tools; our own PATH may lack the sbin folders.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A tool of the system that we run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    Nft,
    Ip,
    Iptables,
    Conntrack,
}

impl Tool {
    fn program(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Ip => "ip",
            Self::Iptables => "iptables",
            Self::Conntrack => "conntrack",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Nft => "nftables",
            Self::Ip => "iproute2",
            Self::Iptables => "iptables",
            Self::Conntrack => "conntrack",
        }
    }
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// Not on this node.
    #[error("`{program}` was not found: install the package {package}")]
    Missing { program: &'static str, package: &'static str },
    /// It is there, but could not be started or talked to.
    #[error("cannot run `{program}`")]
    Start {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    /// Still running at the deadline; it was killed.
    #[error("`{command}` did not end within {} s", DEADLINE.as_secs())]
    Late { command: String },
    /// It said no.
    #[error("`{command}` failed ({status}): {message}")]
    Failed {
        command: String,
        status: std::process::ExitStatus,
        message: String,
    },
}

impl CommandError {
    /// The tool ran and complained about something with these words.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Failed { message, .. } if message.contains(words))
    }
}

/// Runs a tool to its end and returns what it printed.
pub(super) async fn run(tool: Tool, arguments: &[&str], input: Option<&str>) -> Result<String, CommandError> {
    let program = tool.program();
    let start = |source| CommandError::Start { program, source };
    let mut child = process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CommandError::Missing {
                program,
                package: tool.package(),
            },
            _ => start(source),
        })?;
    let stdin = child.stdin.take();
    let feed = async {
        match (stdin, input) {
            (Some(mut stdin), Some(input)) => stdin.write_all(input.as_bytes()).await,
            _ => Ok(()),
        }
    };
    let command = || format!("{program} {}", arguments.join(" "));
    let (fed, output) = tokio::time::timeout(DEADLINE, async { tokio::join!(feed, child.wait_with_output()) })
        .await
        .map_err(|_| CommandError::Late { command: command() })?;
    let output = output.map_err(start)?;
    if !output.status.success() {
        return Err(CommandError::Failed {
            command: command(),
            status: output.status,
            message: one_line(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    fed.map_err(start)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A log line is one line; nft says the same once for every command of a transaction.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut lines: Vec<&str> = lines.collect();
    lines.dedup();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message__should_fit_into_a_log_line() {
        assert_eq!(
            one_line("Error: No such file\nError: No such file\nlist table\n\n           ^\n"),
            "Error: No such file; list table; ^"
        );
    }
}
