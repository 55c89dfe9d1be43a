//! `types`: an instance of every service type from its creation to its end, reached by gateway and SSH;
//! with the real IronClaw where its image was built.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use super::Figures;
use crate::{
    client::stub,
    cluster::{AGENT_HEALTH, Cluster, Who},
    command, engine, image,
    machine::Machine,
    must::{self, PATIENCE, become_true},
    ssh::Key,
    types::{self, PUBLISHED, ROOT_STUB, Real},
};

/// The real one and its SSH server are far from as quick as the stub.
const START: Duration = Duration::from_secs(90);
const SYSBOX: &str = "sysbox-runc";

/// The name that suites and people know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One container.
    Openclaw,
    /// The worker and its SSH server.
    Ironclaw,
    /// One container that runs Docker.
    IronclawDind,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::Openclaw, Self::Ironclaw, Self::IronclawDind];

    /// As requests have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openclaw => "openclaw",
            Self::Ironclaw => "ironclaw",
            Self::IronclawDind => "ironclaw-dind",
        }
    }

    /// A valid creation of a stub of this type, named like the type.
    pub fn stub(self) -> Value {
        let mut body = stub(self.name());
        body["service_type"] = self.name().into();
        if self == Self::IronclawDind {
            body["image"] = ROOT_STUB.into();
        }
        body
    }

    /// The real agent, if it is IronClaw.
    fn real(self, image: &str) -> Option<Value> {
        let mut body = self.stub();
        body["mem_limit"] = "1g".into();
        body["nearai_api_url"] = "http://localhost:9/v1".into();
        body["image"] = match self {
            Self::Openclaw => return None,
            Self::Ironclaw => image.into(),
            Self::IronclawDind => PUBLISHED.into(),
        };
        Some(body)
    }
}

/// Has the node's Docker offer a copy of runc under Sysbox's name, and waits until that is known.
pub async fn offer_sysbox(machine: &Machine, cluster: &Cluster<'_>) -> anyhow::Result<()> {
    let runc = must::program(&["runc"]).context("runc is missing: install docker.io")?;
    let copy = machine.folder().join("sysbox-runc");
    std::fs::copy(runc, &copy)?;
    machine.dockerd.offer_runtime(SYSBOX, &copy).await?;
    // The node agent reads its machine's facts now and then.
    become_true("the coordinator knows of the runtime", START, async || {
        Ok(cluster.client.get("/nodes").await?.success()?[0]["sysbox_available"] == true)
    })
    .await
}

/// Everything, and whether it was the real IronClaw.
pub async fn figures(machine: &Machine) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let real = Real::find()?;
    let images = match &real {
        Some(real) => Some(real.import(machine).await?),
        None => None,
    };
    types::import_root_stub(&machine.dockerd).await?;
    let ssh_image = images.as_ref().map_or(image::STUB, |(_, ssh)| ssh.as_str());
    let settings = [(Who::NodeAgent, "CRABSHACK_SSH_IMAGE", ssh_image)];
    Cluster::with_settings(machine, &settings, async |cluster| {
        offer_sysbox(machine, cluster).await?;
        for kind in Kind::ALL {
            let real = images.as_ref().and_then(|(ironclaw, _)| kind.real(ironclaw));
            let is_real = real.is_some();
            let body = real.unwrap_or_else(|| kind.stub());
            let seen = life(cluster, kind, body, is_real)
                .await
                .with_context(|| format!("the service type {}", kind.name()))?;
            figures.add(kind.name(), true);
            if let Some(seen) = seen {
                let holds = |before: &Figures, name: &str, now: bool| now && (before.holds(name) || !before.knows(name));
                for (name, now) in [
                    ("ssh_pty", seen.terminal),
                    ("sftp", seen.sftp),
                    ("shared_home", seen.shared_home),
                ] {
                    let holds = holds(&figures, name, now);
                    figures.add(name, holds);
                }
            }
        }
        Ok(())
    })
    .await?;
    figures.add("real_ironclaw", real.is_some());
    Ok(figures)
}

/// What SSH was good for.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// A login with a terminal.
    pub terminal: bool,
    /// A file there and back.
    pub sftp: bool,
    /// What the agent wrote is seen by SSH, and the other way round.
    pub shared_home: bool,
}

/// Created, healthy, reached by gateway and SSH, restarted, stopped, started, deleted. What SSH was good for
/// only where the server is a real one.
pub async fn life(cluster: &Cluster<'_>, kind: Kind, mut body: Value, is_real: bool) -> anyhow::Result<Option<Seen>> {
    let (client, name) = (&cluster.client, kind.name());
    let key = Key::make(cluster.machine)?;
    body["ssh_pubkey"] = key.public()?.into();
    client.create(&body).await?;
    let created = client.instance(name).await?;
    let id = must::text(&created, "instance_id")?.to_owned();
    ensure!(created["status"] == "running", "{created}");
    let profile = if kind == Kind::IronclawDind { "compatible" } else { "strict" };
    ensure!(created["profile"] == profile, "{created}");
    let before = master_key(cluster, &id)?;
    ensure!(
        before.is_some() == (kind != Kind::Openclaw),
        "a master key for {name}: {}",
        before.is_some()
    );

    gateway(cluster, name, is_real).await.context("by gateway")?;
    let seen = if is_real {
        Some(by_ssh(cluster, &key, &id, name).await.context("by SSH")?)
    } else {
        greeted(cluster, name).await.context("by SSH")?;
        None
    };
    client.act(name, "restart").await?;
    let restarted = client.instance(name).await?;
    ensure!(restarted["token"] == created["token"], "another token after a restart");
    ensure!(master_key(cluster, &id)? == before, "another master key after a restart");
    gateway(cluster, name, is_real).await.context("by gateway after a restart")?;
    client.act(name, "stop").await?;
    let running = engine::containers(cluster.machine.dockerd.engine()).await?;
    ensure!(!running.iter().any(engine::is_running), "something runs on after a stop");
    client.act(name, "start").await?;
    gateway(cluster, name, is_real).await.context("by gateway after a start")?;
    client.delete(name, true).await?;
    gone(cluster, &id).await?;
    Ok(seen)
}

/// What the agent seals its user's secrets with, as it is given to it.
fn master_key(cluster: &Cluster<'_>, id: &str) -> anyhow::Result<Option<String>> {
    let file = cluster.data(Who::NodeAgent).join("instances").join(id).join("etc/env");
    let text = std::fs::read_to_string(file)?;
    let key = text.lines().find_map(|line| line.strip_prefix("SECRETS_MASTER_KEY="));
    Ok(key.map(str::to_owned))
}

async fn gateway(cluster: &Cluster<'_>, name: &str, is_real: bool) -> anyhow::Result<()> {
    let token = must::text(&cluster.client.instance(name).await?, "token")?.to_owned();
    let mut visitor = cluster.browser(name)?;
    visitor.log_in(&token).await?;
    if !is_real {
        let page = visitor.get("/", &[]).await?;
        ensure!(page.text == "stub agent\n", "{page:?}");
        return Ok(());
    }
    let page = visitor.get("/", &[("accept", "text/html")]).await?;
    ensure!(page.status.is_success() && page.text.contains("<html"), "no page: {page:?}");
    // Authenticated by the gateway alone: the visitor never sees the agent's own token.
    let status = visitor.get("/api/gateway/status", &[]).await?.success()?;
    ensure!(status["version"].is_string() || status["uptime_secs"].is_number(), "{status}");
    drop(visitor.websocket("/api/chat/ws").await.context("the chat's WebSocket")?);
    let by_path = cluster.client.get(&format!("/gateway/{name}/api/gateway/status")).await?;
    by_path.success().map(drop)
}

async fn by_ssh(cluster: &Cluster<'_>, key: &Key, id: &str, name: &str) -> anyhow::Result<Seen> {
    let access = cluster.client.get(&format!("/instances/{name}/ssh")).await?.success()?;
    become_true("SSH answers", START, async || {
        Ok(key.run(&access, "true", false).await?.status.success())
    })
    .await?;
    let terminal = key.run(&access, "tty && id -u", true).await?;
    let text = String::from_utf8_lossy(&terminal.stdout).into_owned();
    let terminal = terminal.status.success() && text.contains("/dev/pts/") && text.contains("1000");
    std::fs::write(key.file("there"), "there and back")?;
    let copied = key.sftp(&access, "put there by-sftp\nget by-sftp back\n").await?;
    let sftp = copied.status.success() && std::fs::read_to_string(key.file("back")).is_ok_and(|text| text == "there and back");
    // The agent's own files, and one for the agent, seen in its own container.
    let listed = key
        .run(&access, "ls .ironclaw/ironclaw.db && echo by-ssh > shared", false)
        .await?;
    let agent = engine::container(cluster.machine.dockerd.engine(), id).await?;
    let process = agent.state.and_then(|state| state.pid).context("the agent does not run")?;
    let inside = std::fs::read_to_string(format!("/proc/{process}/root/home/agent/shared"));
    let shared_home = listed.status.success() && inside.is_ok_and(|text| text == "by-ssh\n");
    Ok(Seen {
        terminal,
        sftp,
        shared_home,
    })
}

/// The stub's word, where a real one would say its version.
async fn greeted(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<()> {
    let access = cluster.client.get(&format!("/instances/{name}/ssh")).await?.success()?;
    let port = u16::try_from(access["port"].as_u64().context("no port")?)?;
    become_true("SSH answers", PATIENCE, async || {
        let mut stream = TcpStream::connect((must::text(&access, "host")?, port)).await?;
        let mut text = [0_u8; 8];
        timeout(PATIENCE, stream.read_exact(&mut text)).await.context("silence")??;
        Ok(&text == b"SSH-2.0-")
    })
    .await
}

async fn gone(cluster: &Cluster<'_>, id: &str) -> anyhow::Result<()> {
    let engine = cluster.machine.dockerd.engine();
    become_true("nothing of it is left", PATIENCE, async || {
        let folder = cluster.data(Who::NodeAgent).join("instances").join(id);
        let rules = command::run("nft list table inet crabshack")?;
        Ok(engine::containers(engine).await?.is_empty()
            && engine::networks(engine).await?.is_empty()
            && !Path::exists(&folder)
            && !rules.contains(&format!("cs-{}", &id[..12])))
    })
    .await
}

/// What the doctor says of an instance.
pub async fn findings(id: &str) -> anyhow::Result<Vec<Value>> {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let answer = http.get(format!("{AGENT_HEALTH}/doctor")).send().await?;
    let checkup: Value = serde_json::from_str(&answer.error_for_status()?.text().await?)?;
    let findings = checkup["findings"].as_array().context("no array `findings`")?;
    Ok(findings.iter().filter(|finding| finding["instance"] == id).cloned().collect())
}
