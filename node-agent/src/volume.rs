//! The disk of an instance. The only place that knows how a volume is kept: today a plain
//! directory, so without a hard quota.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Stdio,
};

use crabshack_shared::ids::InstanceId;
use tokio::{process::Command, task::spawn_blocking};

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

/// Why a volume could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The filesystem refused.
    #[error("cannot {action} {path}: check the disk and its permissions")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else is where the folder should be.
    #[error("{path} is not a folder: move it away, then the instance's folder is made there")]
    NotAFolder {
        /// Where.
        path: PathBuf,
    },
    /// Part of the volume is still there.
    #[error("{path} could not be removed in full: {message}")]
    Remains {
        /// Where.
        path: PathBuf,
        /// What was said.
        message: String,
    },
}

/// Where one instance's things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceFolder {
    /// All of it. Only root may enter, so nobody else on the node sees what is in it.
    pub(crate) root: PathBuf,
    /// The volume: the instance's home.
    pub(crate) home: PathBuf,
    /// What the node agent writes and the instance reads.
    pub(crate) etc: PathBuf,
}

impl InstanceFolder {
    /// The paths below the folder of all instances.
    pub(crate) fn new(instances: &Path, id: InstanceId) -> Self {
        let root = instances.join(id.to_string());
        Self {
            home: root.join("home"),
            etc: root.join("etc"),
            root,
        }
    }
}

/// All volumes of the node.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    root: PathBuf,
    owner: Owner,
}

impl Volumes {
    /// Volumes below this folder, which is made when the first one is.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, owner: AGENT }
    }

    /// Where an instance's things are, whether they exist or not.
    pub(crate) fn folder(&self, id: InstanceId) -> InstanceFolder {
        InstanceFolder::new(&self.root, id)
    }

    /// Makes the folders of an instance, or completes them; what is in them stays. Idempotent.
    pub(crate) async fn ensure(&self, id: InstanceId) -> Result<(), VolumeError> {
        let (root, folder, owner) = (self.root.clone(), self.folder(id), self.owner);
        blocking("make", folder.root.clone(), move || make(&root, &folder, owner)).await
    }

    /// Removes everything of an instance, also what an earlier call left. Idempotent.
    ///
    /// In a process of its own: a tenant can nest folders deeper than our stack and our file
    /// descriptors reach, and `rm` neither recurses nor follows links.
    pub(crate) async fn remove(&self, id: InstanceId) -> Result<(), VolumeError> {
        let path = self.folder(id).root;
        if !self.exists(id).await? {
            return Ok(());
        }
        let output = Command::new("rm")
            .args(["--recursive", "--force", "--one-file-system", "--"])
            .arg(&path)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| VolumeError::Disk {
                action: "run `rm` on",
                path: path.clone(),
                source,
            })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
            return Err(VolumeError::Remains { path, message });
        }
        let root = self.root.clone();
        blocking("write down the removal of", path, move || sync(&root)).await
    }

    /// Whether anything of the instance's volume is here.
    pub(crate) async fn exists(&self, id: InstanceId) -> Result<bool, VolumeError> {
        let path = self.folder(id).root;
        blocking("look at", path.clone(), move || Ok(present(&path)?)).await
    }

    /// Every instance that has a volume here. What is not named like one is passed over.
    pub(crate) async fn list(&self) -> Result<Vec<InstanceId>, VolumeError> {
        let root = self.root.clone();
        blocking("list", root.clone(), move || Ok(list(&root)?)).await
    }
}

/// What stopped a blocking step.
enum Stop {
    Disk(io::Error),
    NotAFolder(PathBuf),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    path: PathBuf,
    run: impl FnOnce() -> Result<T, Stop> + Send + 'static,
) -> Result<T, VolumeError> {
    let result = spawn_blocking(run)
        .await
        .unwrap_or_else(|error| Err(Stop::Disk(io::Error::other(error))));
    result.map_err(|stop| match stop {
        Stop::Disk(source) => VolumeError::Disk { action, path, source },
        Stop::NotAFolder(path) => VolumeError::NotAFolder { path },
    })
}

fn make(root: &Path, folder: &InstanceFolder, owner: Owner) -> Result<(), Stop> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    make_folder(&folder.root, 0o700, None)?;
    make_folder(&folder.home, 0o750, Some(owner))?;
    make_folder(&folder.etc, 0o755, None)?;
    sync(&folder.root)?;
    sync(root)
}

/// Nobody but root can write to the parents, so these paths cannot be swapped under our feet.
fn make_folder(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), Stop> {
    let made = match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error.into()),
    };
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Err(Stop::NotAFolder(path.to_owned()));
    }
    // Wrong owner: it is new, or we were killed right after making it. Later the mode of the home
    // is the tenant's own business.
    let foreign = owner.is_some_and(|owner| (metadata.uid(), metadata.gid()) != (owner.uid, owner.gid));
    if made || foreign || owner.is_none() {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    if let Some(owner) = owner.filter(|_| foreign) {
        chown(path, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

fn present(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn list(root: &Path) -> io::Result<Vec<InstanceId>> {
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

fn sync(folder: &Path) -> Result<(), Stop> {
    Ok(File::open(folder)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(root: &Path) -> Volumes {
        let metadata = fs::metadata(root).unwrap();
        // Whoever runs the tests, so that they need not be root.
        let owner = Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
        };
        Volumes {
            root: root.join("instances"),
            owner,
        }
    }

    #[tokio::test]
    async fn volume__should_be_made_and_removed_any_number_of_times() {
        let data = tempfile::tempdir().unwrap();
        let volumes = volumes(data.path());
        let id = InstanceId::random();
        assert_eq!(volumes.list().await.unwrap(), []);
        volumes.remove(id).await.unwrap();

        volumes.ensure(id).await.unwrap();
        let folder = volumes.folder(id);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(
            (mode(&folder.root), mode(&folder.home), mode(&folder.etc)),
            (0o700, 0o750, 0o755)
        );
        fs::write(folder.home.join("kept"), "").unwrap();
        fs::create_dir(data.path().join("instances/lost+found")).unwrap();
        volumes.ensure(id).await.unwrap();
        assert!(folder.home.join("kept").exists());
        assert_eq!(volumes.list().await.unwrap(), [id]);

        volumes.remove(id).await.unwrap();
        assert!(!volumes.exists(id).await.unwrap());
        volumes.remove(id).await.unwrap();
    }

    #[tokio::test]
    async fn volume__should_be_removed_without_following_links_or_breaking_on_depth() {
        let data = tempfile::tempdir().unwrap();
        let outside = data.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let volumes = volumes(data.path());
        let id = InstanceId::random();
        volumes.ensure(id).await.unwrap();
        let home = volumes.folder(id).home;
        std::os::unix::fs::symlink(&outside, home.join("link")).unwrap();
        // One path may not be longer than 4096 bytes, so nest by moving the old tree into a new folder.
        for _ in 0..5000 {
            let (tree, outer) = (home.join("tree"), home.join("outer"));
            fs::create_dir(&outer).unwrap();
            if tree.exists() {
                fs::rename(&tree, outer.join("d")).unwrap();
            }
            fs::rename(&outer, &tree).unwrap();
        }
        volumes.remove(id).await.unwrap();
        assert!(!volumes.exists(id).await.unwrap());
        assert!(outside.join("kept").exists());
    }

    #[tokio::test]
    async fn volume__should_refuse_a_link_in_its_place() {
        let data = tempfile::tempdir().unwrap();
        let volumes = volumes(data.path());
        let id = InstanceId::random();
        let folder = volumes.folder(id);
        fs::create_dir_all(&folder.root).unwrap();
        std::os::unix::fs::symlink("/", &folder.home).unwrap();
        assert!(matches!(volumes.ensure(id).await, Err(VolumeError::NotAFolder { .. })));
    }
}
