//! The product on a [`Machine`]: a coordinator and a node agent as child processes, killed and
//! started at will.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::{
    client::Client,
    command, engine,
    gateway::Browser,
    image,
    internet::Internet,
    machine::Machine,
    must::{PATIENCE, become_true},
    passed::Passed,
    process::Process,
};

/// The admin secret of every cluster.
pub const SECRET: &str = "an-admin-secret-for-tests";
/// The public API.
pub const API: &str = "http://127.0.0.1:7700";
/// Health of the node agent.
pub const AGENT_HEALTH: &str = "http://127.0.0.1:7703";
/// Longer than a stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// One of our processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// `crabshack serve`.
    Coordinator,
    /// `crabshack-node-agent`.
    NodeAgent,
}

impl Who {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Coordinator, Self::NodeAgent];

    fn index(self) -> usize {
        match self {
            Self::Coordinator => 0,
            Self::NodeAgent => 1,
        }
    }

    fn word(self) -> &'static str {
        ["coordinator", "node-agent"][self.index()]
    }
}

/// The processes and their data.
#[derive(Debug)]
pub struct Cluster<'machine> {
    /// What it runs on.
    pub machine: &'machine Machine,
    /// Caller with the admin secret.
    pub client: Client,
    folder: PathBuf,
    settings: [Vec<(String, String)>; 2],
    processes: [Option<Process>; 2],
    programs: [Option<PathBuf>; 2],
    wrappers: [Vec<String>; 2],
    listeners: Option<Passed>,
}

impl<'machine> Cluster<'machine> {
    /// Starts both, runs a case, and removes everything that is left, whatever the case said.
    pub async fn with(machine: &'machine Machine, case: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        Self::with_settings(machine, &[], case).await
    }

    /// As [`Self::with`], with more environment for one or the other.
    pub async fn with_settings(
        machine: &'machine Machine,
        settings: &[(Who, &str, &str)],
        case: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut cluster = Self::new(machine)?;
        for &(who, key, value) in settings {
            cluster.set(who, key, value);
        }
        cluster.run(case).await
    }

    /// Starts both as they are set, runs a case, and removes everything that is left.
    pub async fn run(mut self, case: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let result = async {
            self.start_all().await?;
            case(&mut self).await
        }
        .await;
        if result.is_err() {
            self.keep_evidence().await;
        }
        let wiped = self.wipe().await;
        result.and(wiped)
    }

    /// Nothing is started yet.
    pub fn new(machine: &'machine Machine) -> anyhow::Result<Self> {
        let folder = machine.folder().join("cluster");
        fs::create_dir_all(&folder)?;
        Ok(Self {
            machine,
            client: Client::new(API, SECRET)?,
            folder,
            settings: [Vec::new(), Vec::new()],
            processes: [None, None],
            programs: [None, None],
            wrappers: [Vec::new(), Vec::new()],
            listeners: None,
        })
    }

    /// Sets a variable of a process from its next start on.
    pub fn set(&mut self, who: Who, key: &str, value: &str) {
        self.unset(who, key);
        self.settings[who.index()].push((key.to_owned(), value.to_owned()));
    }

    /// Takes it back.
    pub fn unset(&mut self, who: Who, key: &str) {
        self.settings[who.index()].retain(|(set, _)| set != key);
    }

    /// Another build of a process, from its next start on.
    pub fn replace_program(&mut self, who: Who, program: &Path) {
        self.programs[who.index()] = Some(program.to_owned());
    }

    /// Starts a process by this command line from its next start on, with its own at the end; by itself
    /// when there is none. It must run the process in its own place.
    pub fn wrap(&mut self, who: Who, wrapper: Vec<String>) {
        self.wrappers[who.index()] = wrapper;
    }

    /// Holds all listeners and passes them on at each start, as systemd does.
    pub fn hold_listeners(&mut self) -> anyhow::Result<()> {
        self.listeners = Some(Passed::bind()?);
        Ok(())
    }

    /// Starts the coordinator, then a node agent with a fresh join token, and waits for both.
    pub async fn start_all(&mut self) -> anyhow::Result<()> {
        self.start(Who::Coordinator)?;
        self.ready(Who::Coordinator).await?;
        let token = self.client.join_token().await?;
        self.set(Who::NodeAgent, "CRABSHACK_JOIN_TOKEN", &token);
        self.start(Who::NodeAgent)?;
        self.unset(Who::NodeAgent, "CRABSHACK_JOIN_TOKEN");
        self.ready(Who::NodeAgent).await?;
        self.node_known().await
    }

    /// Waits until the coordinator knows what its node can hold.
    pub async fn node_known(&self) -> anyhow::Result<()> {
        become_true("the coordinator knows its node", PATIENCE, async || {
            Ok(self.client.get("/nodes").await?.success()?[0]["memory"].is_number())
        })
        .await
    }

    /// Where a process keeps its data.
    pub fn data(&self, who: Who) -> PathBuf {
        self.folder.join(who.word())
    }

    /// The log of a process, over all its starts.
    pub fn log(&self, who: Who) -> PathBuf {
        self.machine.logs().join(format!("{}.log", who.word()))
    }

    /// The command line with its whole environment, not started.
    pub fn command(&self, who: Who) -> anyhow::Result<Command> {
        let program = ["crabshack", "crabshack-node-agent"][who.index()];
        let program = match &self.programs[who.index()] {
            Some(program) => program.clone(),
            None => binary(program)?,
        };
        let mut command = match self.wrappers[who.index()].split_first() {
            None => Command::new(program),
            Some((wrapper, arguments)) => {
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("CRABSHACK_LOG_FORMAT", "json");
        match who {
            Who::Coordinator => command
                .arg("serve")
                .env("CRABSHACK_ADMIN_SECRET", SECRET)
                .env("CRABSHACK_DATA_DIR", self.data(who))
                // Suites run more small instances than the machine has memory for real ones.
                .env("CRABSHACK_MEMORY_OVERCOMMIT", "20"),
            Who::NodeAgent => command
                .env("CRABSHACK_AGENT_DATA_DIR", self.data(who))
                .env("CRABSHACK_DOCKER_SOCKET", self.machine.dockerd.address())
                .env("CRABSHACK_DNS_UPSTREAMS", Internet::name_server().to_string()),
        };
        if let Some(listeners) = &self.listeners {
            command.envs(listeners.variables(who));
        }
        command.envs(self.settings[who.index()].iter().map(|(key, value)| (key, value)));
        Ok(command)
    }

    /// Starts a process; it need not be ready.
    pub fn start(&mut self, who: Who) -> anyhow::Result<()> {
        ensure!(self.processes[who.index()].is_none(), "the {} runs already", who.word());
        let process = Process::start(&mut self.command(who)?, &self.log(who))?;
        self.processes[who.index()] = Some(process);
        Ok(())
    }

    /// Waits until a process serves; one that ended meanwhile is an error.
    pub async fn ready(&mut self, who: Who) -> anyhow::Result<()> {
        let url = match who {
            Who::Coordinator => format!("{API}/health"),
            Who::NodeAgent => format!("{AGENT_HEALTH}/ready"),
        };
        let http = reqwest::Client::builder().no_proxy().build()?;
        let log = self.log(who);
        let process = std::cell::RefCell::new(self.process(who)?);
        become_true(&format!("the {} is ready", who.word()), PATIENCE, async || {
            if let Some(status) = process.borrow_mut().ended()? {
                return Err(anyhow::anyhow!("it ended with {status}: see {}", log.display()));
            }
            Ok(http.get(&url).send().await?.status().is_success())
        })
        .await
    }

    /// The running process.
    pub fn process(&mut self, who: Who) -> anyhow::Result<&mut Process> {
        self.processes[who.index()]
            .as_mut()
            .with_context(|| format!("the {} does not run", who.word()))
    }

    /// SIGKILL.
    pub async fn kill9(&mut self, who: Who) -> anyhow::Result<()> {
        match self.processes[who.index()].take() {
            Some(mut process) => process.kill9().await,
            None => Ok(()),
        }
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(&mut self, who: Who) -> anyhow::Result<()> {
        if let Some(mut process) = self.processes[who.index()].take() {
            let status = process.stop(STOP_PATIENCE).await?;
            ensure!(status.success(), "the {} ended with {status} after SIGTERM", who.word());
        }
        Ok(())
    }

    /// SIGKILL, start, ready.
    pub async fn crash_and_restart(&mut self, who: Who) -> anyhow::Result<()> {
        self.kill9(who).await?;
        self.start(who)?;
        self.ready(who).await
    }

    /// Starts every process that has ended by itself, without its halt point; returns which.
    pub fn revive(&mut self) -> anyhow::Result<Vec<Who>> {
        let mut revived = Vec::new();
        for who in Who::ALL {
            let ended = match &mut self.processes[who.index()] {
                Some(process) => process.ended()?.is_some(),
                None => false,
            };
            if ended {
                self.processes[who.index()] = None;
                self.unset(who, "CRABSHACK_HALT_AT");
                self.start(who)?;
                revived.push(who);
            }
        }
        Ok(revived)
    }

    /// A browser that looks at an instance through the host route.
    pub fn browser(&self, name: &str) -> anyhow::Result<Browser> {
        Browser::new(name)
    }

    /// Kills both and removes containers, networks, rules, addresses and data.
    pub async fn wipe(&mut self) -> anyhow::Result<()> {
        for who in Who::ALL {
            self.kill9(who).await?;
        }
        // A case that failed may have left it dead.
        if !self.machine.dockerd.is_up().await? {
            self.machine.dockerd.start_again().await?;
        }
        engine::wipe(self.machine.dockerd.engine()).await?;
        clear_network();
        // Logs stay readable until the next cluster overwrites them.
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => fs::create_dir_all(&self.folder)?,
        }
        for who in Who::ALL {
            let log = self.log(who);
            if log.exists() {
                fs::rename(&log, log.with_extension("previous"))?;
            }
        }
        Ok(())
    }

    /// What the machine looked like when a case failed.
    async fn keep_evidence(&self) {
        let mut text = String::new();
        for line in ["nft list table inet crabshack", "ip rule", "ip address"] {
            let output = command::run(line).unwrap_or_else(|error| format!("{error:#}"));
            text.push_str(&format!("$ {line}\n{output}\n"));
        }
        for container in engine::containers(self.machine.dockerd.engine()).await.unwrap_or_default() {
            text.push_str(&format!("container {:?}: {:?}\n", container.name, container.state));
        }
        // Evidence only helps; the failure itself is reported by the case.
        drop(fs::write(self.machine.logs().join("evidence.log"), text));
    }
}

/// Undoes what the node agent sets up on a machine. Every part may be missing.
pub(crate) fn clear_network() {
    for line in [
        "nft delete table inet crabshack",
        "ip rule delete pref 99",
        "ip rule delete pref 100",
        "ip address delete 10.201.0.1/32 dev lo",
        "iptables -D DOCKER-USER -i cs-+ -j ACCEPT",
        "iptables -D DOCKER-USER -o cs-+ -j ACCEPT",
        "conntrack -F",
    ] {
        drop(command::run(line));
    }
}

/// A binary of ours: beside this program, or where `CRABSHACK_BIN_DIR` says.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let folder = match env::var_os("CRABSHACK_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => image::profile_folder()?,
    };
    let path = folder.join(name);
    ensure!(
        Path::new(&path).is_file(),
        "{} is missing: build it, or set CRABSHACK_BIN_DIR",
        path.display()
    );
    Ok(path)
}
