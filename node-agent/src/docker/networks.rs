//! One network per instance.

use bollard::{models, query_parameters::ListNetworksOptionsBuilder};
use crabshack_shared::ids::InstanceId;
use ipnet::Ipv4Net;

use super::{
    Docker, DockerError, NORMAL, Network, body, docker_name,
    error::{message, status},
    labels,
};
use crate::link::Link;

impl Docker {
    /// Makes the network of a link. Idempotent; another network under its name is an error.
    pub(crate) async fn create_network(&self, link: &Link) -> Result<(), DockerError> {
        // Old engines take a second network of the same name, so look first.
        if self.check_network(link).await? {
            return Ok(());
        }
        let request = body::network(link);
        let result = self
            .call(NORMAL, |client| async move { client.create_network(request).await })
            .await;
        let Err(error) = result else { return Ok(()) };
        let text = message(&error);
        if text.contains("overlaps with other one") || text.contains("cannot create network") && text.contains("conflicts with") {
            return Err(DockerError::AddressInUse {
                instance: link.instance,
                message: text,
            });
        }
        // Somebody was faster.
        if status(&error) == Some(409) && self.check_network(link).await? {
            return Ok(());
        }
        Err(DockerError::of("create the network", error))
    }

    /// Removes the network of an instance. Idempotent.
    pub(crate) async fn remove_network(&self, instance: InstanceId) -> Result<(), DockerError> {
        for network in self.networks_named(instance).await? {
            let name = network.name.as_deref().unwrap_or_default();
            let (Some(docker_id), Some(_)) = (network.id, labels::network(name, network.labels.as_ref())) else {
                continue;
            };
            let result = self
                .call(NORMAL, |client| async move { client.remove_network(&docker_id).await })
                .await;
            match result {
                Ok(()) => {}
                Err(error) if status(&error) == Some(404) => {}
                Err(error) if message(&error).contains("has active endpoints") => {
                    return Err(DockerError::Conflict {
                        operation: "remove the network",
                        instance,
                        message: message(&error),
                    });
                }
                Err(error) => return Err(DockerError::of("remove the network", error)),
            }
        }
        Ok(())
    }

    /// Whether the network of a link is there; an error when what is there is not it.
    async fn check_network(&self, link: &Link) -> Result<bool, DockerError> {
        let found = self.networks_named(link.instance).await?;
        let Some(network) = found.first() else { return Ok(false) };
        match difference(network, link) {
            None => Ok(true),
            Some(difference) => Err(DockerError::NetworkDiffers {
                instance: link.instance,
                difference,
            }),
        }
    }

    async fn networks_named(&self, instance: InstanceId) -> Result<Vec<models::Network>, DockerError> {
        let name = docker_name(instance);
        let options = ListNetworksOptionsBuilder::default()
            .filters(&[("name", vec![name.as_str()])].into())
            .build();
        let mut networks = self
            .call(NORMAL, |client| async move { client.list_networks(Some(options)).await })
            .await
            .map_err(|error| DockerError::of("list networks", error))?;
        // The filter takes a part of a name, too.
        networks.retain(|network| network.name.as_deref() == Some(name.as_str()));
        Ok(networks)
    }
}

/// Reads a network as Docker lists it; none: not ours.
pub(super) fn read(network: &models::Network) -> Option<Network> {
    let name = network.name.as_deref().unwrap_or_default();
    Some(Network {
        instance: labels::network(name, network.labels.as_ref())?,
        subnet: subnet(network),
        bridge: bridge(network),
    })
}

fn subnet(network: &models::Network) -> Option<Ipv4Net> {
    let config = network.ipam.as_ref()?.config.as_ref()?.first()?;
    config.subnet.as_ref()?.parse().ok()
}

/// Interface name of a network's bridge; empty when Docker chose one.
pub(super) fn bridge(network: &models::Network) -> String {
    let options = network.options.as_ref();
    options
        .and_then(|options| options.get(body::BRIDGE_NAME))
        .cloned()
        .unwrap_or_default()
}

fn difference(network: &models::Network, link: &Link) -> Option<String> {
    let name = network.name.as_deref().unwrap_or_default();
    if labels::network(name, network.labels.as_ref()) != Some(link.instance) {
        Some("does not carry our label".to_owned())
    } else if bridge(network) != link.bridge {
        Some(format!("its bridge is `{}` and not `{}`", bridge(network), link.bridge))
    } else if subnet(network) != Some(link.subnet) {
        let has = subnet(network).map_or_else(|| "none".to_owned(), |subnet| subnet.to_string());
        Some(format!("its subnet is {has} and not {}", link.subnet))
    } else {
        None
    }
}
