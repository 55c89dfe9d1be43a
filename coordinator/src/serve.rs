//! `crabshack serve`: everything is read, checked and bound before anything is served, and everything
//! ends within a deadline.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::{Router, extract::connect_info::IntoMakeServiceWithConnectInfo};
use axum_server::{Handle, Server, accept::NoDelayAcceptor, tls_rustls::RustlsAcceptor};
use crabshack_shared::{
    halt::{Halt, HaltPoint},
    listen::{self, Inherited},
    shutdown::Shutdown,
};
use hyper_util::rt::TokioTimer;

use crate::{
    agents::{connect::Connector, registry::Registry},
    app::App,
    ca::Ca,
    config::Settings,
    events::Events,
    gateway::Gateway,
    metrics::Metrics,
    placement::Embedded,
    reconcile::{self, Signal},
    router,
    store::Store,
};

/// Open streams are cut this long after the signal to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// A connection must bring its first request's headers, and each later one's, within these.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
const NEXT_REQUEST: Duration = Duration::from_secs(75);

/// The three listeners, bound.
struct Listeners {
    api: TcpListener,
    ui: TcpListener,
    agents: TcpListener,
}

impl Listeners {
    /// Where they really listen: a passed one need not be where the settings say.
    fn addresses(&self) -> io::Result<[SocketAddr; 3]> {
        Ok([self.api.local_addr()?, self.ui.local_addr()?, self.agents.local_addr()?])
    }
}

/// Builds the shared state from the data folder.
pub(crate) fn build(settings: Settings, halt_at: Option<HaltPoint>) -> anyhow::Result<Arc<App>> {
    let store = Store::open(&settings.data_dir)?;
    let ca = Arc::new(Ca::load_or_create(&settings.data_dir.join("ca"), settings.certificate_life)?);
    let connector = Connector::new(Arc::clone(&ca));
    let shutdown = Shutdown::default();
    let gateway = Gateway::new(&settings.data_dir, connector.clone(), shutdown.clone())?;
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
        metrics: Metrics::new(),
        halt: Halt::new(halt_at),
        shutdown,
    }))
}

/// Runs until it is told to stop. Listeners that were passed on to this process are used as they are.
pub(crate) async fn run(settings: Settings, halt_at: Option<HaltPoint>, inherited: Inherited) -> anyhow::Result<()> {
    let app = build(settings, halt_at)?;
    let listeners = bind(&app.settings, &inherited)?;
    app.shutdown.spawn(Arc::clone(&app.ca).keep_fresh());
    app.shutdown.spawn(reconcile::run(Arc::clone(&app)));

    let [api, ui, agents] = listeners.addresses()?;
    let handle = Handle::new();
    let plain = |listener| -> io::Result<_> {
        Ok(axum_server::from_tcp(listener)?
            .acceptor(NoDelayAcceptor::new())
            .handle(handle.clone()))
    };
    let secure = axum_server::from_tcp(listeners.agents)?
        .acceptor(RustlsAcceptor::new(app.ca.server_config()).acceptor(NoDelayAcceptor::new()))
        .handle(handle.clone());
    let servers = async {
        tokio::try_join!(
            patient(plain(listeners.api)?).serve(service(router::api(&app))),
            patient(plain(listeners.ui)?).serve(service(router::ui(&app))),
            patient(secure).serve(service(router::agents(&app))),
        )
    };
    tokio::pin!(servers);
    tracing::info!("serving the API on {api}, browsers on {ui}, node agents on {agents}");
    // Whoever connects from now on waits in the listeners' queues at most.
    listen::ready();
    tokio::select! {
        ended = &mut servers => { ended.context("a listener ended")?; }
        signalled = Shutdown::signalled() => signalled.context("signals cannot be received")?,
    }

    tracing::info!("stopping");
    listen::stopping();
    let begin = tokio::time::Instant::now();
    app.shutdown.token.cancel();
    handle.graceful_shutdown(Some(STOP_DEADLINE));
    drop(tokio::time::timeout(STOP_DEADLINE + Duration::from_millis(500), servers).await);
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

/// Bounds how long a client may take for its headers.
fn patient<A>(mut server: Server<SocketAddr, A>) -> Server<SocketAddr, A> {
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(NEXT_REQUEST);
    server.first_request_timeout(FIRST_REQUEST)
}

fn service(routes: Router) -> IntoMakeServiceWithConnectInfo<Router, SocketAddr> {
    routes.into_make_service_with_connect_info()
}
