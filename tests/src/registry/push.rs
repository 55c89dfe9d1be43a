//! Makes images out of the stub's files and pushes them by the distribution API.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use rand::RngExt as _;
use reqwest::header::{CONTENT_TYPE, LOCATION};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{command, image};

const CONFIGURATION: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What an image is to be.
#[derive(Debug, Clone)]
pub struct Build {
    /// Size of the layer that no other image has, in KiB.
    pub own_kibibytes: usize,
    /// For which machines.
    pub variety: Variety,
}

/// For which machines an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variety {
    /// This one.
    Fitting,
    /// Others.
    Foreign,
    /// One manifest for this one, one for others.
    List,
    /// Only for others, as a list.
    ForeignList,
}

impl Default for Build {
    fn default() -> Self {
        Self {
            own_kibibytes: 64,
            variety: Variety::Fitting,
        }
    }
}

impl Build {
    /// One that takes a while where the way is slow.
    pub fn large(mebibytes: usize) -> Self {
        Self {
            own_kibibytes: mebibytes << 10,
            ..Self::default()
        }
    }

    /// For these machines.
    pub fn of(variety: Variety) -> Self {
        Self {
            variety,
            ..Self::default()
        }
    }
}

pub(super) struct Pusher<'a> {
    pub(super) http: &'a reqwest::Client,
    pub(super) base: String,
    pub(super) folder: &'a Path,
}

impl Pusher<'_> {
    pub(super) async fn push(&self, tag: &str, build: &Build) -> anyhow::Result<String> {
        let (ours, theirs) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", "arm64"),
            _ => ("arm64", "amd64"),
        };
        let architectures: &[&str] = match build.variety {
            Variety::Fitting => return self.image(tag, ours, build).await,
            Variety::Foreign => return self.image(tag, theirs, build).await,
            Variety::List => &[theirs, ours],
            Variety::ForeignList => &[theirs],
        };
        let mut manifests = Vec::new();
        for architecture in architectures {
            let part = format!("{tag}-{architecture}");
            let digest = self.image(&part, architecture, build).await?;
            let size = self.manifest_size(&digest).await?;
            manifests.push(json!({
                "mediaType": IMAGE, "digest": digest, "size": size,
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let list = json!({"schemaVersion": 2, "mediaType": LIST, "manifests": manifests});
        self.manifest(tag, LIST, &list).await
    }

    async fn image(&self, tag: &str, architecture: &str, build: &Build) -> anyhow::Result<String> {
        let stub = fs::read(image::stub_tar()?)?;
        let mut layers = Vec::new();
        let mut identities = Vec::new();
        for bytes in [stub, self.own_layer(build.own_kibibytes)?] {
            let size = bytes.len();
            let digest = self.blob(bytes).await?;
            layers.push(json!({"mediaType": LAYER, "digest": digest, "size": size}));
            // Layers are not packed, so both names of each are the same.
            identities.push(digest);
        }
        let configuration = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "User": "1000:1000",
                "Env": ["HOME=/home/agent", "PATH=/usr/local/bin"],
                "Entrypoint": ["/usr/local/bin/crabshack-stub-agent"],
            },
            "rootfs": {"type": "layers", "diff_ids": identities},
        });
        let bytes = serde_json::to_vec(&configuration)?;
        let size = bytes.len();
        let digest = self.blob(bytes).await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "config": {"mediaType": CONFIGURATION, "digest": digest, "size": size},
            "layers": layers,
        });
        self.manifest(tag, IMAGE, &manifest).await
    }

    /// A tar with one file that is no other's.
    fn own_layer(&self, kibibytes: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0_u8; kibibytes << 10];
        rand::rng().fill(&mut bytes[..]);
        let root = tempfile::tempdir_in(self.folder)?;
        fs::write(root.path().join("own"), bytes)?;
        let tar = self.folder.join("layer.tar");
        command::run(&format!(
            "tar --mtime=@0 --numeric-owner -C {} -cf {} own",
            root.path().display(),
            tar.display()
        ))?;
        Ok(fs::read(tar)?)
    }

    async fn blob(&self, bytes: Vec<u8>) -> anyhow::Result<String> {
        let digest = digest(&bytes);
        let begun = self.http.post(format!("{}/blobs/uploads/", self.base)).send().await?;
        let location = begun.headers().get(LOCATION).context("no place for an upload")?.to_str()?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let place = format!("{location}{separator}digest={digest}");
        let put = self.http.put(place).body(bytes).send().await?;
        ensure!(put.status().is_success(), "{}: {}", put.status(), put.text().await?);
        Ok(digest)
    }

    async fn manifest(&self, tag: &str, kind: &str, manifest: &Value) -> anyhow::Result<String> {
        let bytes = serde_json::to_vec(manifest)?;
        let digest = digest(&bytes);
        let put = self
            .http
            .put(format!("{}/manifests/{tag}", self.base))
            .header(CONTENT_TYPE, kind)
            .body(bytes)
            .send()
            .await?;
        ensure!(put.status().is_success(), "{}: {}", put.status(), put.text().await?);
        Ok(digest)
    }

    async fn manifest_size(&self, digest: &str) -> anyhow::Result<usize> {
        let url = format!("{}/manifests/{digest}", self.base);
        let answer = self.http.get(url).header("accept", IMAGE).send().await?;
        Ok(answer.error_for_status()?.bytes().await?.len())
    }
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
