//! Puts the rooms together, in the order that keeps the node safe: the ruleset before anything of
//! Docker is touched, what is on the disk before what comes from the network.

use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use crabshack_shared::{
    agent_api::v1::{InstanceReport, NodeFacts},
    halt::Halt,
    listen::{self, Inherited},
    seal::{SealError, SealKey},
    serve::{Refusals, ServerTls},
    shutdown::{Shutdown, Signals},
    telemetry::Chain,
    tls::TlsError,
};
use tokio::sync::{Notify, watch};

use crate::{
    config::Settings,
    data_plane::{self, Door, Tenants},
    dns::{self, DnsError, DnsSettings},
    docker::{Docker, DockerError},
    doctor::{Doctor, outside::Outside},
    egress::{Egress, EgressError, EgressSettings},
    facts::{self, Unsupported},
    health::{self, Status},
    images::{ImageSettings, Images, Policy},
    lease,
    ledger::{Ledger, LedgerError},
    metrics::Metrics,
    node::Node,
    pool::{self, NotMounted},
    pressure::Disks,
    reconcile::{Reconciler, probe::Probes},
    uplink::{
        Uplink,
        client::Client,
        enrol::{self, EnrolError},
    },
    volume::{VolumeError, Volumes},
};

/// How often the machine's facts are read again.
const FACTS_PERIOD: Duration = Duration::from_secs(20);
const DOCKER_RETRY: Duration = Duration::from_millis(500);
/// What the facts say while Docker does not answer.
const DOCKER_AWAY: &str =
    "Docker does not answer: instances run on, but none is started, stopped or repaired until it does; see its own log";
/// The same while something else of the node cannot be looked at.
const BLIND: &str = "the node cannot be looked at: instances run on, but none is started, stopped or repaired until it can; \
    see the node agent's log";
/// How often a service manager that watches us hears that we work.
const ALIVE_PERIOD: Duration = Duration::from_secs(10);
/// Between two tries to tell the coordinator of the stop.
const GOODBYE_PAUSE: Duration = Duration::from_millis(50);
/// How long tasks may take to end after a signal.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Why the node agent cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the data folder {path} (CRABSHACK_AGENT_DATA_DIR) cannot be made or entered; the node agent must run as root")]
    DataFolder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("health cannot be served on {address} (CRABSHACK_HEALTH_LISTEN)")]
    HealthListener {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the node's key cannot be used")]
    Seal(#[from] SealError),
    #[error("the ledger cannot be used")]
    Ledger(#[from] LedgerError),
    #[error("Docker cannot be used")]
    Docker(#[from] DockerError),
    #[error("this machine cannot be a node")]
    Unsupported(#[from] Unsupported),
    #[error("egress cannot be controlled, so nothing may run here")]
    Egress(#[from] EgressError),
    #[error("instances would have no DNS")]
    Dns(#[from] DnsError),
    #[error("the node is not part of a deployment")]
    Enrol(#[from] EnrolError),
    #[error("the node's certificate cannot be used")]
    Tls(#[from] TlsError),
    #[error("the data plane cannot be served on {address} (CRABSHACK_DATA_PLANE)")]
    DataPlane {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("probes cannot be made")]
    Probes(#[source] reqwest::Error),
    #[error("the volumes are not there")]
    Pool(#[from] NotMounted),
    #[error("the volumes cannot be used")]
    Volumes(#[from] VolumeError),
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
}

/// Runs until a signal comes. Listeners that a service manager holds are used as they are.
pub(crate) async fn run(settings: Settings, inherited: &Inherited) -> Result<(), StartError> {
    let folder = |source| StartError::DataFolder {
        path: settings.data_dir.clone(),
        source,
    };
    fs::create_dir_all(&settings.data_dir).map_err(folder)?;
    fs::set_permissions(&settings.data_dir, fs::Permissions::from_mode(0o700)).map_err(folder)?;
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let shutdown = Shutdown::default();
    let (node_sender, node_receiver) = watch::channel(None);
    let (connected, connected_receiver) = watch::channel(false);
    let (adopted, adopted_receiver) = watch::channel(false);
    let (reports, reports_receiver) = watch::channel(Arc::default());
    let (doctor, doctor_receiver) = watch::channel(None);
    let metrics = Arc::new(Metrics::default());

    // First of all: whoever watches the daemon gets an answer at once.
    let cannot_serve = |source| StartError::HealthListener {
        address: settings.health_listen,
        source,
    };
    let health_listener = inherited.listener("health", settings.health_listen).map_err(cannot_serve)?;
    let status = Status {
        node: node_receiver,
        connected: connected_receiver,
        adopted: adopted_receiver,
        reports: reports_receiver,
        metrics: Arc::clone(&metrics),
        doctor: doctor_receiver,
        outside: Outside::new(&settings),
    };
    let health = health::serve(health_listener, status, shutdown.token.clone());
    shutdown.tasks.spawn(async move {
        if let Err(error) = health.await {
            tracing::error!(%error, "the health listener ended");
        }
    });

    let channels = Channels {
        node: node_sender,
        connected,
        adopted,
        reports,
        metrics,
        doctor,
    };
    let signalled = tokio::select! {
        started = start(&settings, inherited, &shutdown, channels) => {
            started?;
            false
        }
        () = signals.received() => true,
    };
    if !signalled {
        signals.received().await;
    }
    listen::stopping();
    tracing::info!("stopping; instances run on");
    if !shutdown.finish(STOP_WITHIN).await {
        tracing::warn!("some tasks did not end in time and are cut");
    }
    Ok(())
}

/// Where the parts that start later tell the health listener of themselves.
struct Channels {
    node: watch::Sender<Option<String>>,
    connected: watch::Sender<bool>,
    adopted: watch::Sender<bool>,
    reports: watch::Sender<Arc<Vec<InstanceReport>>>,
    metrics: Arc<Metrics>,
    doctor: watch::Sender<Option<Arc<Doctor>>>,
}

/// Ready is a node agent that has seen everything on its node.
async fn tell_service_manager(mut adopted: watch::Receiver<bool>) {
    if adopted.wait_for(|adopted| *adopted).await.is_ok() {
        listen::ready();
    }
    loop {
        listen::alive();
        tokio::time::sleep(ALIVE_PERIOD).await;
    }
}

async fn start(settings: &Settings, inherited: &Inherited, shutdown: &Shutdown, channels: Channels) -> Result<(), StartError> {
    let path = settings.data_dir.join("ledger.redb");
    let key = SealKey::load_or_create(&settings.data_dir.join("seal.key"), &path)?;
    let ledger = Arc::new(Ledger::open(&path, key, settings.pool)?);
    channels.metrics.watch_ledger(Arc::clone(&ledger));
    // Not cut by a stop: the last events are written then.
    shutdown.tasks.spawn(Arc::clone(&ledger).keep_events(shutdown.token.clone()));
    // Without its pool the node would look empty, and every instance would get an empty home.
    pool::check_mounted(&settings.data_dir)?;
    let volumes = Arc::new(Volumes::open(pool::instances(&settings.data_dir)).await?);
    let docker = Docker::connect(&settings.docker_socket)?;
    let docker_facts = wait_for_docker(async || docker.facts().await).await;
    facts::check(&docker_facts)?;
    let egress = Arc::new(Egress::install(EgressSettings { pool: settings.pool }).await?);
    channels.metrics.watch_egress(Arc::clone(&egress));

    let upstreams = if settings.dns_upstreams.is_empty() {
        dns::system_upstreams()?
    } else {
        settings.dns_upstreams.clone()
    };
    let forwarder = dns::bind(DnsSettings {
        listen: settings.pool.service_address(),
        upstreams,
    })
    .await?;
    let stop = shutdown.token.clone();
    shutdown.tasks.spawn(forwarder.serve(stop));

    // It may have gone away again.
    let networks = wait_for_docker(async || docker.observe().await).await.networks;
    ledger.adopt_links(
        networks
            .iter()
            .filter_map(|(id, network)| Some((*id, network.subnet.as_ref()?))),
    )?;
    let disks = Disks::new([settings.data_dir.clone()].into_iter().chain(docker_facts.root.clone()));
    shutdown.spawn(Arc::clone(&volumes).watch());
    let wake = Arc::new(Notify::new());
    let image_settings = ImageSettings {
        policy: Policy::new(settings.allowed_images.clone()),
        pulls: settings.pulls.into(),
        grace: settings.image_grace,
    };
    let images = Images::new(
        docker.clone(),
        Arc::clone(&ledger),
        disks.clone(),
        image_settings,
        Arc::clone(&wake),
    );
    let images = Arc::new(images);
    images.spawn(shutdown);
    let node = Node {
        docker: docker.clone(),
        egress,
        volumes: Arc::clone(&volumes),
        disks: disks.clone(),
        images: Arc::clone(&images),
        service_address: settings.pool.service_address(),
        ssh_bind: settings.ssh_bind,
        ssh_image: Arc::new(settings.ssh_image.clone()),
    };
    let probes = Probes::new(Arc::clone(&wake)).map_err(StartError::Probes)?;
    let halt = Halt::new(settings.halt_at.clone());
    let doctor = Arc::new(Doctor::new(
        node.clone(),
        Arc::clone(&ledger),
        settings.data_dir.clone(),
        Arc::clone(&wake),
        channels.connected.subscribe(),
    ));
    let reconciler = Arc::new(Reconciler::new(
        node,
        Arc::clone(&ledger),
        probes,
        halt,
        Arc::clone(&wake),
        channels.metrics.passes.clone(),
        doctor.repairs(),
    ));
    let blind = reconciler.blind();
    let (reports, adopted) = (reconciler.reports(), reconciler.adopted());
    shutdown.spawn(mirror(adopted.clone(), channels.adopted));
    shutdown.spawn(mirror(reports.clone(), channels.reports));
    shutdown.spawn(tell_service_manager(adopted.clone()));
    shutdown.spawn(lease::watch(
        Arc::clone(&ledger),
        Arc::clone(&wake),
        channels.metrics.lease_expiries.clone(),
    ));
    reconciler.spawn(shutdown);
    channels.metrics.watch_findings(doctor.findings());
    channels.doctor.send_replace(Some(Arc::clone(&doctor)));
    shutdown.spawn(Arc::clone(&doctor).run(adopted.clone()));

    // From here on the network is needed, for the first start only; the instances already run.
    let identity = Arc::new(enrol::identity(settings, &facts::hostname()).await?);
    channels.node.send_replace(Some(identity.node().to_string()));
    let client = Arc::new(Client::new(settings.coordinator.clone(), identity.client()?));
    let data_plane = ServerTls::new(Arc::new(identity.server()?));
    let tenants = Arc::new(Tenants::new(Arc::clone(&ledger), docker.clone(), Arc::clone(&volumes)));
    let cannot_serve = |source| StartError::DataPlane {
        address: settings.data_plane,
        source,
    };
    shutdown.spawn(Arc::clone(&tenants).end_orphans());
    let door = Door {
        listener: inherited.listener("data-plane", settings.data_plane).map_err(cannot_serve)?,
        tls: data_plane.clone(),
        refusals: Arc::new(Refusals::new("data plane")),
    };
    channels.metrics.watch_data_plane(Arc::clone(&door.refusals));
    let served = data_plane::serve(door, tenants, shutdown.token.clone(), say_goodbye(Arc::clone(&client)));
    shutdown.tasks.spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(error = %Chain(&error), "the data plane ended: the coordinator cannot reach this node's instances");
        }
    });

    let address = settings
        .data_plane_address
        .clone()
        .unwrap_or_else(|| settings.data_plane.to_string());
    let (facts_sender, facts_receiver) =
        watch::channel(facts::node_facts(&docker_facts, &address, &volumes.storage().await?, &disks, &images).await);
    shutdown.spawn(refresh_facts(
        Gauges {
            docker,
            address,
            volumes,
            disks,
            images,
        },
        facts_sender,
        blind,
    ));
    doctor.watch_uplink(Arc::clone(&identity), Arc::clone(&client));
    let uplink = Uplink {
        client,
        identity,
        ledger,
        wake,
        reports,
        adopted,
        facts: facts_receiver,
        findings: doctor.findings(),
        data_plane,
        connected: channels.connected,
    };
    Arc::new(uplink).spawn(shutdown);
    Ok(())
}

/// From its answer on the coordinator sends nothing through what is open, and dials the next process. It may
/// be restarting too, and an older one knows no goodbye.
async fn say_goodbye(client: Arc<Client>) {
    while let Err(error) = client.stopping().await {
        tracing::debug!(error = %Chain(&error), "the coordinator does not know that the node agent stops");
        if error.is_refusal() {
            return;
        }
        tokio::time::sleep(GOODBYE_PAUSE).await;
    }
}

/// Docker may start after us, or be away for a moment.
async fn wait_for_docker<T>(ask: impl AsyncFn() -> Result<T, DockerError>) -> T {
    let mut told = false;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = %Chain(&error), "waiting for Docker");
                }
                tokio::time::sleep(DOCKER_RETRY).await;
            }
        }
    }
}

/// What the machine's facts are read from.
struct Gauges {
    docker: Docker,
    address: String,
    volumes: Arc<Volumes>,
    disks: Disks,
    images: Arc<Images>,
}

/// Reads the facts again for ever: in turn, and when the node can no more or again be observed.
async fn refresh_facts(gauges: Gauges, facts: watch::Sender<NodeFacts>, mut blind: watch::Receiver<bool>) {
    let mut images = gauges.images.changes();
    loop {
        tokio::select! {
            () = tokio::time::sleep(FACTS_PERIOD) => {}
            Ok(()) = images.changed() => {}
            changed = blind.changed() => if changed.is_err() { return },
        }
        let is_blind = *blind.borrow_and_update();
        let docker = gauges.docker.facts().await;
        let storage = gauges.volumes.storage().await;
        match (docker, storage) {
            (Ok(docker), Ok(storage)) if !is_blind => {
                let now = facts::node_facts(&docker, &gauges.address, &storage, &gauges.disks, &gauges.images).await;
                // Only of images the coordinator must hear at once.
                facts.send_if_modified(|known| {
                    let differs = known.images != now.images;
                    *known = now;
                    differs
                });
            }
            (docker, _) if is_blind => {
                let warning = if docker.is_err() { DOCKER_AWAY } else { BLIND };
                facts.send_modify(|facts| {
                    facts.warnings.retain(|known| known != DOCKER_AWAY && known != BLIND);
                    facts.warnings.push(warning.to_owned());
                });
            }
            // What was known stands.
            _ => {}
        }
    }
}

async fn mirror<T: Clone + Send + Sync + 'static>(mut from: watch::Receiver<T>, to: watch::Sender<T>) {
    loop {
        let value = from.borrow_and_update().clone();
        to.send_replace(value);
        if from.changed().await.is_err() {
            return;
        }
    }
}
