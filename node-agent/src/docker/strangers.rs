//! What only looks like ours in Docker: named like it, and without our label.

use std::collections::HashMap;

use bollard::query_parameters::{ListContainersOptionsBuilder, ListNetworksOptionsBuilder};

use super::{Docker, DockerError, NORMAL, labels, networks};
use crate::link::BRIDGE_PREFIX;

/// Something of Docker's with a name like ours that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stranger {
    pub(crate) kind: StrangerKind,
    /// Docker's name for it.
    pub(crate) name: String,
    /// The interface of a network; empty: Docker chose one, or it is a container.
    pub(crate) bridge: String,
}

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StrangerKind {
    Container,
    Network,
}

impl Docker {
    /// Containers and networks that are named like ours and do not carry our label.
    pub(crate) async fn strangers(&self) -> Result<Vec<Stranger>, DockerError> {
        let filters = HashMap::from([("name", vec![BRIDGE_PREFIX])]);
        let listed_networks = ListNetworksOptionsBuilder::default().filters(&filters).build();
        let listed_containers = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let (containers, networks) = tokio::try_join!(
            self.call(NORMAL, |client| async move {
                client.list_containers(Some(listed_containers)).await
            }),
            self.call(
                NORMAL,
                |client| async move { client.list_networks(Some(listed_networks)).await }
            ),
        )
        .map_err(|error| DockerError::of("list containers and networks", error))?;
        // The filter takes a part of a name, too.
        let like_ours = |name: &str| name.starts_with(BRIDGE_PREFIX);
        let containers = containers.iter().filter_map(|container| {
            let name = container.names.iter().flatten().next()?.trim_start_matches('/');
            let ours = labels::container(name, container.labels.as_ref()).is_some();
            (like_ours(name) && !ours).then(|| Stranger {
                kind: StrangerKind::Container,
                name: name.to_owned(),
                bridge: String::new(),
            })
        });
        let networks = networks.iter().filter_map(|network| {
            let name = network.name.as_deref()?;
            (like_ours(name) && networks::read(network).is_none()).then(|| Stranger {
                kind: StrangerKind::Network,
                name: name.to_owned(),
                bridge: networks::bridge(network),
            })
        });
        Ok(containers.chain(networks).collect())
    }
}
