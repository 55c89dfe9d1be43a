//! The real OpenClaw: the Control UI's handshake through the host route, and SSH with the OpenSSH client.

use std::{
    fs,
    path::Path,
    process::{ExitCode, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use crabshack_tests::{cluster::Cluster, command, image, machine::Machine, must, openclaw, suite};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

fn main() -> ExitCode {
    suite::run_after(
        || image::build_openclaw().map(drop),
        |suite| {
            suite.test("openclaw__should_say_hello_with_operator_rights", hello);
            suite.test("ssh__should_log_in_with_the_key_and_nothing_else", ssh);
        },
    )
}

async fn hello(machine: &Machine) -> anyhow::Result<()> {
    let image = openclaw::import(&machine.dockerd).await?;
    Cluster::with(machine, async |cluster| {
        ensure!(openclaw::hello_ok(cluster, &image).await?, "no hello-ok with operator rights");
        // Stop and start keep the workload's own state, and the handshake works again.
        cluster.client.act("claw", "stop").await?;
        cluster.client.act("claw", "start").await?;
        let token = must::text(&cluster.client.instance("claw").await?, "token")?.to_owned();
        let mut visitor = cluster.browser("claw")?;
        visitor.log_in(&token).await?;
        openclaw::connect(&visitor).await.map(drop)
    })
    .await
}

async fn ssh(machine: &Machine) -> anyhow::Result<()> {
    let image = openclaw::import(&machine.dockerd).await?;
    Cluster::with(machine, async |cluster| {
        let keys = tempfile::tempdir_in(machine.folder())?;
        for key in ["right", "wrong"] {
            let mut command = std::process::Command::new("ssh-keygen");
            let made = command
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(keys.path().join(key))
                .status()?;
            ensure!(made.success(), "ssh-keygen failed");
        }
        let mut body = openclaw::request("shell", &image);
        body["ssh_pubkey"] = std::fs::read_to_string(keys.path().join("right.pub"))?.trim().into();
        cluster.client.create(&body).await?;
        let ssh = cluster.client.get("/instances/shell/ssh").await?.success()?;
        let run = async |key: &str, remote: &str| {
            let mut command = client("ssh", &keys.path().join(key), "-p", &ssh)?;
            command.arg(format!("agent@{}", must::text(&ssh, "host")?)).arg(remote);
            outcome(&mut command).await
        };
        let output = run("right", "id -u; pwd; echo kept > mine; cat mine").await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            text == "1000\n/home/agent\nkept\n",
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(!run("wrong", "true").await?.status.success(), "a wrong key logged in");
        let version = run("right", "openclaw --version").await?;
        ensure!(version.status.success(), "{}", String::from_utf8_lossy(&version.stderr));
        terminal(&keys.path().join("right"), &ssh).await?;
        files(&keys.path().join("right"), &ssh).await?;
        // The host key stays over a restart: a changed one would be refused by this client.
        cluster.client.act("shell", "restart").await?;
        must::become_true("SSH is back", must::PATIENCE, async || {
            Ok(run("right", "cat mine").await?.stdout == b"kept\n")
        })
        .await?;
        let fingerprint = must::text(&cluster.client.instance("shell").await?, "ssh_fingerprint")?.to_owned();
        let known = command::run(&format!("ssh-keygen -l -f {}", keys.path().join("hosts").display()))?;
        ensure!(
            known.contains(&fingerprint),
            "the API says {fingerprint}, the client saw {known}"
        );
        Ok(())
    })
    .await
}

/// A login with a terminal.
async fn terminal(key: &Path, ssh: &Value) -> anyhow::Result<()> {
    let mut command = client("ssh", key, "-p", ssh)?;
    command
        .arg("-tt")
        .arg(format!("agent@{}", must::text(ssh, "host")?))
        .arg("tty; stty size");
    let output = ended(&mut command).await?;
    ensure!(output.contains("/dev/pts/"), "no terminal: {output}");
    Ok(())
}

/// Files there and back.
async fn files(key: &Path, ssh: &Value) -> anyhow::Result<()> {
    let folder = key.parent().context("a key without a folder")?;
    let (sent, received) = (folder.join("sent"), folder.join("received"));
    fs::write(&sent, vec![7; 3 << 20])?;
    let batch = folder.join("batch");
    let lines = format!(
        "put {} carried\nrename carried moved\nget moved {}\nrm moved\n",
        sent.display(),
        received.display()
    );
    fs::write(&batch, lines)?;
    let mut command = client("sftp", key, "-P", ssh)?;
    command
        .arg("-b")
        .arg(&batch)
        .arg(format!("agent@{}", must::text(ssh, "host")?));
    ended(&mut command).await?;
    ensure!(fs::read(&received)? == fs::read(&sent)?, "the file came back as another");
    Ok(())
}

/// `ssh` or `sftp`, whose letters for the port differ.
fn client(program: &str, key: &Path, port: &str, ssh: &Value) -> anyhow::Result<Command> {
    let hosts = key.parent().context("a key without a folder")?.join("hosts");
    let mut command = Command::new(program);
    command.arg("-i").arg(key).args([port, &ssh["port"].to_string()]);
    command.arg("-o").arg(format!("UserKnownHostsFile={}", hosts.display()));
    for option in [
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=accept-new",
        "BatchMode=yes",
        "ConnectTimeout=10",
    ] {
        command.args(["-o", option]);
    }
    Ok(command)
}

/// What a client printed, which must have done what it should.
async fn ended(command: &mut Command) -> anyhow::Result<String> {
    let output = outcome(command).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn outcome(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    Ok(timeout(Duration::from_secs(60), output).await.context("the client hangs")??)
}
