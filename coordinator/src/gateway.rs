//! Carries browser and API traffic to the agents: HTTP, event streams, WebSockets and any other
//! upgrade, streamed both ways.
//!
//! | file | |
//! |---|---|
//! | `host` | the UI listener: `{name}.{zone}` leads to the instance of that name |
//! | `api` | `ANY /gateway/{name}/*` of the public API |
//! | `entry` | who may come in: token, bearer or cookie (pure) |
//! | `ticket`, `cookies` | the cookie, what is signed into it, and the agents' own cookies (pure) |
//! | `origin` | which web pages may act with a cookie (pure) |
//! | `headers`, `upstream` | what is taken off a message and what an agent is told (pure) |
//! | `proxy`, `upgrade`, `tunnels` | the forwarding |
//! | `frames` | a WebSocket that ends well when we or the node agent restart |
//! | `sessions` | what a token has opened, to close it with the token |
//! | `refusal`, `page` | what is answered instead |
//!
//! Three things never reach an agent: our cookie, the instance's token, the admin secret. And
//! nothing that says who is asking reaches it unless it was said here.

pub(crate) mod api;
mod cookies;
mod entry;
mod frames;
mod headers;
pub(crate) mod host;
mod origin;
mod page;
mod proxy;
mod refusal;
mod sessions;
mod ticket;
mod tunnels;
mod upgrade;
mod upstream;

use std::path::Path;

use crabshack_shared::{
    ids::{InstanceId, NodeId},
    secret::Secret,
    shutdown::Shutdown,
};
use tokio_util::sync::CancellationToken;

use crate::agents::connect::Connector;

pub(crate) use ticket::TicketKeyError;

/// What all requests through the gateway share.
pub(crate) struct Gateway {
    tickets: ticket::TicketKey,
    tunnels: tunnels::Tunnels,
    sessions: sessions::Sessions,
    shutdown: Shutdown,
}

impl Gateway {
    /// Reads the key of the tickets from the data folder, or makes one there.
    ///
    /// # Errors
    /// When the key file cannot be read or made.
    pub(crate) fn new(data_dir: &Path, connector: Connector, shutdown: Shutdown) -> Result<Self, TicketKeyError> {
        Ok(Self {
            tickets: ticket::TicketKey::load_or_create(&data_dir.join("gateway.key"))?,
            tunnels: tunnels::Tunnels::new(connector, shutdown.token.clone()),
            sessions: sessions::Sessions::default(),
            shutdown,
        })
    }

    /// Cancelled when the token with which something was opened ends.
    pub(crate) fn session(&self, instance: InstanceId, token: &Secret) -> CancellationToken {
        self.sessions.enter(instance, token)
    }

    /// Closes what earlier tokens of an instance have opened. Call it after the new one is on disk.
    pub(crate) fn rotated(&self, instance: InstanceId, token: &Secret) {
        self.sessions.rotated(instance, token);
    }

    /// Lets go of the open tunnels to a node: each ends with the request that it serves, and no other takes it.
    pub(crate) fn node_stops(&self, node: &NodeId) {
        self.tunnels.node_stops(node);
    }
}

#[cfg(test)]
mod tests;
