//! Secrets at rest: authenticated encryption with a key file.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file can be neither read nor made.
    #[error("the sealing key {path} cannot be read or made")]
    KeyFile {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The records are here, their key is not.
    #[error("the sealing key {path} is gone, but {records} was sealed with it: put the key back from a backup")]
    Lost {
        /// Where it should be.
        path: PathBuf,
        /// What it opens.
        records: PathBuf,
    },
    /// The key file does not hold a key.
    #[error("the sealing key {path} is damaged: it must hold exactly 32 bytes")]
    Damaged {
        /// Where it is.
        path: PathBuf,
    },
    /// The text was sealed with another key, for another purpose, or was changed.
    #[error("a sealed record cannot be opened: it was sealed with another key or was changed")]
    Open,
    /// The system has no randomness, or the text is too long.
    #[error("a record cannot be sealed")]
    Seal,
    /// What is inside is not what was expected.
    #[error("a sealed record does not hold what it should")]
    Content(#[source] serde_json::Error),
}

/// A sealed record, printable and storable: base64 of nonce and ciphertext.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

/// Seals and opens records. The context (whose record, what for) is authenticated, so that a sealed
/// record cannot be moved to another place.
pub struct SealKey(LessSafeKey);

impl SealKey {
    /// Reads the key file, or makes one (mode 0600) when there is neither a key nor `records`, the file
    /// that holds what it seals: a new key beside old records would only hide the loss.
    pub fn load_or_create(path: &Path, records: &Path) -> Result<Self, SealError> {
        let at = |source| SealError::KeyFile {
            path: path.to_owned(),
            source,
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if records.exists() {
                    return Err(SealError::Lost {
                        path: path.to_owned(),
                        records: records.to_owned(),
                    });
                }
                let mut bytes = vec![0; 32];
                SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::Seal)?;
                write_private(path, &bytes).map_err(at)?;
                bytes
            }
            Err(error) => return Err(at(error)),
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| SealError::Damaged { path: path.to_owned() })?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals a value under a context.
    pub fn seal<T: Serialize>(&self, context: &str, value: &T) -> Result<Sealed, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Seal)?;
        let mut text = serde_json::to_vec(value).map_err(SealError::Content)?;
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut text)
            .map_err(|_| SealError::Seal)?;
        let mut all = nonce.to_vec();
        all.append(&mut text);
        Ok(Sealed(STANDARD_NO_PAD.encode(all)))
    }

    /// Opens what was sealed under the same context.
    pub fn open<T: DeserializeOwned>(&self, context: &str, sealed: &Sealed) -> Result<T, SealError> {
        let mut all = STANDARD_NO_PAD.decode(&sealed.0).map_err(|_| SealError::Open)?;
        if all.len() < NONCE_LEN {
            return Err(SealError::Open);
        }
        let mut text = all.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&all).map_err(|_| SealError::Open)?;
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(context), &mut text)
            .map_err(|_| SealError::Open)?;
        serde_json::from_slice(plain).map_err(SealError::Content)
    }
}

/// Writes a file that only its owner reads; whole or not at all, and on disk when this returns.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
