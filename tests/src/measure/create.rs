//! `create`: create-to-ready through the API against the same by hand through the Engine API.

use std::{
    fs,
    os::unix::fs::chown,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkCreateRequest,
    NetworkInspect, NetworkingConfig,
};

use super::Figures;
use crate::{
    client::stub,
    cluster::{Cluster, Who},
    command, engine,
    machine::Machine,
    must,
};

const RAW_SUBNET: &str = "10.202.0.0/29";
const RAW_GATEWAY: &str = "10.202.0.1";
const RAW_ADDRESS: &str = "10.202.0.2";
const RAW_NAME: &str = "raw0";
const RAW_SSH_PORT: &str = "18022";
/// Pause between two looks of the raw variant: as fast as any prober.
const LOOK: Duration = Duration::from_millis(1);

/// Alternating pairs, then the memory of both processes with `instances` instances.
pub async fn figures(machine: &Machine, pairs: usize, instances: usize) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    Cluster::with(machine, async |cluster| {
        // Its container is the model of the raw variant. It also warms every cache for both.
        cluster.client.create(&stub("model")).await?;
        let model = Model::of(cluster, "model").await?;
        cluster.client.delete("model", true).await?;
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            raw.push(model.run(machine).await?);
            let name = format!("pair-{pair}");
            let began = Instant::now();
            cluster.client.create(&stub(&name)).await?;
            ours.push(milliseconds(began));
            cluster.client.delete(&name, true).await?;
        }
        let (ours, raw) = (must::median(ours), must::median(raw));
        figures.add("pairs", pairs);
        figures.add_rounded("create_ms", ours);
        figures.add_rounded("raw_ms", raw);
        figures.add_rounded("ratio_to_raw", ours / raw);
        for number in 0..instances {
            cluster.client.create(&stub(&format!("memory-{number}"))).await?;
        }
        figures.add("instances", instances);
        figures.add_rounded("agent_rss_mb", cluster.process(Who::NodeAgent)?.resident_mebibytes()?);
        figures.add_rounded("coordinator_rss_mb", cluster.process(Who::Coordinator)?.resident_mebibytes()?);
        Ok(())
    })
    .await?;
    Ok(figures)
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}

/// What the product made, to be made again by hand.
struct Model {
    container: ContainerInspectResponse,
    network: NetworkInspect,
    files: tempfile::TempDir,
}

impl Model {
    async fn of(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<Self> {
        let docker = cluster.machine.dockerd.engine();
        let id = must::text(&cluster.client.instance(name).await?, "instance_id")?.to_owned();
        let folder = cluster.data(Who::NodeAgent).join("instances").join(&id);
        let files = tempfile::tempdir_in(cluster.machine.folder())?;
        command::run(&format!("cp -a {} {}", folder.join("etc").display(), files.path().display()))?;
        Ok(Self {
            container: engine::container(docker, &id).await?,
            network: docker.inspect_network(&format!("cs-{id}"), None).await?,
            files,
        })
    }

    /// Folder, network, container with the same flags and port, start, first answer; in milliseconds.
    async fn run(&self, machine: &Machine) -> anyhow::Result<f64> {
        let docker = machine.dockerd.engine();
        let (network, container) = (self.network_request()?, self.container_request()?);
        let home = self.files.path().join("home");
        let http = reqwest::Client::builder().no_proxy().build()?;
        let began = Instant::now();
        fresh(&home)?;
        docker.create_network(network).await?;
        let id = docker.create_container(None, container).await?.id;
        docker.start_container(&id, None).await?;
        let url = format!("http://{RAW_ADDRESS}:18789/healthz");
        while !http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            ensure!(began.elapsed() < must::PATIENCE, "the raw container does not answer");
            tokio::time::sleep(LOOK).await;
        }
        let took = milliseconds(began);
        engine::remove_container(docker, &id).await?;
        docker.remove_network(RAW_NAME).await?;
        Ok(took)
    }

    fn network_request(&self) -> anyhow::Result<NetworkCreateRequest> {
        let mut options = self.network.options.clone().context("a network without options")?;
        options.insert("com.docker.network.bridge.name".to_owned(), RAW_NAME.to_owned());
        Ok(NetworkCreateRequest {
            name: RAW_NAME.to_owned(),
            driver: self.network.driver.clone(),
            options: Some(options),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(RAW_SUBNET.to_owned()),
                    gateway: Some(RAW_GATEWAY.to_owned()),
                    ..IpamConfig::default()
                }]),
                ..Ipam::default()
            }),
            ..NetworkCreateRequest::default()
        })
    }

    fn container_request(&self) -> anyhow::Result<ContainerCreateBody> {
        // The two types differ; what both know has the same JSON.
        let config = serde_json::to_value(self.container.config.as_ref().context("no config")?)?;
        let mut body: ContainerCreateBody = serde_json::from_value(config)?;
        let mut host = self.container.host_config.clone().context("no host config")?;
        host.network_mode = Some(RAW_NAME.to_owned());
        for bindings in host
            .port_bindings
            .iter_mut()
            .flat_map(|bindings| bindings.values_mut())
            .flatten()
            .flatten()
        {
            bindings.host_port = Some(RAW_SSH_PORT.to_owned());
        }
        for mount in host.mounts.iter_mut().flatten() {
            let source = if mount.read_only == Some(true) { "etc" } else { "home" };
            mount.source = Some(self.files.path().join(source).display().to_string());
        }
        for bind in host.binds.iter_mut().flatten() {
            let (_, target) = bind.split_once(':').context("an odd bind")?;
            let source = if target.ends_with(":ro") || target.contains("ro,") {
                "etc"
            } else {
                "home"
            };
            *bind = format!("{}:{target}", self.files.path().join(source).display());
        }
        body.host_config = Some(host);
        // A label of the product's would make its agent look at this container.
        body.labels = None;
        let endpoint = EndpointSettings {
            ipam_config: Some(EndpointIpamConfig {
                ipv4_address: Some(RAW_ADDRESS.to_owned()),
                ..EndpointIpamConfig::default()
            }),
            ..EndpointSettings::default()
        };
        body.networking_config = Some(NetworkingConfig {
            endpoints_config: Some([(RAW_NAME.to_owned(), endpoint)].into()),
        });
        Ok(body)
    }
}

fn fresh(home: &Path) -> anyhow::Result<()> {
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    fs::create_dir(home)?;
    Ok(chown(home, Some(1000), Some(1000))?)
}
