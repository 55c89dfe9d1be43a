//! What every handler and task of the coordinator shares.

use std::sync::Arc;

use crabshack_shared::{
    halt::Halt,
    ids::{InstanceId, NodeId},
    instance::{InstanceName, InstanceStatus, ServiceType},
    secret::Secret,
    services::Profile,
    shutdown::Shutdown,
};

use crate::{
    agents::{connect::Connector, registry::Registry},
    api::instances::exec::Desk,
    ca::Ca,
    config::Settings,
    events::Events,
    gateway::Gateway,
    images::Images,
    metrics::Metrics,
    placement::Placement,
    reconcile::Signal,
    status,
    store::{InstanceRecord, Store, StoreError},
};

/// The shared state; handlers get it as `State<Arc<App>>`.
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    /// Tells streams which instance changed.
    pub(crate) events: Events,
    /// What is known of the nodes since this start.
    pub(crate) registry: Registry,
    /// Wakes the reconciler.
    pub(crate) reconciler: Signal,
    pub(crate) placement: Box<dyn Placement>,
    pub(crate) ca: Arc<Ca>,
    /// The only way to the nodes' data plane.
    pub(crate) connector: Connector,
    pub(crate) gateway: Gateway,
    /// Asks registries.
    pub(crate) images: Images,
    /// Commands that are to be run in instances.
    pub(crate) exec: Desk,
    pub(crate) metrics: Metrics,
    pub(crate) halt: Halt,
    pub(crate) shutdown: Shutdown,
}

/// What the gateway needs to know of a living instance.
#[derive(Debug, Clone)]
pub(crate) struct GatewayTarget {
    pub(crate) id: InstanceId,
    pub(crate) service_type: ServiceType,
    /// Opens the instance's gateway.
    pub(crate) token: Secret,
    /// The agent's own token, which visitors do not know.
    pub(crate) agent_token: Secret,
    pub(crate) profile: Profile,
    /// Under which browsers see it, like `http://agent-1.localhost:3000`.
    pub(crate) origin: String,
    /// None: not placed, or its node was thrown out or never reported.
    pub(crate) node: Option<NodeDial>,
    pub(crate) status: InstanceStatus,
    /// True while it is wanted and answers.
    pub(crate) ready: bool,
}

/// How to dial a node's data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeDial {
    /// Whose certificate must answer.
    pub(crate) id: NodeId,
    /// `host:port`.
    pub(crate) address: String,
}

impl App {
    /// Tells every node that has or had an instance. Call it after the change is on disk.
    pub(crate) fn orders_changed(&self, record: &InstanceRecord) {
        for node in record.assignment.iter().chain(&record.left) {
            self.registry.orders_changed(node);
        }
    }

    /// What the gateway needs to know of a living instance; none: no such name.
    pub(crate) async fn gateway_target(&self, name: &InstanceName) -> Result<Option<GatewayTarget>, StoreError> {
        // Three reads by key in one snapshot: microseconds, so not worth a blocking task.
        let view = self.store.reading()?;
        let Some(record) = view.instance_named(name)? else {
            return Ok(None);
        };
        let observation = view.observation(record.id)?;
        let node = match &record.assignment {
            Some(node) => view.node(node)?.and_then(|node| node.dial()),
            None => None,
        };
        let alive = record.assignment.as_ref().is_none_or(|node| self.registry.is_alive(node));
        let status = status::of(&record, observation.as_ref(), alive);
        let secrets = self.store.secrets(&record)?;
        Ok(Some(GatewayTarget {
            id: record.id,
            agent_token: secrets.agent_token().clone(),
            token: secrets.token,
            profile: record.spec.profile,
            origin: self.settings.origin(name),
            node,
            status: status.word,
            ready: status.ready,
            service_type: record.spec.service_type,
        }))
    }
}
