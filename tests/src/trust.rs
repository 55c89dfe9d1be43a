//! The agent's side of the trust, by hand: a foreign authority, a node without an agent.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use crabshack_shared::{
    agent_api::v1::EnrolAnswer,
    ids::NodeId,
    tls::{self, JoinToken},
};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{cluster::Cluster, must::PATIENCE};

/// A certificate and its key.
pub type KeyAndChain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Where agents talk to the coordinator.
pub fn agent_listener() -> String {
    "127.0.0.1:7701".to_owned()
}

/// Somebody else's certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A fresh one.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate for any name, with its key.
    pub fn identity(&self, name: &str) -> anyhow::Result<KeyAndChain> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.0)?;
        Ok((vec![certificate.der().clone()], private(&key)))
    }

    /// A certificate request with a key that nobody keeps.
    pub fn request() -> anyhow::Result<String> {
        request(&KeyPair::generate()?)
    }
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

fn request(key: &KeyPair) -> anyhow::Result<String> {
    Ok(CertificateParams::new(Vec::<String>::new())?.serialize_request(key)?.pem()?)
}

/// A node that enrolled, without an agent behind it.
pub struct Node {
    /// Who it is.
    pub id: NodeId,
    key: KeyPair,
    config: Arc<ClientConfig>,
}

impl Node {
    /// Enrols with a fresh join token.
    pub async fn enrol(cluster: &Cluster<'_>) -> anyhow::Result<Self> {
        let token = JoinToken::decode(&cluster.client.join_token().await?.into())?;
        let key = KeyPair::generate()?;
        let body = json!({"join_secret": token.secret.expose(), "request": request(&key)?, "hostname": "by-hand"});
        let bare = Arc::new(tls::client(&token.authority, None)?);
        let answer = post(&agent_listener(), tls::COORDINATOR_NAME, bare, "/v1/enrol", &body).await?;
        let answer: EnrolAnswer =
            serde_json::from_str(body_of(&answer)?).with_context(|| format!("no certificate in {answer}"))?;
        let certificate = CertificateDer::from_pem_slice(answer.certificate.as_bytes())?;
        let config = Arc::new(tls::client(&token.authority, Some((vec![certificate], private(&key))))?);
        Ok(Self {
            id: answer.node,
            key,
            config,
        })
    }

    /// Asks the coordinator.
    pub async fn get(&self, path: &str) -> anyhow::Result<String> {
        talk(&agent_listener(), tls::COORDINATOR_NAME, Arc::clone(&self.config), path).await
    }

    /// Dials another node.
    pub async fn dial(&self, address: &str, name: &str, path: &str) -> anyhow::Result<String> {
        talk(address, name, Arc::clone(&self.config), path).await
    }

    /// Asks for the next certificate.
    pub async fn renew(&self) -> anyhow::Result<String> {
        let body = json!({"request": request(&self.key)?});
        post(
            &agent_listener(),
            tls::COORDINATOR_NAME,
            Arc::clone(&self.config),
            "/v1/renew",
            &body,
        )
        .await
    }

    /// Reports one instance in a phase.
    pub async fn report(&self, instance: &str, phase: &str) -> anyhow::Result<String> {
        let body = json!({
            "highest_generation": {"epoch": 0, "counter": 0},
            "facts": {"hostname": "by-hand", "data_plane": "127.0.0.1:9", "memory": 1_u64 << 30, "cpus": 1, "docker_version": "20.10",
                      "architecture": "x86_64", "agent_version": "0.1.0", "runtimes": []},
            "instances": [{"id": instance, "generation": {"epoch": 999, "counter": 1}, "phase": phase}],
        });
        post(
            &agent_listener(),
            tls::COORDINATOR_NAME,
            Arc::clone(&self.config),
            "/v1/report",
            &body,
        )
        .await
    }
}

fn body_of(answer: &str) -> anyhow::Result<&str> {
    Ok(answer.split_once("\r\n\r\n").context("no body")?.1)
}

/// `GET` over TLS; the whole answer as text. An answer without a byte is an error.
pub async fn talk(address: &str, server: &str, config: Arc<ClientConfig>, path: &str) -> anyhow::Result<String> {
    exchange(
        address,
        server,
        config,
        &format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"),
    )
    .await
}

/// `POST` of JSON, as [`talk`].
pub async fn post(address: &str, server: &str, config: Arc<ClientConfig>, path: &str, body: &Value) -> anyhow::Result<String> {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(address, server, config, &(head + &body)).await
}

async fn exchange(address: &str, server: &str, config: Arc<ClientConfig>, request: &str) -> anyhow::Result<String> {
    let work = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(server.to_owned())?;
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // A peer may end without a close notice: what came before it counts.
        let end = stream.read_to_end(&mut answer).await;
        ensure!(!answer.is_empty(), "no answer: {end:?}");
        Ok(String::from_utf8(answer)?)
    };
    timeout(PATIENCE + PATIENCE, work)
        .await
        .with_context(|| format!("{address} does not answer"))?
}
