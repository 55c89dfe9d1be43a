//! Addresses: one /29 of the pool per instance, known before Docker makes anything, so that the
//! egress rules can stand before the first packet.

use std::net::Ipv4Addr;

use crabshack_shared::ids::InstanceId;
use ipnet::Ipv4Net;
use serde::Serialize;

/// Prefix of every bridge of ours; the ruleset drops what comes from such a bridge and is not known.
pub(crate) const BRIDGE_PREFIX: &str = "cs-";
/// Prefix length of one link: room for a gateway and five containers.
const LINK_PREFIX_LENGTH: u8 = 29;
/// The first address is the network's, the second the gateway's.
const FIRST_CONTAINER: u32 = 2;

/// Why a pool was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    /// Too small or not private.
    #[error("the pool {0} must be a private network of /28 or larger")]
    Unusable(Ipv4Net),
    /// Every link is taken.
    #[error("the pool {0} has no free link left: give the node a larger CRABSHACK_POOL")]
    Exhausted(Ipv4Net),
}

/// The node's own addresses for instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool(Ipv4Net);

impl Pool {
    /// Checks that a network can be a pool.
    pub(crate) fn new(network: Ipv4Net) -> Result<Self, PoolError> {
        let network = network.trunc();
        if network.prefix_len() < LINK_PREFIX_LENGTH && network.network().is_private() && network.broadcast().is_private() {
            Ok(Self(network))
        } else {
            Err(PoolError::Unusable(network))
        }
    }

    /// All of it.
    pub(crate) fn network(self) -> Ipv4Net {
        self.0
    }

    /// The one address of the node that instances may talk to; lives on `lo`.
    pub(crate) fn service_address(self) -> Ipv4Addr {
        offset(self.0.network(), 1)
    }

    /// How many links there are; indices run from 1, the first /29 holds the service address.
    pub(crate) fn links(self) -> u32 {
        (1 << (LINK_PREFIX_LENGTH - self.0.prefix_len())) - 1
    }

    /// The link of an instance at an index.
    pub(crate) fn link(self, instance: InstanceId, index: u32) -> Result<Link, PoolError> {
        if index == 0 || index > self.links() {
            return Err(PoolError::Exhausted(self.0));
        }
        let base = offset(self.0.network(), index << (32 - LINK_PREFIX_LENGTH));
        Ok(Link {
            instance,
            bridge: format!("{BRIDGE_PREFIX}{}", instance.short()),
            subnet: Ipv4Net::new_assert(base, LINK_PREFIX_LENGTH),
            gateway: offset(base, 1),
            address: offset(base, FIRST_CONTAINER),
            sidecars: Vec::new(),
        })
    }
}

fn offset(address: Ipv4Addr, by: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits().wrapping_add(by))
}

/// An instance's own network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Link {
    /// Whose.
    pub(crate) instance: InstanceId,
    /// Interface name of the bridge, `cs-` and 12 hex digits (IFNAMSIZ allows 15 characters).
    pub(crate) bridge: String,
    /// Its /29.
    pub(crate) subnet: Ipv4Net,
    /// The node's address on the bridge.
    pub(crate) gateway: Ipv4Addr,
    /// The main container's address.
    pub(crate) address: Ipv4Addr,
    /// The addresses of the containers beside it.
    #[serde(skip)]
    pub(crate) sidecars: Vec<Ipv4Addr>,
}

impl Link {
    /// The same with containers at these positions beside the main one.
    pub(crate) fn shared_by(mut self, positions: impl IntoIterator<Item = u32>) -> Self {
        let beside = positions.into_iter().filter(|position| *position != 0);
        self.sidecars = beside.map(|position| self.address_at(position)).collect();
        self
    }

    /// The address of the container at a position; 0 is the main one.
    pub(crate) fn address_at(&self, position: u32) -> Ipv4Addr {
        offset(self.subnet.network(), FIRST_CONTAINER + position)
    }

    /// Every address that may speak on it.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        std::iter::once(self.address).chain(self.sidecars.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool__should_give_disjoint_links_behind_the_service_address() {
        let pool = Pool::new("10.201.0.0/16".parse().unwrap()).unwrap();
        assert_eq!(pool.service_address(), Ipv4Addr::new(10, 201, 0, 1));
        assert_eq!(pool.links(), 8191);
        let id = InstanceId::random();
        let first = pool.link(id, 1).unwrap();
        assert_eq!(first.subnet.to_string(), "10.201.0.8/29");
        assert_eq!(first.gateway, Ipv4Addr::new(10, 201, 0, 9));
        assert_eq!(first.address, Ipv4Addr::new(10, 201, 0, 10));
        assert_eq!(first.bridge.len(), 15);
        assert_eq!(first.addresses().collect::<Vec<_>>(), [first.address]);
        let shared = first.clone().shared_by([0, 1]);
        assert_eq!(shared.sidecars, [Ipv4Addr::new(10, 201, 0, 11)]);
        assert_eq!(
            [shared.address_at(0), shared.address_at(1)],
            *shared.addresses().collect::<Vec<_>>()
        );
        assert!(pool.network().contains(&pool.link(id, 8191).unwrap().subnet));
        assert!(pool.link(id, 0).is_err() && pool.link(id, 8192).is_err());
    }

    #[test]
    fn pool__should_refuse_public_or_tiny_networks() {
        for network in ["8.8.8.0/24", "10.0.0.0/29", "0.0.0.0/0"] {
            assert!(Pool::new(network.parse().unwrap()).is_err(), "{network}");
        }
    }
}
