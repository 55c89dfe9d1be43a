//! The OpenSSH client and its sftp, as a person uses them.

use std::{path::PathBuf, process::Output, time::Duration};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

use crate::{machine::Machine, must};

const PATIENCE: Duration = Duration::from_secs(60);

/// A key pair of one person, and the hosts that person knows.
#[derive(Debug)]
pub struct Key(TempDir);

impl Key {
    /// Makes one.
    pub fn make(machine: &Machine) -> anyhow::Result<Self> {
        let key = Self(tempfile::tempdir_in(machine.folder())?);
        let mut command = std::process::Command::new("ssh-keygen");
        let made = command
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(key.file("key"))
            .status()?;
        ensure!(made.success(), "ssh-keygen failed");
        Ok(key)
    }

    /// In OpenSSH's one-line form.
    pub fn public(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.file("key.pub"))?.trim().to_owned())
    }

    /// Runs a command at `agent@host`; with a terminal, if that is wanted.
    pub async fn run(&self, access: &serde_json::Value, remote: &str, terminal: bool) -> anyhow::Result<Output> {
        let mut command = self.command("ssh", "-p", access)?;
        command.args(terminal.then_some("-tt")).arg(remote);
        finish(command, "").await
    }

    /// Runs the lines of a batch of sftp's.
    pub async fn sftp(&self, access: &serde_json::Value, batch: &str) -> anyhow::Result<Output> {
        let mut command = self.command("sftp", "-P", access)?;
        // Options come before the host, which is there already: sftp reads a batch from standard input anyhow.
        command.current_dir(self.0.path());
        finish(command, batch).await
    }

    /// A file beside the key.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str, port: &str, access: &serde_json::Value) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command
            .arg("-i")
            .arg(self.file("key"))
            .args([port, &access["port"].to_string()]);
        let known = format!("UserKnownHostsFile={}", self.file("hosts").display());
        for option in [
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=accept-new",
            "BatchMode=yes",
            "ConnectTimeout=10",
            &known,
        ] {
            command.args(["-o", option]);
        }
        command.arg(format!("agent@{}", must::text(access, "host")?));
        Ok(command)
    }
}

async fn finish(mut command: Command, input: &str) -> anyhow::Result<Output> {
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    timeout(PATIENCE, child.wait_with_output())
        .await
        .context("it hangs")?
        .map_err(Into::into)
}
