//! Mutual TLS between the coordinator and the nodes: who a certificate speaks for, and the rustls
//! set-up on both ends. Names in certificates are ours (`coordinator.crabshack`), so that neither
//! side depends on addresses.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{ids::NodeId, secret::Secret};

/// The coordinator's name in its certificate.
pub const COORDINATOR_NAME: &str = "coordinator.crabshack";
/// What follows a node's id in its certificate.
const NODE_SUFFIX: &str = ".nodes.crabshack";

/// Why a certificate or a TLS configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not X.509, or without the one name that we look for.
    #[error("the certificate carries neither the coordinator's name nor a node's")]
    Stranger,
    /// Not a join token of ours.
    #[error("the join token is damaged: copy it whole, as it was printed")]
    JoinToken,
    /// rustls does not accept it.
    #[error("TLS cannot be set up with this key and certificate")]
    Setup(#[from] rustls::Error),
    /// The verifier cannot be built from these roots.
    #[error("the authority's certificate cannot be used")]
    Authority(#[source] rustls::server::VerifierBuilderError),
}

/// Who a certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The coordinator.
    Coordinator,
    /// A node.
    Node(NodeId),
}

/// What we read from a peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who it speaks for.
    pub role: Role,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

impl Identity {
    /// Reads a certificate that the TLS layer has already verified.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| TlsError::Stranger)?;
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or(TlsError::Stranger)?;
        let role = names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::DNSName(COORDINATOR_NAME) => Some(Role::Coordinator),
                GeneralName::DNSName(name) => name.strip_suffix(NODE_SUFFIX)?.parse().ok().map(Role::Node),
                _ => None,
            })
            .ok_or(TlsError::Stranger)?;
        let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let validity = certificate.validity();
        Ok(Self {
            role,
            not_before: at(validity.not_before.timestamp()),
            not_after: at(validity.not_after.timestamp()),
        })
    }

    /// True once a third of its life has passed.
    pub fn wants_renewal(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        now >= self.not_before + life / 3
    }

    /// True when its time is over.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}

/// The name in a node's certificate.
pub fn node_name(node: &NodeId) -> String {
    format!("{node}{NODE_SUFFIX}")
}

/// What `crabshack join-token` prints: a secret, and the authority that the node will trust.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// Proves that the node was invited.
    pub secret: Secret,
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
}

impl JoinToken {
    /// The one-line form.
    pub fn encode(&self) -> Secret {
        Secret::from(format!(
            "{}.{}",
            self.secret.expose(),
            URL_SAFE_NO_PAD.encode(&self.authority)
        ))
    }

    /// Reads the one-line form.
    pub fn decode(text: &Secret) -> Result<Self, TlsError> {
        let (secret, authority) = text.expose().trim().split_once('.').ok_or(TlsError::JoinToken)?;
        let authority = URL_SAFE_NO_PAD.decode(authority).map_err(|_| TlsError::JoinToken)?;
        X509Certificate::from_der(&authority).map_err(|_| TlsError::JoinToken)?;
        Ok(Self {
            secret: Secret::from(secret.to_owned()),
            authority: CertificateDer::from(authority),
        })
    }
}

/// Makes ring the one provider of the process. Call once, first thing in main.
pub fn install_provider() {
    // An error only says that one is installed already.
    drop(default_provider().install_default());
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    store.add(authority.clone())?;
    Ok(Arc::new(store))
}

/// For the data plane of a node: every client must show a valid certificate of the authority.
pub fn server_requiring_clients(
    authority: &CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, Arc::new(default_provider()))
        .build()
        .map_err(TlsError::Authority)?;
    Ok(http1(
        ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?,
    ))
}

/// For the agent listener of the coordinator: a client without a certificate may come in (to
/// enrol), and so may one whose certificate has expired (to renew). Which route they may use is
/// decided above, by [`Identity::is_expired`].
pub fn server_admitting_newcomers(
    authority: &CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots(authority)?, Arc::new(default_provider()))
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Authority)?;
    let verifier = Arc::new(ExpiryTolerant { inner });
    Ok(http1(
        ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?,
    ))
}

/// For whoever dials. With a chain and key it identifies itself.
pub fn client(
    authority: &CertificateDer<'static>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder().with_root_certificates(roots(authority)?);
    Ok(match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    })
}

fn http1(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Checks everything of a certificate but that its time is not over.
#[derive(Debug)]
struct ExpiryTolerant {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ExpiryTolerant {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.inner.verify_client_cert(end_entity, intermediates, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
                let identity = Identity::of(end_entity)
                    .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
                let while_valid = identity.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                self.inner
                    .verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(while_valid))
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
