//! Replacing one file so that a reader, or a power cut, sees the old one or the new one.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::Path,
};

use super::{FilesError, same};
use crate::volume::Owner;

/// Puts this content, mode and owner there, unless they are. The folder must be ours alone to write.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> Result<(), FilesError> {
    if same(path, Some(content)) && fits(path, mode, owner) {
        return Ok(());
    }
    write(path, content, mode, owner).map_err(|source| at(path, source))
}

/// Takes a file away, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), FilesError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map_err(|source| at(path, source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(path, error)),
    }
}

pub(super) fn at(path: &Path, source: io::Error) -> FilesError {
    FilesError::Disk {
        path: path.to_owned(),
        source,
    }
}

fn fits(path: &Path, mode: u32, owner: Option<Owner>) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.is_file()
            && metadata.mode() & 0o7777 == mode
            && owner.is_none_or(|owner| (metadata.uid(), metadata.gid()) == (owner.uid, owner.gid))
    })
}

fn write(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // Left by a writer that was killed.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
