//! The internal authority: made at the first start, it issues the certificates of the coordinator and
//! of the nodes. The coordinator's own live in memory only.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use crabshack_shared::{
    ids::NodeId,
    seal::write_private,
    serve::ServerTls,
    telemetry::Chain,
    tls::{self, COORDINATOR_NAME, TlsError},
};
use rand::RngExt as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};

/// Life of the authority itself.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks may be behind by so much: one that is set back by an hour must not make a fresh certificate
/// one of the future.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 3600);

/// Why the authority could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("the authority's file {path} cannot be read or written")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the authority's file {path} is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("the certificate request cannot be read, or its signature is wrong")]
    Request(#[source] rcgen::Error),
    #[error("a certificate cannot be issued")]
    Issue(#[source] rcgen::Error),
    #[error("the coordinator's TLS cannot be set up")]
    Tls(#[from] TlsError),
}

/// A certificate for a node.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) pem: String,
    /// In hex.
    pub(crate) serial: String,
}

/// The authority, and the coordinator's own identity.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    authority: CertificateDer<'static>,
    life: Duration,
    client: RwLock<Arc<ClientConfig>>,
    server: ServerTls,
}

impl Ca {
    /// Reads the authority from the folder, or makes it, and issues the coordinator's certificate.
    pub(crate) fn load_or_create(folder: &Path, life: Duration) -> Result<Self, CaError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(file(folder))?;
        let key_path = folder.join("ca.key");
        let certificate_path = folder.join("ca.pem");
        // The key is written first: a crash in between leaves a key whose certificate is made now.
        let key = match read(&key_path)? {
            Some(text) => KeyPair::from_pem(&text).map_err(damaged(&key_path))?,
            None => {
                let key = KeyPair::generate().map_err(CaError::Issue)?;
                write_private(&key_path, key.serialize_pem().as_bytes()).map_err(file(&key_path))?;
                key
            }
        };
        let text = match read(&certificate_path)? {
            Some(text) => text,
            None => {
                let text = authority_params().self_signed(&key).map_err(CaError::Issue)?.pem();
                write_private(&certificate_path, text.as_bytes()).map_err(file(&certificate_path))?;
                text
            }
        };
        let authority = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| CaError::Damaged {
            path: certificate_path.clone(),
            source: rcgen::Error::CouldNotParseCertificate,
        })?;
        let issuer = Issuer::from_ca_cert_der(&authority, key).map_err(damaged(&certificate_path))?;
        let (server, client) = own_identity(&issuer, &authority, life)?;
        Ok(Self {
            issuer,
            authority,
            life,
            client: RwLock::new(client),
            server: ServerTls::new(server),
        })
    }

    /// What everybody trusts.
    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// The coordinator's identity for dialling nodes. Ask for it at every dial: it is renewed.
    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The agent listener's TLS; it follows renewals by itself.
    pub(crate) fn server_config(&self) -> ServerTls {
        self.server.clone()
    }

    /// Issues a node's certificate. Of the request only the public key is used.
    pub(crate) fn issue_node(&self, node: &NodeId, request: &str) -> Result<Issued, CaError> {
        let request = CertificateSigningRequestParams::from_pem(request).map_err(CaError::Request)?;
        let (params, serial) = leaf_params(&tls::node_name(node), self.life)?;
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(CaError::Issue)?;
        Ok(Issued {
            pem: certificate.pem(),
            serial,
        })
    }

    /// Issues the coordinator's certificate anew each time a third of its life has passed.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.life / 3).await;
            match own_identity(&self.issuer, &self.authority, self.life) {
                Ok((server, client)) => {
                    self.server.replace(server);
                    *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
                    tracing::info!("renewed the coordinator's certificate");
                }
                Err(error) => tracing::error!("the coordinator's certificate cannot be renewed: {}", Chain(&error)),
            }
        }
    }
}

fn own_identity(
    issuer: &Issuer<'static, KeyPair>,
    authority: &CertificateDer<'static>,
    life: Duration,
) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), CaError> {
    let key = KeyPair::generate().map_err(CaError::Issue)?;
    let (params, _) = leaf_params(COORDINATOR_NAME, life)?;
    let certificate = params.signed_by(&key, issuer).map_err(CaError::Issue)?;
    let chain = vec![certificate.der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let server = tls::server_admitting_newcomers(authority, chain.clone(), key.clone_key())?;
    let client = tls::client(authority, Some((chain, key)))?;
    Ok((Arc::new(server), Arc::new(client)))
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "Crabshack internal authority");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    params
}

/// A certificate for both ends of mutual TLS, and its serial in hex.
fn leaf_params(name: &str, life: Duration) -> Result<(CertificateParams, String), CaError> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(CaError::Issue)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    // A short life (in tests) must not be over a third already when it begins.
    params.not_before = (now - CLOCK_SKEW.min(life / 10)).into();
    params.not_after = (now + life).into();
    // The first bit stays zero: serials are positive.
    let serial = (rand::rng().random::<u128>() >> 1).to_be_bytes();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok((params, format!("{:032x}", u128::from_be_bytes(serial))))
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file(path)(error)),
    }
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::File { path, source }
}

fn damaged(path: &Path) -> impl FnOnce(rcgen::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Damaged { path, source }
}

#[cfg(test)]
mod tests;
