//! What an instance may reach. The only user of nft, of routing rules and of iptables.
//!
//! One constant table (`egress/skeleton.rs`); an instance is elements of its sets
//! (`egress/render.rs`), placed before its container starts. Without elements nothing leaves.

mod command;
mod host;
mod read;
mod render;
mod rule;
mod skeleton;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    ops::AddAssign,
};

use crabshack_shared::telemetry::Chain;
use ipnet::Ipv4Net;
use serde::Deserialize;
use tokio::sync::Mutex;

use self::{
    command::{CommandError, Tool, run},
    read::{Constant, Table, Unreadable},
    render::Binding,
    rule::{Command, FAMILY, TABLE},
};
use crate::link::{Link, Pool};

/// What the ruleset depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EgressSettings {
    /// Addresses of the instances, and of the node where they talk to it.
    pub(crate) pool: Pool,
}

/// Why egress control could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EgressError {
    /// Somebody else uses addresses of the pool.
    #[error("the pool {pool} overlaps {what}: choose another private network with CRABSHACK_POOL")]
    PoolTaken {
        /// Ours.
        pool: Ipv4Net,
        /// Theirs, in words.
        what: String,
    },
    /// A tool failed.
    #[error("the node's network could not be changed or read")]
    Command(#[from] CommandError),
    /// A listing of the table makes no sense to us.
    #[error("the table `{FAMILY} {TABLE}` could not be read")]
    Listing(#[from] Unreadable),
    /// `ip` printed something else than its JSON.
    #[error("cannot understand what `ip -j` prints")]
    Routing {
        #[source]
        source: serde_json::Error,
    },
    /// A transaction could not be written down.
    #[error("cannot write nft commands as JSON")]
    Render(#[source] serde_json::Error),
    /// A kernel setting could not be read or written.
    #[error("cannot set {path}: the node agent must run as root in the node's own network")]
    Setting {
        /// Of the setting.
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Count {
    /// How many packets.
    pub(crate) packets: u64,
    /// How many bytes, headers included.
    pub(crate) bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What became of one instance's packets since it was armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BridgeCounters {
    /// Let through, in both directions.
    pub(crate) allowed: Count,
    /// Refused by its policy, or sent under another address than its own.
    pub(crate) denied: Count,
}

/// What the ruleset counted. Everything starts at zero again when the table is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EgressCounters {
    /// By bridge.
    pub(crate) bridges: BTreeMap<String, BridgeCounters>,
    /// Dropped: sent under an address that the sender does not have.
    pub(crate) spoofed: Count,
    /// Dropped: IPv6 from an instance.
    pub(crate) ipv6: Count,
    /// Dropped: from a bridge of ours that is not armed.
    pub(crate) unknown: Count,
    /// Refused: somebody on the node, not root, dialling an instance.
    pub(crate) local: Count,
}

/// Egress control of this node.
#[derive(Debug)]
pub(crate) struct Egress {
    pool: Pool,
    /// Held while anything is changed: two changes never interleave.
    writer: Mutex<()>,
    /// What had to be put back since somebody last asked.
    repaired: std::sync::Mutex<BTreeSet<&'static str>>,
    /// How this nft lists the constant part of our table, if not in the words in which we write it.
    wording: std::sync::Mutex<Option<Constant>>,
}

impl Egress {
    /// Puts everything in place that is the same for all instances. What is armed stays armed and no
    /// flow is cut, also when the table of another version is replaced.
    ///
    /// # Errors
    /// When a tool is missing, when the pool overlaps a network that is not ours, or when the node's
    /// network cannot be changed.
    pub(crate) async fn install(settings: EgressSettings) -> Result<Self, EgressError> {
        let egress = Self {
            pool: settings.pool,
            writer: Mutex::new(()),
            repaired: std::sync::Mutex::default(),
            wording: std::sync::Mutex::default(),
        };
        // Asked first, so that a node without the tools is refused before anything is changed.
        egress.table().await?;
        host::check_tools().await?;
        host::check_pool(egress.pool).await?;
        egress.repair().await?;
        // At a start everything is missing that the last boot had.
        egress.take_repairs();
        Ok(egress)
    }

    /// Bridges that are armed now, completely, with the addresses that may speak there.
    pub(crate) async fn armed(&self) -> Result<BTreeMap<String, BTreeSet<Ipv4Addr>>, EgressError> {
        let table = self.table().await?.unwrap_or_default();
        let armed = table.armed(self.pool.service_address());
        Ok(armed.into_iter().map(|binding| (binding.bridge, binding.addresses)).collect())
    }

    /// Lets this instance out as its policy says. One transaction, idempotent; the bridge need not
    /// exist yet.
    ///
    /// # Errors
    /// Also when the table is gone; [`Egress::repair`] brings it back.
    pub(crate) async fn arm(&self, link: &Link) -> Result<(), EgressError> {
        let _writing = self.writer.lock().await;
        let commands = render::arm(self.pool.service_address(), &link.into());
        if let Err(error) = apply(&commands).await {
            // Something else is there under this bridge: exchanged in one transaction.
            let elements = self.table().await?.unwrap_or_default().elements_of(&link.bridge);
            if elements.is_empty() {
                return Err(error);
            }
            apply(&[render::delete(&elements), commands].concat()).await?;
        }
        host::strict_sources(&link.bridge).await?;
        Ok(())
    }

    /// Cuts this instance off, live flows included, and forgets its connections. Idempotent.
    pub(crate) async fn disarm(&self, link: &Link) -> Result<(), EgressError> {
        self.remove_elements(link).await?;
        // Not under the lock: with many connections it takes long, and others want to be armed.
        for address in link.addresses() {
            host::forget_connections(address).await?;
        }
        Ok(())
    }

    /// Puts back what somebody removed. True if anything was missing; then some links may have to
    /// be armed again ([`Egress::armed`] says which are left).
    pub(crate) async fn repair(&self) -> Result<bool, EgressError> {
        let _writing = self.writer.lock().await;
        // The guard stands before forwarding is switched on.
        let missing = [
            ("reverse paths by mark", host::ensure_marked_reverse_paths().await?),
            ("routing guard", host::ensure_guard(self.pool).await?),
            ("service address", host::ensure_service_address(self.pool).await?),
            ("table", self.ensure_table().await?),
            ("forwarding", host::ensure_forwarding().await?),
            ("Docker's accepts", host::ensure_docker_accepts().await?),
        ];
        // A second line only, and missing on every new bridge: not worth a word.
        host::ensure_strict_sources().await?;
        for (what, _) in missing.iter().filter(|(_, missing)| *missing) {
            tracing::info!(what, "put in place what egress control needs");
            self.repaired().insert(what);
        }
        Ok(missing.iter().any(|(_, missing)| *missing))
    }

    /// What had to be put back since this was asked last.
    pub(crate) fn take_repairs(&self) -> BTreeSet<&'static str> {
        std::mem::take(&mut *self.repaired())
    }

    /// Rules of others that are asked before ours and may cut instances off, as iptables writes them.
    pub(crate) async fn rules_in_the_way(&self) -> Result<Vec<String>, EgressError> {
        host::rules_in_the_way().await
    }

    /// Whether the bridge of a link is on the node, whether Docker knows of it or not.
    pub(crate) fn has_bridge(&self, link: &Link) -> bool {
        host::has_interface(&link.bridge)
    }

    /// Removes the bridge of a link, which Docker has let go of. Idempotent.
    pub(crate) async fn remove_bridge(&self, link: &Link) -> Result<(), EgressError> {
        if self.has_bridge(link) {
            host::remove_interface(&link.bridge).await?;
        }
        Ok(())
    }

    /// Bridges that any element of the ruleset names, armed completely or not.
    pub(crate) async fn bridges(&self) -> Result<BTreeSet<String>, EgressError> {
        Ok(self.table().await?.unwrap_or_default().bridges())
    }

    /// Takes everything out of the ruleset that names this bridge; for bridges of no link. Idempotent.
    pub(crate) async fn forget_bridge(&self, bridge: &str) -> Result<(), EgressError> {
        let _writing = self.writer.lock().await;
        let elements = self.table().await?.unwrap_or_default().elements_of(bridge);
        if elements.is_empty() {
            return Ok(());
        }
        apply(&render::delete(&elements)).await
    }

    /// What of the system's tools cannot be used, for people.
    pub(crate) async fn missing_programs() -> Vec<String> {
        let mut missing = Vec::new();
        for tool in [Tool::Nft, Tool::Ip, Tool::Iptables, Tool::Conntrack] {
            let version = if tool == Tool::Ip { "-Version" } else { "--version" };
            if let Err(error) = run(tool, &[version], None).await {
                missing.push(Chain(&error).to_string());
            }
        }
        missing
    }

    /// What the ruleset counted so far.
    pub(crate) async fn counters(&self) -> Result<EgressCounters, EgressError> {
        Ok(self.table().await?.unwrap_or_default().counters())
    }

    async fn remove_elements(&self, link: &Link) -> Result<(), EgressError> {
        let _writing = self.writer.lock().await;
        let Err(error) = apply(&render::disarm(self.pool.service_address(), &Binding::from(link))).await else {
            return Ok(());
        };
        // The table is gone, or holds something else under this bridge: see what is there.
        let elements = self.table().await?.unwrap_or_default().elements_of(&link.bridge);
        tracing::debug!(bridge = link.bridge, error = %Chain(&error), "disarming by what the table holds");
        if elements.is_empty() {
            return Ok(());
        }
        apply(&render::delete(&elements)).await
    }

    fn repaired(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.repaired.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn ensure_table(&self) -> Result<bool, EgressError> {
        let pool = self.pool.network();
        let service = self.pool.service_address();
        let table = self.table().await?.unwrap_or_default();
        let (expected, found) = (Constant::of(&skeleton::skeleton(pool))?, table.constant());
        if found == expected || self.wording().as_ref() == Some(&found) {
            return Ok(false);
        }
        apply(&render::replace(pool, service, &table.armed(service))).await?;
        // Another version of nft may list it in other words: they are what stays the same.
        let placed = self.table().await?.unwrap_or_default().constant();
        *self.wording() = (placed != expected && placed.resembles(&expected)).then_some(placed);
        Ok(true)
    }

    fn wording(&self) -> std::sync::MutexGuard<'_, Option<Constant>> {
        self.wording.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The table in the kernel, if there is one.
    async fn table(&self) -> Result<Option<Table>, EgressError> {
        match run(Tool::Nft, &["-j", "list", "table", FAMILY, TABLE], None).await {
            Ok(listing) => Ok(Some(Table::parse(&listing)?)),
            Err(error) if error.says("No such file or directory") => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// All of these commands, or none.
async fn apply(commands: &[Command]) -> Result<(), EgressError> {
    let document = rule::document(commands).map_err(EgressError::Render)?;
    run(Tool::Nft, &["-j", "-f", "-"], Some(&document)).await?;
    Ok(())
}
