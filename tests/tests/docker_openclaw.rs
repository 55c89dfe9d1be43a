//! The real OpenClaw: the Control UI's handshake through the host route, and SSH with the OpenSSH client.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use crabshack_tests::{cluster::Cluster, command, image, machine::Machine, must, openclaw, suite};
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
    Cluster::with(machine, async |cluster| {
        ensure!(openclaw::hello_ok(cluster).await?, "no hello-ok with operator rights");
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
            let mut command = Command::new("ssh");
            command
                .arg("-i")
                .arg(keys.path().join(key))
                .args(["-p", &ssh["port"].to_string(), "-o", "IdentitiesOnly=yes"]);
            command
                .arg("-o")
                .arg(format!("UserKnownHostsFile={}", keys.path().join("hosts").display()));
            command.args([
                "-o",
                "StrictHostKeyChecking=accept-new",
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=10",
            ]);
            command.arg(format!("agent@{}", must::text(&ssh, "host")?)).arg(remote);
            Ok::<_, anyhow::Error>(
                timeout(Duration::from_secs(60), command.kill_on_drop(true).output())
                    .await
                    .context("ssh hangs")??,
            )
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
