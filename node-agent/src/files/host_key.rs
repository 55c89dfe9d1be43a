//! The SSH identity of an instance: made once by the node and kept, so that clients see the same
//! key after every restart, move and restore.

use std::{fs, io, path::Path};

use rand::RngExt as _;
use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey, private::Ed25519Keypair};

use super::{
    FilesError,
    replace::{at, replace},
};
use crate::volume::Owner;

/// Name of the private key's file.
pub(super) const PRIVATE: &str = "ssh_host_ed25519_key";
/// Name of the public key's file.
const PUBLIC: &str = "ssh_host_ed25519_key.pub";

/// Makes the key when there is none, and puts its public half beside it.
pub(super) fn ensure(etc: &Path, owner: Owner) -> Result<(), FilesError> {
    let path = etc.join(PRIVATE);
    let invalid = |problem| FilesError::HostKey {
        path: path.clone(),
        problem,
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let seed: [u8; 32] = rand::rng().random();
            let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
            key.to_openssh(LineEnding::LF).map_err(invalid)?.to_string()
        }
        Err(error) => return Err(at(&path, error)),
    };
    let key = PrivateKey::from_openssh(&text).map_err(invalid)?;
    let public = key.public_key().to_openssh().map_err(invalid)?;
    // sshd runs as the instance's user and takes no key that is another's or open to others.
    replace(&path, text.as_bytes(), 0o600, Some(owner))?;
    replace(&etc.join(PUBLIC), format!("{public}\n").as_bytes(), 0o600, Some(owner))
}

/// Whether both halves are there.
pub(super) fn complete(etc: &Path) -> bool {
    etc.join(PRIVATE).is_file() && etc.join(PUBLIC).is_file()
}

/// `SHA256:...` of the public key.
pub(super) fn fingerprint(etc: &Path) -> Option<String> {
    let text = fs::read_to_string(etc.join(PUBLIC)).ok()?;
    let key = PublicKey::from_openssh(&text).ok()?;
    Some(key.fingerprint(HashAlg::Sha256).to_string())
}
