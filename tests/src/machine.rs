//! One node without our software: namespaces, a dockerd, an internet, the images.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    cluster, command,
    dockerd::Dockerd,
    image,
    internet::Internet,
    scratch::Scratch,
    witness::{Hook, Witness},
};

/// Everything a suite stands on.
#[derive(Debug)]
pub struct Machine {
    // Dropped in this order: what uses the folder ends before it is removed.
    /// Its Docker.
    pub dockerd: Dockerd,
    /// The world outside.
    pub internet: Internet,
    /// Packets from instances that reached the node itself (`node`) or another instance (`crossed`),
    /// counted behind every rule of ours and of Docker's.
    pub witness: Witness,
    scratch: Scratch,
}

impl Machine {
    /// Starts everything and imports the stub's image.
    pub async fn start() -> anyhow::Result<Self> {
        let scratch = Scratch::new()?;
        fs::create_dir(scratch.path().join("logs"))?;
        let internet = Internet::start()?;
        let to_node = Hook {
            name: "node",
            at: "input priority 200",
            which: "iifname != { lo, internet } ct state new",
        };
        let crossed = Hook {
            name: "crossed",
            at: "forward priority 200",
            which: "iifname != internet oifname != internet ct state new",
        };
        let witness = Witness::install(None, &[to_node, crossed])?;
        let dockerd = Dockerd::start(&scratch).await?;
        let machine = Self {
            dockerd,
            internet,
            witness,
            scratch,
        };
        image::import_stub(&machine.dockerd).await?;
        Ok(machine)
    }

    /// What a power cut takes: every container and its engine, and what the kernel was told of rules,
    /// addresses and bridges. The disks stay. The product's processes are the caller's to kill.
    pub async fn lose_power(&self) -> anyhow::Result<()> {
        self.dockerd.lose_power().await?;
        cluster::clear_network();
        for line in ["iptables -t nat -F", "iptables -t nat -X", "iptables -F", "iptables -X"] {
            command::run(line)?;
        }
        command::run("iptables -P FORWARD ACCEPT")?;
        let links: Value = serde_json::from_str(&command::run("ip -j link show type bridge")?)?;
        for name in links
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|link| link["ifname"].as_str())
        {
            command::run(&format!("ip link delete {name}"))?;
        }
        Ok(())
    }

    /// The folder of this run.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Where every process writes its log.
    pub fn logs(&self) -> PathBuf {
        self.folder().join("logs")
    }
}
