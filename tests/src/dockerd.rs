//! A dockerd of our own, in our namespaces, with its data in the run's folder.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use bollard::{API_DEFAULT_VERSION, Docker};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::{process::Command, sync::Mutex};

use crate::{
    command,
    must::{self, PATIENCE, become_true, eventually},
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
    process: Mutex<Process>,
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
            process: Mutex::new(process),
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

    /// Has it offer one more runtime from now on.
    pub async fn offer_runtime(&self, name: &str, program: &Path) -> anyhow::Result<()> {
        let config = serde_json::json!({"live-restore": true, "runtimes": {name: {"path": program}}});
        fs::write(self.folder.join("daemon.json"), config.to_string())?;
        self.process.lock().await.signal(Signal::HUP)?;
        become_true("the engine offers the runtime", PATIENCE, async || {
            let runtimes = self.engine.info().await?.runtimes.unwrap_or_default();
            Ok(runtimes.contains_key(name))
        })
        .await
    }

    /// SIGKILL; containers live on (`live-restore`).
    pub async fn kill9(&self) -> anyhow::Result<()> {
        self.process.lock().await.kill9().await
    }

    /// Starts it again; tries twice, since the first start after a kill may meet a stale containerd.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock().await;
        for last in [false, true] {
            *process = spawn(&self.folder, &self.cgroup)?;
            match connect(&self.folder, &mut process).await {
                // The client from the first start dials anew for each call.
                Ok(_) => return Ok(()),
                Err(error) if last => return Err(error),
                Err(_) => process.kill9().await?,
            }
        }
        Ok(())
    }

    /// What a service manager does when a person asks for a restart; containers live on.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.process.lock().await.stop(START_PATIENCE).await?;
        self.start_again().await
    }

    /// Whether it was started and has not ended.
    pub async fn is_up(&self) -> anyhow::Result<bool> {
        Ok(self.process.lock().await.ended()?.is_none())
    }

    /// Kills it with its helpers and every container, and empties its run folder, as a power cut does.
    pub async fn lose_power(&self) -> anyhow::Result<()> {
        self.kill9().await?;
        become_true("all its processes are gone", PATIENCE, async || {
            let left = processes_of(&self.folder, &self.cgroup);
            for process in &left {
                // One that cannot be killed has ended by itself, or the wait tells of it.
                kill_process(*process, Signal::KILL).ok();
            }
            Ok(left.is_empty())
        })
        .await?;
        let run = self.folder.join("exec");
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| Path::new(point).starts_with(&self.folder)) {
            // Another one may have taken it along.
            drop(command::run(&format!("umount --lazy {point}")));
        }
        fs::remove_dir_all(run)?;
        for file in ["docker.pid", "docker.sock"] {
            // Which of them a killed one leaves is not ours to know.
            drop(fs::remove_file(self.folder.join(file)));
        }
        Ok(())
    }
}

/// How many ports are published just now: each has a helper process.
pub fn published_ports() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.map(|entry| fs::read_to_string(entry.path().join("comm")).unwrap_or_default());
    names.filter(|name| name.trim_end() == "docker-proxy").count()
}

/// Processes of its containers, and those of its own, which all name its folder.
fn processes_of(folder: &Path, cgroup: &str) -> Vec<Pid> {
    let folder = folder.to_string_lossy();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|number| {
            let read = |name: &str| fs::read(format!("/proc/{number}/{name}")).unwrap_or_default();
            let (line, groups) = (read("cmdline"), read("cgroup"));
            let in_group = String::from_utf8_lossy(&groups).contains(&format!("{cgroup}/"));
            in_group || String::from_utf8_lossy(&line).contains(&*folder)
        })
        .filter_map(Pid::from_raw)
        .filter(|process| *process != getpid())
        .collect()
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
