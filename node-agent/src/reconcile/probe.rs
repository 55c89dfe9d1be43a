//! Asks running instances whether they answer. One task per container; the answer is kept until the
//! container is another one.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crabshack_shared::ids::InstanceId;
use tokio::{sync::Notify, task::AbortHandle};

/// An instance that answered before has this many chances before it counts as lost.
const TOLERATED_MISSES: u32 = 3;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const WHEN_READY: Duration = Duration::from_secs(10);

/// What is known about a container's answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has not answered yet.
    #[default]
    Unknown,
    /// It answers.
    Ready,
    /// It answered before and does not now.
    Lost,
}

/// Where to ask.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) instance: InstanceId,
    pub(crate) docker_id: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) path: &'static str,
}

struct Probe {
    docker_id: String,
    health: Health,
    /// The first question has been answered, or not.
    asked: bool,
    task: AbortHandle,
}

/// All probes of the node.
#[derive(Clone)]
pub(crate) struct Probes {
    probes: Arc<Mutex<BTreeMap<InstanceId, Probe>>>,
    changed: Arc<Notify>,
    client: reqwest::Client,
}

impl Probes {
    /// `changed` is notified whenever an answer differs from the last one.
    pub(crate) fn new(changed: Arc<Notify>) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_WITHIN)
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            probes: Arc::default(),
            changed,
            client,
        })
    }

    /// What is known of this container.
    pub(crate) fn health(&self, instance: InstanceId, docker_id: &str) -> Health {
        match self.lock().get(&instance) {
            Some(probe) if probe.docker_id == docker_id => probe.health,
            _ => Health::Unknown,
        }
    }

    /// Asks this container from now on; the same one is asked once.
    pub(crate) fn watch(&self, target: Target) {
        let mut probes = self.lock();
        if probes
            .get(&target.instance)
            .is_some_and(|probe| probe.docker_id == target.docker_id)
        {
            return;
        }
        // Not tracked: it has nothing to finish, so a stop need not wait for it.
        let task = tokio::spawn(self.clone().ask(target.clone())).abort_handle();
        let probe = Probe {
            docker_id: target.docker_id,
            health: Health::Unknown,
            asked: false,
            task,
        };
        if let Some(old) = probes.insert(target.instance, probe) {
            old.task.abort();
        }
    }

    /// True once every container that is asked has been asked.
    pub(crate) fn all_asked(&self) -> bool {
        self.lock().values().all(|probe| probe.asked)
    }

    /// Stops asking: the container does not run.
    pub(crate) fn forget(&self, instance: InstanceId) {
        if let Some(probe) = self.lock().remove(&instance) {
            probe.task.abort();
        }
    }

    async fn ask(self, target: Target) {
        let url = format!("http://{}{}", SocketAddr::from((target.address, target.port)), target.path);
        let began = Instant::now();
        let mut health = Health::Unknown;
        let mut misses = 0;
        let mut asked = false;
        loop {
            let answered = matches!(self.client.get(&url).send().await, Ok(answer) if answer.status().is_success());
            misses = if answered { 0 } else { misses + 1 };
            let now = match health {
                _ if answered => Health::Ready,
                Health::Ready if misses < TOLERATED_MISSES => Health::Ready,
                Health::Unknown => Health::Unknown,
                Health::Ready | Health::Lost => Health::Lost,
            };
            let is_first = !std::mem::replace(&mut asked, true);
            if is_first || now != health {
                health = now;
                self.note(&target, health);
            }
            tokio::time::sleep(pause(health, misses, began.elapsed())).await;
        }
    }

    fn note(&self, target: &Target, health: Health) {
        if let Some(probe) = self.lock().get_mut(&target.instance)
            && probe.docker_id == target.docker_id
        {
            probe.health = health;
            probe.asked = true;
        }
        self.changed.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, Probe>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Often while somebody waits for a start, seldom afterwards.
fn pause(health: Health, misses: u32, age: Duration) -> Duration {
    match health {
        Health::Ready if misses == 0 => WHEN_READY,
        Health::Ready | Health::Lost => Duration::from_secs(1),
        Health::Unknown if age < Duration::from_secs(2) => Duration::from_millis(5),
        Health::Unknown if age < Duration::from_secs(30) => Duration::from_millis(100),
        Health::Unknown => Duration::from_secs(1),
    }
}
