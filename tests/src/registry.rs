//! A real registry (Debian's `docker-registry`) on this machine, with something in between that fails
//! as asked, and images that are made and pushed without any Docker.

mod faults;
mod push;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::Context as _;
use tokio::process::Command;

pub use self::{
    faults::{Caller, Fault, Faults},
    push::{Build, Variety},
};
use crate::{
    machine::Machine,
    must::{self, eventually},
    process::Process,
};

/// Where everybody asks.
pub const HOST: &str = "127.0.0.1:5000";
const START: Duration = Duration::from_secs(20);

/// A running registry, empty at first.
#[derive(Debug)]
pub struct Registry {
    /// What stands in between.
    pub faults: Faults,
    http: reqwest::Client,
    /// Where the registry really is.
    behind: SocketAddr,
    folder: tempfile::TempDir,
    _process: Process,
}

impl Registry {
    /// Starts both.
    pub async fn start(machine: &Machine) -> anyhow::Result<Self> {
        let program = must::program(&["docker-registry"]).context("docker-registry is missing: install docker-registry")?;
        let folder = tempfile::tempdir_in(machine.folder())?;
        let config = folder.path().join("config.yml");
        // Another one each time: the last registry may not have let go of its own yet.
        let behind = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let root = folder.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{behind}\"}}\n",
            root.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg("serve").arg(&config).env_clear();
        let process = Process::start(&mut command, &machine.logs().join("registry.log"))?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        eventually("the registry answers", START, async || {
            let answer = http.get(format!("http://{behind}/v2/")).send().await?;
            Ok(answer.status().is_success().then_some(()))
        })
        .await?;
        Ok(Self {
            faults: Faults::start(HOST, &behind.to_string()).await?,
            http,
            behind,
            folder,
            _process: process,
        })
    }

    /// How everybody names an image of it.
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{HOST}/{name}:{tag}")
    }

    /// Makes an image and pushes it, past all faults; returns its digest.
    pub async fn push(&self, name: &str, tag: &str, build: &Build) -> anyhow::Result<String> {
        let pusher = push::Pusher {
            http: &self.http,
            base: format!("http://{}/v2/{name}", self.behind),
            folder: self.folder.path(),
        };
        pusher
            .push(tag, build)
            .await
            .with_context(|| format!("{name}:{tag} cannot be pushed"))
    }
}
