//! Runs programs of the system: environment cleared, input given or closed, never longer than a
//! deadline. What they say on standard error is part of the failure.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process};

/// Where distributions put such programs; our own PATH may lack the sbin folders.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// No message of a program needs to be longer.
const MESSAGE_LENGTH: usize = 1000;

/// A program of the system that we run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The distribution's package that holds it.
    pub(crate) package: &'static str,
    /// Far beyond what it needs: a program that hangs must not hang the agent.
    pub(crate) deadline: Duration,
}

/// Its standard input.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    /// Closed.
    Nothing,
    Text(&'a str),
    /// An open file, which the program also finds as [`OPEN_FILE`].
    File(OwnedFd),
}

/// The name under which a program finds the file it got as its input: no path is resolved again.
pub(crate) const OPEN_FILE: &str = "/proc/self/fd/0";

/// Why a program did not do its work.
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
    #[error("`{command}` did not end within {seconds} s")]
    Late { command: String, seconds: u64 },
    /// It said no.
    #[error("`{command}` failed ({status}): {message}")]
    Failed {
        command: String,
        status: ExitStatus,
        message: String,
    },
}

impl CommandError {
    /// The program ran and complained about something with these words.
    pub(crate) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Failed { message, .. } if message.contains(words))
    }
}

/// Runs a program to its end and returns what it printed.
pub(crate) async fn run(program: Program, arguments: &[impl AsRef<OsStr>], input: Input<'_>) -> Result<Vec<u8>, CommandError> {
    let start = |source| CommandError::Start {
        program: program.name,
        source,
    };
    let (stdin, text) = match input {
        Input::Nothing => (Stdio::null(), None),
        Input::Text(text) => (Stdio::piped(), Some(text)),
        Input::File(file) => (Stdio::from(file), None),
    };
    let mut child = process::Command::new(program.name)
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CommandError::Missing {
                program: program.name,
                package: program.package,
            },
            _ => start(source),
        })?;
    let stdin = child.stdin.take();
    let feed = async {
        match (stdin, text) {
            (Some(mut stdin), Some(text)) => stdin.write_all(text.as_bytes()).await,
            _ => Ok(()),
        }
    };
    let ending = async { tokio::join!(feed, child.wait_with_output()) };
    let Ok((fed, output)) = tokio::time::timeout(program.deadline, ending).await else {
        return Err(CommandError::Late {
            command: line(program, arguments),
            seconds: program.deadline.as_secs(),
        });
    };
    let output = output.map_err(start)?;
    if !output.status.success() {
        return Err(CommandError::Failed {
            command: line(program, arguments),
            status: output.status,
            message: one_line(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    fed.map_err(start)?;
    Ok(output.stdout)
}

fn line(program: Program, arguments: &[impl AsRef<OsStr>]) -> String {
    let mut line = OsString::from(program.name);
    for argument in arguments {
        line.push(" ");
        line.push(argument);
    }
    line.to_string_lossy().into_owned()
}

/// A log line is one line; some programs say the same once for every part of what they were given.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut lines: Vec<&str> = lines.collect();
    lines.dedup();
    lines.join("; ").chars().take(MESSAGE_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Program = Program {
        name: "sh",
        package: "dash",
        deadline: Duration::from_millis(500),
    };

    #[test]
    fn message__should_fit_into_a_log_line() {
        assert_eq!(
            one_line("Error: No such file\nError: No such file\nlist table\n\n           ^\n"),
            "Error: No such file; list table; ^"
        );
    }

    #[tokio::test]
    async fn program__should_see_only_what_it_is_given_and_end_at_its_deadline() {
        let output = run(SHELL, &["-c", "cat; echo $HOME"], Input::Text("in ")).await.unwrap();
        assert_eq!(output, b"in \n");
        let refused = run(SHELL, &["-c", "echo no >&2; exit 3"], Input::Nothing).await.unwrap_err();
        assert!(refused.says("no") && refused.to_string().contains("exit"), "{refused}");
        let late = run(SHELL, &["-c", "sleep 5"], Input::Nothing).await.unwrap_err();
        assert!(matches!(late, CommandError::Late { .. }), "{late}");
        let missing = run(
            Program {
                name: "no-such-program",
                ..SHELL
            },
            &["x"],
            Input::Nothing,
        )
        .await
        .unwrap_err();
        assert!(missing.to_string().contains("install the package"), "{missing}");
    }
}
