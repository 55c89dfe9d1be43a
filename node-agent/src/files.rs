//! What an instance reads in `/etc/crabshack`: settings, secrets and its SSH identity.
//!
//! The folder is mounted as a whole, so a file replaced by rename is seen inside at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;

use crate::{
    recipe::Files,
    volume::{AGENT, InstanceFolder, Owner},
};

mod host_key;
mod render;
mod replace;

/// Stands in the instance's folder, out of its sight, from before the managed settings are replaced
/// until the instance has taken them over.
const PENDING: &str = "configure-pending";
const MANAGED: &str = "managed.json";

/// Why an instance's files could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// The filesystem refused.
    #[error("cannot write {path}: check the disk and its permissions")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A name or value would change the meaning of the file.
    #[error("environment variable `{name}` cannot be given to the instance: {problem}")]
    Environment {
        /// The variable.
        name: String,
        /// What is wrong with it, without its value.
        problem: &'static str,
    },
    /// The host key on disk is not one.
    #[error(
        "{path} is not an SSH private key ({problem}): restore it, or remove it and accept that clients see a changed host key"
    )]
    HostKey {
        /// Where.
        path: PathBuf,
        /// Why not.
        problem: ssh_key::Error,
    },
}

/// Brings the files to what they should be. Idempotent: only what differs is replaced, each file
/// atomically, and a host key is made once.
pub(crate) async fn write(folder: &InstanceFolder, files: &Files) -> Result<(), FilesError> {
    write_as(folder, files, AGENT).await
}

async fn write_as(folder: &InstanceFolder, files: &Files, owner: Owner) -> Result<(), FilesError> {
    let wanted = render::render(files)?;
    let (folder, ssh) = (folder.clone(), files.ssh);
    let etc = folder.etc.clone();
    spawn_blocking(move || {
        for file in &wanted {
            let path = folder.etc.join(file.name);
            if file.name == MANAGED && !same(&path, file.content.as_deref()) {
                replace::replace(&folder.root.join(PENDING), b"", 0o600, None)?;
            }
            match &file.content {
                Some(content) => replace::replace(&path, content, file.mode, Some(owner))?,
                None => replace::remove(&path)?,
            }
        }
        if ssh { host_key::ensure(&folder.etc, owner) } else { Ok(()) }
    })
    .await
    .unwrap_or_else(|error| {
        Err(FilesError::Disk {
            path: etc,
            source: io::Error::other(error),
        })
    })
}

/// Whether [`write()`] would change anything. Reads a handful of small files.
pub(crate) fn differs(folder: &InstanceFolder, files: &Files) -> bool {
    let Ok(wanted) = render::render(files) else { return true };
    let changed = wanted
        .iter()
        .any(|file| !same(&folder.etc.join(file.name), file.content.as_deref()));
    changed || (files.ssh && !host_key::complete(&folder.etc))
}

/// Whether a running instance has taken over the managed settings, as far as [`configure_done`] says.
/// Keys and certificates that it reads anew each time need no telling.
pub(crate) fn is_told(folder: &InstanceFolder, files: &Files) -> bool {
    let managed = render::managed(files);
    same(&folder.etc.join(MANAGED), Some(&managed)) && !configure_pending(folder)
}

/// Whether the managed settings changed and a running instance has not been told.
fn configure_pending(folder: &InstanceFolder) -> bool {
    folder.root.join(PENDING).exists()
}

/// Writes down that the instance has taken over the managed settings: it was started after they
/// were written, or its reconfigure command succeeded. Idempotent.
pub(crate) fn configure_done(folder: &InstanceFolder) -> Result<(), FilesError> {
    replace::remove(&folder.root.join(PENDING))
}

/// Fingerprint of the instance's SSH host key, `SHA256:...`; none: it has no key yet.
pub(crate) fn ssh_fingerprint(folder: &InstanceFolder) -> Option<String> {
    host_key::fingerprint(&folder.etc)
}

/// Whether a file holds this, or is absent when it should be.
fn same(path: &Path, content: Option<&[u8]>) -> bool {
    match (fs::read(path), content) {
        (Ok(current), Some(wanted)) => current == wanted,
        (Err(error), None) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
