//! A node's data plane, dialled as the coordinator does it: with a certificate of its authority.

use std::{fs, sync::Arc};

use anyhow::Context as _;
use crabshack_shared::tls;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    client::Answer,
    cluster::{AGENT_HEALTH, Cluster, Who},
    must::text,
    trust,
};

const ADDRESS: &str = "127.0.0.1:7702";

/// `GET`; the whole answer as text.
pub async fn get(cluster: &Cluster<'_>, path: &str) -> anyhow::Result<String> {
    trust::talk(ADDRESS, &server().await?, config(cluster)?, path).await
}

/// `GET`; the open connection, at the answer's first byte.
pub async fn open(cluster: &Cluster<'_>, path: &str) -> anyhow::Result<TlsStream<TcpStream>> {
    let name = server().await?;
    let stream = TcpStream::connect(ADDRESS).await?;
    let connector = TlsConnector::from(config(cluster)?);
    let mut stream = connector.connect(ServerName::try_from(name.clone())?, stream).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// The name in the node's certificate.
async fn server() -> anyhow::Result<String> {
    let health = Answer::read(reqwest::get(format!("{AGENT_HEALTH}/health")).await?)
        .await?
        .success()?;
    Ok(tls::node_name(&text(&health, "node")?.parse()?))
}

fn config(cluster: &Cluster<'_>) -> anyhow::Result<Arc<ClientConfig>> {
    let folder = cluster.data(Who::Coordinator).join("ca");
    let authority =
        CertificateDer::from_pem_slice(&fs::read(folder.join("ca.pem"))?).context("no certificate of the authority")?;
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_der(&authority, key)?;
    let own = KeyPair::generate()?;
    let certificate = CertificateParams::new([tls::COORDINATOR_NAME.to_owned()])?.signed_by(&own, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
    Ok(Arc::new(tls::client(
        &authority,
        Some((vec![certificate.der().clone()], key)),
    )?))
}
