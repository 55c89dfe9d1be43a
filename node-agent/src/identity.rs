//! Who this node is: its key, its certificate and the authority it trusts, on its own disk. A node
//! enrols once with a join token; from then on it renews by itself, and a restart needs no network.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::RwLock,
    time::SystemTime,
};

use crabshack_shared::{
    ids::NodeId,
    seal::write_private,
    tls::{Identity, Role, TlsError},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};

/// Why the node's identity cannot be read, made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("{path} cannot be read or written")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is damaged: remove the file and enrol the node again with a new join token")]
    Damaged { path: PathBuf },
    #[error("a key or a certificate request cannot be made")]
    Key(#[from] rcgen::Error),
    #[error("the certificate cannot be used")]
    Tls(#[from] TlsError),
    #[error("the certificate is not one of a node")]
    NotANode,
}

/// The node's key, made once.
pub(crate) struct Key {
    pair: KeyPair,
}

impl Key {
    /// Reads the key, or makes one.
    pub(crate) fn load_or_create(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join("node.key");
        let pair = match fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|_| IdentityError::Damaged { path })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = KeyPair::generate()?;
                write_private(&path, pair.serialize_pem().as_bytes()).map_err(|source| IdentityError::File { path, source })?;
                pair
            }
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        Ok(Self { pair })
    }

    /// A certificate request, PEM. The name in the certificate is the coordinator's choice.
    pub(crate) fn request(&self) -> Result<String, IdentityError> {
        Ok(CertificateParams::default().serialize_request(&self.pair)?.pem()?)
    }

    fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }
}

/// The enrolled node.
pub(crate) struct NodeIdentity {
    folder: PathBuf,
    key: Key,
    authority: CertificateDer<'static>,
    node: NodeId,
    certificate: RwLock<Certificate>,
}

#[derive(Clone)]
struct Certificate {
    der: CertificateDer<'static>,
    identity: Identity,
}

impl NodeIdentity {
    /// Reads what an earlier enrolment left; none: the node must enrol.
    pub(crate) fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join("node.pem");
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        let path = folder.join("authority.der");
        let authority = fs::read(&path).map_err(|source| IdentityError::File { path, source })?;
        Self::new(folder, Key::load_or_create(folder)?, CertificateDer::from(authority), &pem).map(Some)
    }

    /// Keeps what the enrolment gave.
    pub(crate) fn enrolled(
        folder: &Path,
        key: Key,
        authority: CertificateDer<'static>,
        pem: &str,
    ) -> Result<Self, IdentityError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            write_private(&path, bytes).map_err(|source| IdentityError::File { path, source })
        };
        let identity = Self::new(folder, key, authority, pem)?;
        write("authority.der", &identity.authority)?;
        // Last: its presence says that the enrolment is complete.
        write("node.pem", pem.as_bytes())?;
        Ok(identity)
    }

    fn new(folder: &Path, key: Key, authority: CertificateDer<'static>, pem: &str) -> Result<Self, IdentityError> {
        let certificate = read(pem, &folder.join("node.pem"))?;
        let Role::Node(node) = certificate.identity.role.clone() else {
            return Err(IdentityError::NotANode);
        };
        Ok(Self {
            folder: folder.to_owned(),
            key,
            authority,
            node,
            certificate: RwLock::new(certificate),
        })
    }

    /// Who the node is.
    pub(crate) fn node(&self) -> &NodeId {
        &self.node
    }

    /// A request for the next certificate.
    pub(crate) fn request(&self) -> Result<String, IdentityError> {
        self.key.request()
    }

    /// From when the next certificate should be asked for.
    pub(crate) fn wants_renewal(&self) -> bool {
        self.current().identity.wants_renewal(SystemTime::now())
    }

    /// From when to when the certificate counts.
    pub(crate) fn validity(&self) -> (SystemTime, SystemTime) {
        let identity = self.current().identity;
        (identity.not_before, identity.not_after)
    }

    /// How long the certificate lives in all.
    pub(crate) fn lifetime(&self) -> std::time::Duration {
        let identity = self.current().identity;
        identity.not_after.duration_since(identity.not_before).unwrap_or_default()
    }

    /// Takes the next certificate.
    pub(crate) fn renew(&self, pem: &str) -> Result<(), IdentityError> {
        let path = self.folder.join("node.pem");
        let certificate = read(pem, &path)?;
        if certificate.identity.role != Role::Node(self.node.clone()) {
            return Err(IdentityError::NotANode);
        }
        write_private(&path, pem.as_bytes()).map_err(|source| IdentityError::File { path, source })?;
        *self.certificate.write().unwrap_or_else(std::sync::PoisonError::into_inner) = certificate;
        Ok(())
    }

    /// For dialling the coordinator.
    pub(crate) fn client(&self) -> Result<ClientConfig, TlsError> {
        crabshack_shared::tls::client(&self.authority, Some((vec![self.current().der], self.key.der())))
    }

    /// For the data plane.
    pub(crate) fn server(&self) -> Result<ServerConfig, TlsError> {
        crabshack_shared::tls::server_requiring_clients(&self.authority, vec![self.current().der], self.key.der())
    }

    fn current(&self) -> Certificate {
        self.certificate
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

fn read(pem: &str, path: &Path) -> Result<Certificate, IdentityError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| IdentityError::Damaged { path: path.to_owned() })?;
    let identity = Identity::of(&der)?;
    Ok(Certificate { der, identity })
}
