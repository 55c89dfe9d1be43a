//! A dockerd of our own, in our namespaces, with its data in the run's folder.

use std::{cell::RefCell, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::process::Command;

use crate::{
    must::{self, eventually},
    process::Process,
    scratch::Scratch,
};

/// A start after a kill may time out once on a stale containerd, as measured with 20.10.
const START_PATIENCE: Duration = Duration::from_secs(60);
const CALL_SECONDS: u64 = 120;

/// The running engine.
#[derive(Debug)]
pub struct Dockerd {
    folder: PathBuf,
    cgroup: String,
    process: Process,
    engine: Docker,
}

impl Dockerd {
    /// Starts it and waits until it answers.
    pub async fn start(scratch: &Scratch) -> anyhow::Result<Self> {
        let folder = scratch.path().to_owned();
        let cgroup = format!("/{}", scratch.name());
        let mut process = spawn(&folder, &cgroup)?;
        let engine = connect(&folder, &mut process).await?;
        Ok(Self {
            folder,
            cgroup,
            process,
            engine,
        })
    }

    /// The raw Engine API.
    pub fn engine(&self) -> &Docker {
        &self.engine
    }

    /// Its address, as `DOCKER_HOST` wants it.
    pub fn address(&self) -> String {
        format!("unix://{}", socket(&self.folder).display())
    }

    /// SIGKILL; containers live on (`live-restore`).
    pub async fn kill9(&mut self) -> anyhow::Result<()> {
        self.process.kill9().await
    }

    /// Starts it again; tries twice, since the first start after a kill may meet a stale containerd.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        for last in [false, true] {
            self.process = spawn(&self.folder, &self.cgroup)?;
            match connect(&self.folder, &mut self.process).await {
                Ok(engine) => {
                    self.engine = engine;
                    return Ok(());
                }
                Err(error) if last => return Err(error),
                Err(_) => self.process.kill9().await?,
            }
        }
        Ok(())
    }
}

fn socket(folder: &std::path::Path) -> PathBuf {
    folder.join("docker.sock")
}

fn spawn(folder: &std::path::Path, cgroup: &str) -> anyhow::Result<Process> {
    let program = must::program(&["dockerd"]).context("dockerd is missing: install docker.io")?;
    // A file of our own, so that the host's is not read.
    let config = folder.join("daemon.json");
    fs::write(&config, r#"{"live-restore": true}"#)?;
    let mut command = Command::new(program);
    command
        .arg("--data-root")
        .arg(folder.join("docker"))
        .arg("--exec-root")
        .arg(folder.join("exec"))
        .arg("--pidfile")
        .arg(folder.join("docker.pid"))
        .arg("--host")
        .arg(format!("unix://{}", socket(folder).display()))
        .arg("--config-file")
        .arg(config)
        .args(["--log-level", "warn", "--cgroup-parent", cgroup]);
    Process::start(&mut command, &folder.join("logs/dockerd.log"))
}

async fn connect(folder: &std::path::Path, process: &mut Process) -> anyhow::Result<Docker> {
    let path = socket(folder);
    let path = path.to_str().context("the temporary folder's name is not text")?;
    let process = RefCell::new(process);
    let connecting = eventually("dockerd answers", START_PATIENCE, async || {
        if let Some(status) = process.borrow_mut().ended()? {
            return Ok(Some(Err(anyhow!("dockerd ended with {status}"))));
        }
        let engine = Docker::connect_with_unix(path, CALL_SECONDS, API_DEFAULT_VERSION)?;
        engine.ping().await?;
        Ok(Some(Ok(engine)))
    });
    let outcome = connecting.await.and_then(|outcome| outcome);
    outcome.with_context(|| process.borrow().log_end(20))
}
