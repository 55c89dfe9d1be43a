//! Docker, as far as instances need it: the only user of bollard.
//!
//! Every call may be repeated and may be cut short by a kill: what is there already is success,
//! what is there but different is an error and never removed on the way.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::errors::Error;
use bollard::models::ContainerSummaryStateEnum;
use chrono::{DateTime, Utc};
use crabshack_shared::{generation::Generation, ids::InstanceId, services::Profile};
use ipnet::Ipv4Net;
use rustix::process::{Resource, getrlimit};

use crate::recipe::Member;

mod body;
mod containers;
mod error;
mod events;
mod exec;
mod facts;
mod hardening;
mod images;
mod labels;
mod limits;
mod logs;
mod networks;
mod observe;
mod seccomp;
mod stats;
mod strangers;

pub(crate) use self::{
    body::COMPATIBLE_CAPABILITIES,
    error::DockerError,
    exec::{Attached, AttachedOutput},
    facts::DockerFacts,
    hardening::{Hardening, MountFound, PortFound},
    limits::{AppliedLimits, Bounds},
    logs::{LogEnd, LogLine, LogSource},
    stats::Usage,
    strangers::{Stranger, StrangerKind},
};

/// A call that Docker answers from what it knows.
const NORMAL: Duration = Duration::from_secs(30);

/// A handle; clones are cheap and share what they remember.
#[derive(Debug, Clone)]
pub(crate) struct Docker {
    socket: Arc<str>,
    /// By Docker's container id, so that a container is inspected when something happened to it only.
    known: Arc<Mutex<HashMap<String, Known>>>,
    abilities: Arc<Mutex<Abilities>>,
    /// Commands that somebody here listens to.
    attached: Arc<Mutex<HashSet<String>>>,
}

/// What the last inspection of a container said; true while the list calls its state the same.
#[derive(Debug, Clone)]
struct Known {
    instance: InstanceId,
    listed: ContainerSummaryStateEnum,
    state: ContainerState,
    limits: AppliedLimits,
    confined: bool,
    published: Option<u16>,
}

/// What the engine can do with this kernel; known once the facts were asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Abilities {
    /// One container can get less of a disk than another.
    io_weight: bool,
    /// Swapping has a switch per container (cgroup v1).
    swappiness: bool,
    /// It cannot filter system calls.
    unfiltered: bool,
    bounds: Bounds,
}

impl Docker {
    /// Names the socket, `unix:///path` or a path. Nothing is dialled: each call dials anew, so
    /// dockerd may come and go.
    pub(crate) fn connect(socket: &str) -> Result<Self, DockerError> {
        let path = socket.strip_prefix("unix://").unwrap_or(socket);
        if !path.starts_with('/') {
            return Err(DockerError::Socket {
                socket: socket.to_owned(),
            });
        }
        Ok(Self {
            socket: path.into(),
            known: Arc::default(),
            abilities: Arc::default(),
            attached: Arc::default(),
        })
    }

    /// Has the containers of these instances inspected anew by the next observation.
    pub(crate) fn forget(&self, mut of: impl FnMut(InstanceId) -> bool) {
        self.known().retain(|_, known| !of(known.instance));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attached(&self) -> MutexGuard<'_, HashSet<String>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abilities(&self) -> Abilities {
        *self.abilities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body_options(&self) -> body::Options {
        // Where a service manager or a container bounds us, it bounds Docker too, which then refuses more.
        let abilities = self.abilities();
        let bound = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        body::Options {
            io_weight: abilities.io_weight,
            swappiness: abilities.swappiness,
            open_files: body::OPEN_FILES.min(bound),
            unfiltered: abilities.unfiltered,
        }
    }

    /// The security options that a container of today gets.
    pub(crate) fn security_options(&self, profile: Profile) -> Vec<String> {
        body::security(profile, self.abilities().unfiltered)
    }

    /// A client whose answers must begin within the limit. Only unix sockets are dialled, and the
    /// version is not sent: the engine answers in its own.
    fn client(&self, limit: Duration) -> Result<bollard::Docker, Error> {
        bollard::Docker::connect_with_unix(&self.socket, limit.as_secs().max(1), bollard::API_DEFAULT_VERSION)
    }

    /// Runs one call that must be over within the limit, the body of its answer included.
    async fn call<T, F>(&self, limit: Duration, run: impl FnOnce(bollard::Docker) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match tokio::time::timeout(limit, run(self.client(limit)?)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(Error::RequestTimeoutError),
        }
    }
}

/// Name of an instance's network, and of its main container.
pub(crate) fn docker_name(instance: InstanceId) -> String {
    format!("cs-{instance}")
}

/// Name of one container of an instance; the main one has the instance's own.
pub(crate) fn container_name(instance: InstanceId, member: Member) -> String {
    match member {
        Member::Main => docker_name(instance),
        other => format!("{}-{}", docker_name(instance), other.name()),
    }
}

/// What Docker has of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DockerState {
    /// By instance, main ones first.
    pub(crate) containers: BTreeMap<(InstanceId, Member), Container>,
    /// By instance.
    pub(crate) networks: BTreeMap<InstanceId, Network>,
}

/// A container of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    /// Docker's own id.
    pub(crate) docker_id: String,
    /// Whose.
    pub(crate) instance: InstanceId,
    /// Which of its containers.
    pub(crate) member: Member,
    /// Hash of the spec it was made from; empty when its label is gone.
    pub(crate) recipe: String,
    /// The asked restarts that led to it.
    pub(crate) restarts: u64,
    /// Generation of the order it was made for.
    pub(crate) generation: Generation,
    /// The specification's revision it was made from.
    pub(crate) spec_revision: u64,
    /// What it may use now.
    pub(crate) limits: AppliedLimits,
    /// It is in no network but its own, and Docker does not start it by itself.
    pub(crate) confined: bool,
    /// `sha256:...` of its image.
    pub(crate) image_id: String,
    /// What it does.
    pub(crate) state: ContainerState,
    /// Its address on its link, while it runs.
    pub(crate) address: Option<Ipv4Addr>,
    /// The port of the node that is kept for it, also while it does not run.
    pub(crate) published: Option<u16>,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Made and never started, or its start failed.
    Created,
    /// Running.
    Running {
        /// Since when, as far as Docker says.
        started_at: Option<DateTime<Utc>>,
    },
    /// Frozen.
    Paused,
    /// Over.
    Exited {
        /// Exit code; 128 + signal when it was killed.
        code: i64,
        /// The kernel killed a process of it for want of memory, in this run or in one before: Docker
        /// does not take the flag back when it starts the container again.
        oom: bool,
        /// When.
        finished_at: DateTime<Utc>,
    },
    /// On its way out.
    Removing,
    /// Docker failed to remove it, or can never start it again.
    Dead,
}

/// A network of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    /// Whose.
    pub(crate) instance: InstanceId,
    /// Its addresses; none: Docker does not say, or they are not IPv4.
    pub(crate) subnet: Option<Ipv4Net>,
    /// Interface name of its bridge; empty when Docker chose one.
    pub(crate) bridge: String,
}
