//! The folders of an instance: which there are, who owns them, and how a home becomes one.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use crabshack_shared::ids::InstanceId;

use super::Stop;
use crate::command::{self, CommandError, Input, Program};

/// Removing millions of small files takes its time.
const RM: Program = Program {
    name: "rm",
    package: "coreutils",
    deadline: Duration::from_secs(3600),
};
/// Inode number of the top of every subvolume.
const TOP_OF_SUBVOLUME: u64 = 256;

/// Who owns what an instance may read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
}

/// The user `agent` of every image.
pub(crate) const AGENT: Owner = Owner { uid: 1000, gid: 1000 };

/// Where one instance's things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceFolder {
    /// All of it. Only root may enter, so nobody else on the node sees what is in it.
    pub(crate) root: PathBuf,
    /// The volume: the instance's home.
    pub(crate) home: PathBuf,
    /// The same before it is complete.
    pub(super) unfinished: PathBuf,
    /// What the node agent writes and the instance reads.
    pub(crate) etc: PathBuf,
    /// What a Docker inside the instance keeps; disposable.
    pub(crate) inner: PathBuf,
}

impl InstanceFolder {
    /// The paths below the folder of all instances.
    pub(crate) fn new(instances: &Path, id: InstanceId) -> Self {
        let root = instances.join(id.to_string());
        Self {
            home: root.join("home"),
            unfinished: root.join("home.new"),
            etc: root.join("etc"),
            inner: root.join("inner"),
            root,
        }
    }
}

/// Makes the folder of all instances; only root may enter.
pub(super) fn make_private(path: &Path) -> Result<(), Stop> {
    Ok(DirBuilder::new().recursive(true).mode(0o700).create(path)?)
}

/// Makes everything but the home. Returns whether the home is there, with its right owner.
pub(super) fn prepare(root: &Path, folder: &InstanceFolder, owner: Owner) -> Result<bool, Stop> {
    make_private(root)?;
    for (path, mode) in [(&folder.root, 0o700), (&folder.etc, 0o755)] {
        match DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        if !fs::symlink_metadata(path)?.is_dir() {
            return Err(Stop::NotAFolder(path.clone()));
        }
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    sync(&folder.root)?;
    sync(root)?;
    let Some(metadata) = metadata(&folder.home)? else {
        return Ok(false);
    };
    if !metadata.is_dir() {
        return Err(Stop::NotAFolder(folder.home.clone()));
    }
    // The mode of a home is the tenant's own business; its owner is not.
    if (metadata.uid(), metadata.gid()) != (owner.uid, owner.gid) {
        own(&folder.home, owner)?;
    }
    Ok(true)
}

/// Makes a plain folder.
pub(super) fn make_plain(path: &Path) -> Result<(), Stop> {
    Ok(DirBuilder::new().mode(0o700).create(path)?)
}

/// Hands the unfinished home to its owner and gives it its name.
pub(super) fn finish(folder: &InstanceFolder, owner: Owner) -> Result<(), Stop> {
    own(&folder.unfinished, owner)?;
    fs::rename(&folder.unfinished, &folder.home)?;
    sync(&folder.root)
}

fn own(path: &Path, owner: Owner) -> Result<(), Stop> {
    fs::set_permissions(path, Permissions::from_mode(0o750))?;
    chown(path, Some(owner.uid), Some(owner.gid))?;
    sync(path)
}

/// Removes a folder and everything in it; nothing there is no error.
///
/// In a process of its own: a tenant can nest folders deeper than our stack and our file
/// descriptors reach, and `rm` neither recurses nor follows links.
pub(super) async fn discard(path: &Path) -> Result<(), CommandError> {
    let options = ["--recursive", "--force", "--one-file-system", "--"].map(OsStr::new);
    let arguments = [&options[..], &[path.as_os_str()]].concat();
    command::run(RM, &arguments, Input::Nothing).await.map(drop)
}

/// Whether the home is a subvolume; none: there is no home.
pub(super) fn subvolume(home: &Path) -> Result<Option<bool>, Stop> {
    let (Some(above), Some(metadata)) = (home.parent(), metadata(home)?) else {
        return Ok(None);
    };
    let other_device = fs::symlink_metadata(above)?.dev() != metadata.dev();
    Ok(Some(metadata.is_dir() && metadata.ino() == TOP_OF_SUBVOLUME && other_device))
}

/// Every instance that has a folder.
pub(super) fn list(root: &Path) -> io::Result<Vec<InstanceId>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        ids.extend(OsStr::to_str(&name).and_then(|name| name.parse::<InstanceId>().ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Makes what happened in a folder outlive a loss of power.
pub(super) fn sync(folder: &Path) -> Result<(), Stop> {
    Ok(File::open(folder)?.sync_all()?)
}

fn metadata(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
