//! Short words for what suites ask the raw Engine API.

use std::collections::HashMap;

use bollard::{
    Docker,
    models::{ContainerInspectResponse, Network},
    query_parameters::{ListContainersOptions, ListNetworksOptions, RemoveContainerOptions},
};

/// Label of everything that the product makes in Docker.
pub const LABEL: &str = "crabshack.instance";

fn ours() -> Option<HashMap<String, Vec<String>>> {
    Some(HashMap::from([("label".to_owned(), vec![LABEL.to_owned()])]))
}

/// The product's containers, in every state, in full.
pub async fn containers(engine: &Docker) -> anyhow::Result<Vec<ContainerInspectResponse>> {
    let options = ListContainersOptions {
        all: true,
        filters: ours(),
        ..ListContainersOptions::default()
    };
    let mut containers = Vec::new();
    for summary in engine.list_containers(Some(options)).await? {
        containers.push(
            engine
                .inspect_container(summary.id.as_deref().unwrap_or_default(), None)
                .await?,
        );
    }
    Ok(containers)
}

/// The container of one instance.
pub async fn container(engine: &Docker, instance_id: &str) -> anyhow::Result<ContainerInspectResponse> {
    Ok(engine.inspect_container(&format!("cs-{instance_id}"), None).await?)
}

/// The product's networks.
pub async fn networks(engine: &Docker) -> anyhow::Result<Vec<Network>> {
    Ok(engine.list_networks(Some(ListNetworksOptions { filters: ours() })).await?)
}

/// Removes every container and network of the product's.
pub async fn wipe(engine: &Docker) -> anyhow::Result<()> {
    for container in containers(engine).await? {
        remove_container(engine, container.id.as_deref().unwrap_or_default()).await?;
    }
    for network in networks(engine).await? {
        engine.remove_network(network.id.as_deref().unwrap_or_default()).await?;
    }
    Ok(())
}

/// Kills and removes a container.
pub async fn remove_container(engine: &Docker, name: &str) -> anyhow::Result<()> {
    let options = RemoveContainerOptions {
        force: true,
        v: true,
        ..RemoveContainerOptions::default()
    };
    Ok(engine.remove_container(name, Some(options)).await?)
}

/// True while its process runs.
pub fn is_running(container: &ContainerInspectResponse) -> bool {
    container.state.as_ref().and_then(|state| state.running).unwrap_or(false)
}

/// When its process was started, as Docker says it.
pub fn started_at(container: &ContainerInspectResponse) -> Option<String> {
    container.state.as_ref()?.started_at.clone().map(|at| at.to_string())
}
