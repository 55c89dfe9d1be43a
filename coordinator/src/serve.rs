//! `crabshack serve`: everything is read, checked and bound before anything is served, and everything
//! ends within a deadline.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use crabshack_shared::{
    halt::{Halt, HaltPoint},
    listen::{self, Inherited, Listener},
    serve::{HeadLimits, Refusals, Server},
    shutdown::{Shutdown, Signals},
};

use crate::{
    agents::{connect::Connector, registry::Registry},
    api::instances::exec::Desk,
    app::App,
    ca::Ca,
    config::Settings,
    events::Events,
    gateway::Gateway,
    images::Images,
    metrics::Metrics,
    outgoing,
    placement::Embedded,
    reconcile::{self, Signal},
    router,
    store::Store,
};

/// Requests and streams are cut this long after the signal to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_LIMITS: HeadLimits = HeadLimits {
    first: Duration::from_secs(15),
    next: Duration::from_secs(75),
};

/// The three listeners, bound.
struct Listeners {
    api: Listener,
    ui: Listener,
    agents: Listener,
}

impl Listeners {
    fn addresses(&self) -> io::Result<[SocketAddr; 3]> {
        Ok([self.api.address()?, self.ui.address()?, self.agents.address()?])
    }
}

/// Builds the shared state from the data folder.
pub(crate) fn build(settings: Settings, halt_at: Option<HaltPoint>) -> anyhow::Result<Arc<App>> {
    let store = Store::open(&settings.data_dir)?;
    let ca = Arc::new(Ca::load_or_create(&settings.data_dir.join("ca"), settings.certificate_life)?);
    let connector = Connector::new(Arc::clone(&ca));
    let shutdown = Shutdown::default();
    let gateway = Gateway::new(&settings.data_dir, connector.clone(), shutdown.clone())?;
    let images = Images::new(outgoing::client(&settings.ca_bundle).context("no client for registries")?);
    Ok(Arc::new(App {
        placement: Box::new(Embedded {
            overcommit: settings.memory_overcommit,
        }),
        settings,
        store,
        events: Events::new(),
        registry: Registry::new(),
        reconciler: Signal::default(),
        ca,
        connector,
        gateway,
        images,
        exec: Desk::default(),
        metrics: Metrics::new(),
        halt: Halt::new(halt_at),
        shutdown,
    }))
}

/// Runs until it is told to stop. Listeners that were passed on to this process are used as they are.
pub(crate) async fn run(settings: Settings, halt_at: Option<HaltPoint>, inherited: Inherited) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("signals cannot be received")?;
    let app = build(settings, halt_at)?;
    let listeners = bind(&app.settings, &inherited)?;
    app.shutdown.spawn(Arc::clone(&app.ca).keep_fresh());
    app.shutdown.spawn(reconcile::run(Arc::clone(&app)));

    let [api, ui, agents] = listeners.addresses()?;
    let server = |listener, name| Server::new(listener, HEAD_LIMITS, Arc::new(Refusals::new(name)));
    let stop = || app.shutdown.token.clone();
    let servers = async {
        tokio::try_join!(
            server(listeners.api, "api").serve(router::api(&app), stop()),
            server(listeners.ui, "ui").serve(router::ui(&app), stop()),
            server(listeners.agents, "agents")
                .with_tls(app.ca.server_config())
                .serve(router::agents(&app), stop()),
        )
    };
    tokio::pin!(servers);
    tracing::info!("serving the API on {api}, browsers on {ui}, node agents on {agents}");
    // Whoever connects from now on waits in the listeners' queues at most.
    listen::ready();
    tokio::select! {
        // They end before the stop only when one cannot listen.
        ended = &mut servers => { ended.context("a listener ended")?; }
        () = signals.received() => {}
    }

    tracing::info!("stopping");
    listen::stopping();
    let begin = tokio::time::Instant::now();
    app.shutdown.token.cancel();
    let (api, ui, agents) = servers.await.context("a listener ended")?;
    let whole = tokio::join!(
        api.finish(STOP_DEADLINE),
        ui.finish(STOP_DEADLINE),
        agents.finish(STOP_DEADLINE)
    );
    if whole != (true, true, true) {
        tracing::warn!("requests that did not end in time were cut");
    }
    if !app.shutdown.finish(STOP_DEADLINE.saturating_sub(begin.elapsed())).await {
        tracing::warn!("some tasks did not end in time");
    }
    Ok(())
}

fn bind(settings: &Settings, inherited: &Inherited) -> anyhow::Result<Listeners> {
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let listen = |name: &str, variable: &str, address: SocketAddr| {
        inherited
            .listener(name, address)
            .with_context(|| format!("{variable}: {address} cannot be listened on"))
    };
    Ok(Listeners {
        api: listen("api", "CRABSHACK_PORT", loopback(settings.port))?,
        ui: listen("ui", "CRABSHACK_UI_PORT", loopback(settings.ui_port))?,
        agents: listen("agents", "CRABSHACK_AGENT_LISTEN", settings.agent_listen)?,
    })
}
