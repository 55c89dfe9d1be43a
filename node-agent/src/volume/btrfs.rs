//! One btrfs with quotas: subvolumes by their numbers, and per instance one group of level 1 that
//! holds the home and whatever subvolumes the tenant makes inside it.
//!
//! A subvolume's path is never taken from what a tenant named: numbers name subvolumes, and where one
//! belongs is read off the part of its path that root owns.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crabshack_shared::{ids::InstanceId, resources::Bytes};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{folder, mounts::mount_of, sysfs::Qgroups, usage::VolumeUsage};
use crate::command::{self, CommandError, Input, OPEN_FILE, Program};

/// The program; most calls take milliseconds, but a commit of a busy disk can be slow.
pub(crate) const BTRFS: Program = Program {
    name: "btrfs",
    package: "btrfs-progs",
    deadline: Duration::from_secs(120),
};
const MAGIC: u64 = 0x9123_683E;
/// Groups with smaller numbers are people's own.
const OUR_GROUPS: u64 = 1 << 32;

/// A mounted btrfs that counts.
#[derive(Debug, Clone)]
pub(super) struct Btrfs {
    root: PathBuf,
    pub(super) qgroups: Qgroups,
}

/// What was found where the volumes should be.
pub(super) enum Found {
    Quotas(Btrfs),
    /// And why not.
    Nothing(String),
}

/// Where a subvolume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// An instance's home, finished or not.
    Home,
    /// Inside an instance's home: a tenant made it.
    Nested(InstanceId),
    Elsewhere,
}

/// Number of an instance's group: its id's first 48 bits, which is all that btrfs takes.
pub(super) fn group(id: InstanceId) -> u64 {
    // Twelve hex digits always are a number.
    u64::from_str_radix(&id.short(), 16).unwrap_or_default()
}

/// Whether a folder is on btrfs.
pub(crate) fn is_btrfs(folder: &Path) -> io::Result<bool> {
    Ok(u64::try_from(rustix::fs::statfs(folder)?.f_type) == Ok(MAGIC))
}

impl Btrfs {
    /// Looks at the filesystem that holds the volumes. One that counts is used, or it is an error:
    /// new volumes must not silently become unbounded because a program is missing.
    pub(super) async fn find(root: &Path) -> Result<Found, CommandError> {
        let qgroups = match qgroups(root) {
            Ok(qgroups) => qgroups,
            Err(reason) => return Ok(Found::Nothing(reason)),
        };
        let words = ["quota", "rescan", "-s"].map(OsStr::new);
        match command::run(BTRFS, &[&words[..], &[root.as_os_str()]].concat(), Input::Nothing).await {
            Err(error @ (CommandError::Missing { .. } | CommandError::Start { .. })) => return Err(error),
            // Whatever it says, it is there.
            _ => qgroups.count_removals(),
        }
        Ok(Found::Quotas(Self {
            root: root.to_owned(),
            qgroups,
        }))
    }

    /// Makes the instance's group if need be, and bounds it.
    pub(super) async fn limit(&self, id: InstanceId, size: Bytes) -> Result<(), CommandError> {
        let name = format!("1/{}", group(id));
        let made = self.call("qgroup create", &[name.as_ref(), self.root.as_os_str()]).await;
        tolerate(made, "File exists")?;
        let size = size.get().to_string();
        self.call("qgroup limit", &[size.as_ref(), name.as_ref(), self.root.as_os_str()])
            .await
    }

    /// Makes a subvolume in the instance's group.
    pub(super) async fn create(&self, id: InstanceId, path: &Path) -> Result<(), CommandError> {
        let name = format!("1/{}", group(id));
        self.call("subvolume create -i", &[name.as_ref(), path.as_os_str()]).await
    }

    /// Makes a subvolume with a limit of its own, in no group.
    pub(super) async fn create_bounded(&self, path: &Path, size: Bytes) -> Result<(), CommandError> {
        self.call("subvolume create", &[path.as_os_str()]).await?;
        let size = size.get().to_string();
        self.call("qgroup limit", &[size.as_ref(), path.as_os_str()]).await
    }

    /// Puts a subvolume of ours into its instance's group.
    pub(super) async fn adopt(&self, id: InstanceId, home: &Path) -> Result<(), CommandError> {
        let arguments = ["inspect-internal", "rootid"].map(OsStr::new);
        let output = command::run(BTRFS, &[&arguments[..], &[home.as_os_str()]].concat(), Input::Nothing).await?;
        match String::from_utf8_lossy(&output).trim().parse() {
            Ok(number) => self.assign(number, group(id)).await,
            Err(_) => Ok(()),
        }
    }

    /// Counts a subvolume to a group.
    pub(super) async fn assign(&self, subvolume: u64, group: u64) -> Result<(), CommandError> {
        let (subvolume, group) = (format!("0/{subvolume}"), format!("1/{group}"));
        let assigned = self
            .call("qgroup assign", &[subvolume.as_ref(), group.as_ref(), self.root.as_os_str()])
            .await;
        tolerate(assigned, "File exists")
    }

    /// Stops counting a subvolume to a group.
    pub(super) async fn unassign(&self, subvolume: u64, group: u64) -> Result<(), CommandError> {
        let (subvolume, group) = (format!("0/{subvolume}"), format!("1/{group}"));
        self.call("qgroup remove", &[subvolume.as_ref(), group.as_ref(), self.root.as_os_str()])
            .await
    }

    /// The groups that each subvolume claims to be counted to. Names of tenants are part of what is
    /// read, so a claim may be invented; none can be hidden.
    pub(super) async fn claims(&self) -> Result<BTreeMap<u64, BTreeSet<u64>>, CommandError> {
        let arguments = ["qgroup", "show", "-p", "--raw"].map(OsStr::new);
        let output = command::run(BTRFS, &[&arguments[..], &[self.root.as_os_str()]].concat(), Input::Nothing).await?;
        Ok(claims(&String::from_utf8_lossy(&output)))
    }

    /// Removes a group; it may be busy or gone.
    pub(super) async fn remove_group(&self, number: u64) -> Result<(), CommandError> {
        self.call("qgroup destroy", &[format!("1/{number}").as_ref(), self.root.as_os_str()])
            .await
    }

    /// Removes the count of a subvolume that is gone; newer kernels have done it already.
    pub(super) async fn remove_count(&self, subvolume: u64) -> Result<(), CommandError> {
        self.call("qgroup destroy", &[format!("0/{subvolume}").as_ref(), self.root.as_os_str()])
            .await
    }

    /// Numbers of removed subvolumes whose data is still being freed.
    pub(super) async fn being_freed(&self) -> Result<BTreeSet<u64>, CommandError> {
        let arguments = ["subvolume", "list", "-d"].map(OsStr::new);
        let output = command::run(BTRFS, &[&arguments[..], &[self.root.as_os_str()]].concat(), Input::Nothing).await?;
        Ok(freed(&String::from_utf8_lossy(&output)))
    }

    /// Counts everything again.
    pub(super) async fn recount(&self) -> Result<(), CommandError> {
        let started = self.call("quota rescan", &[self.root.as_os_str()]).await;
        tolerate(started, "in progress")
    }

    /// Removes a subvolume by its number.
    pub(super) async fn delete(&self, subvolume: u64) -> Result<(), CommandError> {
        let number = subvolume.to_string();
        self.call("subvolume delete --subvolid", &[number.as_ref(), self.root.as_os_str()])
            .await
    }

    /// Removes a subvolume whose name is ours.
    pub(super) async fn delete_own(&self, path: &Path) -> Result<(), CommandError> {
        self.call("subvolume delete", &[path.as_os_str()]).await
    }

    /// The path of a subvolume from its instance's folder on, as the tenant named it.
    pub(super) async fn path(&self, subvolume: u64) -> Result<Option<Located>, CommandError> {
        let number = subvolume.to_string();
        let arguments = ["inspect-internal", "subvolid-resolve", &number].map(OsStr::new);
        match command::run(BTRFS, &[&arguments[..], &[self.root.as_os_str()]].concat(), Input::Nothing).await {
            Ok(path) => Ok(Some(located(path.strip_suffix(b"\n").unwrap_or(&path)))),
            // Gone, or not there yet.
            Err(CommandError::Failed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets a subvolume be changed which its tenant made read-only: nothing in it could be removed.
    pub(super) async fn make_writable(&self, relative: &Path) -> Result<(), CommandError> {
        let Ok(folder) = open_beneath(&self.root, relative) else {
            return Ok(());
        };
        let arguments = ["property", "set", "-t", "subvol", OPEN_FILE, "ro", "false"];
        command::run(BTRFS, &arguments, Input::File(folder)).await.map(drop)
    }

    /// Use and limit of an instance's group.
    pub(super) fn usage(&self, id: InstanceId) -> io::Result<VolumeUsage> {
        let size = self.qgroups.size(group(id))?;
        Ok(VolumeUsage {
            used: size.used,
            limit: size.limit,
            ..VolumeUsage::default()
        })
    }

    /// The sum of all instances' limits.
    pub(super) fn promised(&self) -> io::Result<Bytes> {
        let mut sum = 0_u64;
        for id in folder::list(&self.root)? {
            sum = sum.saturating_add(self.usage(id)?.limit.map_or(0, Bytes::get));
        }
        Ok(Bytes::new(sum))
    }

    /// Groups of ours whose instance is gone.
    pub(super) fn left_groups(&self) -> io::Result<Vec<u64>> {
        let groups = self.qgroups.of_level(1)?;
        // Read after the groups: a group is only made when the folder is there.
        let held: BTreeSet<u64> = folder::list(&self.root)?.into_iter().map(group).collect();
        Ok(groups
            .into_iter()
            .filter(|number| *number >= OUR_GROUPS && !held.contains(number))
            .collect())
    }

    async fn call(&self, words: &str, operands: &[&OsStr]) -> Result<(), CommandError> {
        let words: Vec<&OsStr> = words.split(' ').map(OsStr::new).collect();
        command::run(BTRFS, &[&words, operands].concat(), Input::Nothing)
            .await
            .map(drop)
    }
}

/// A subvolume's place, and its path from its instance's folder on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) place: Place,
    pub(super) relative: PathBuf,
}

/// The first component that is an instance's id is ours: everything up to it belongs to root.
fn located(path: &[u8]) -> Located {
    let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let id = |component: &&[u8]| {
        std::str::from_utf8(component)
            .ok()
            .and_then(|text| text.parse::<InstanceId>().ok())
    };
    let elsewhere = Located {
        place: Place::Elsewhere,
        relative: PathBuf::new(),
    };
    let Some(at) = components.iter().position(|component| id(component).is_some()) else {
        return elsewhere;
    };
    let Some(instance) = id(&components[at]) else {
        return elsewhere;
    };
    let below = &components[at + 1..];
    let place = match below {
        [b"home" | b"home.new"] => Place::Home,
        [b"home" | b"home.new", _, ..] => Place::Nested(instance),
        _ => return elsewhere,
    };
    let relative = PathBuf::from(OsString::from_vec(components[at..].join(&b'/')));
    Located { place, relative }
}

pub(super) fn qgroups(root: &Path) -> Result<Qgroups, String> {
    let unreadable = |error: io::Error| format!("{} cannot be looked at: {error}", root.display());
    if !is_btrfs(root).map_err(unreadable)? {
        return Err("`crabshack-node-agent pool create` makes a disk that enforces it".to_owned());
    }
    let source = mount_of(root)
        .map_err(unreadable)?
        .and_then(|mount| std::fs::canonicalize(mount.source).ok());
    let device = source.as_deref().and_then(Path::file_name);
    let filesystems = std::fs::read_dir("/sys/fs/btrfs").map_err(unreadable)?.flatten();
    let filesystem = filesystems
        .map(|entry| entry.file_name())
        .find(|name| device.is_some_and(|device| Path::new("/sys/fs/btrfs").join(name).join("devices").join(device).exists()));
    let filesystem = filesystem
        .and_then(|name| name.into_string().ok())
        .ok_or("the kernel does not tell about this btrfs")?;
    Qgroups::of(&filesystem).ok_or_else(|| format!("the btrfs does not count: run `btrfs quota enable {}`", root.display()))
}

fn open_beneath(root: &Path, relative: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        File::open(root)?,
        OsStr::from_bytes(relative.as_os_str().as_bytes()),
        flags,
        Mode::empty(),
        resolve,
    )?)
}

fn tolerate(result: Result<(), CommandError>, words: &str) -> Result<(), CommandError> {
    match result {
        Err(error) if error.says(words) => Ok(()),
        other => other,
    }
}

/// Reads `btrfs qgroup show -p --raw`: number, sizes, the groups above, perhaps a path.
fn claims(text: &str) -> BTreeMap<u64, BTreeSet<u64>> {
    let mut claims = BTreeMap::<u64, BTreeSet<u64>>::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let subvolume = fields.next().and_then(|field| field.strip_prefix("0/")?.parse().ok());
        let (Some(subvolume), Some(above)) = (subvolume, fields.nth(2)) else {
            continue;
        };
        let groups = above.split(',').filter_map(|field| field.strip_prefix("1/")?.parse().ok());
        claims.entry(subvolume).or_default().extend::<Vec<u64>>(groups.collect());
    }
    claims
}

/// Reads `btrfs subvolume list -d`: `ID 256 gen 9 top level 0 path DELETED`.
fn freed(text: &str) -> BTreeSet<u64> {
    let number = |line: &str| line.strip_prefix("ID ")?.split(' ').next()?.parse().ok();
    text.lines().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims__should_be_read_from_btrfs_progs() {
        // btrfs-progs 6.2, with a subvolume whose name holds a line break.
        let shown = "\
Qgroupid         Referenced    Exclusive Parent           Path 
--------         ----------    --------- ------           ---- 
0/5                   16384        16384 -                <toplevel>
0/256                     0            0 1/123456789012   a/home
0/259                     0            0 1/777,1/123456789012 a/home/thief
0/260                     0            0 -                a/home/x
ID 999 gen 1 parent 5 top level 5 path y
1/777                     0            0 -                <0 member qgroups>
";
        let read = claims(shown);
        assert_eq!(read[&256], BTreeSet::from([123_456_789_012]));
        assert_eq!(read[&259], BTreeSet::from([777, 123_456_789_012]));
        assert_eq!(read[&260], BTreeSet::new());
        assert_eq!(read.len(), 4);
        // 5.x: no path, and three dashes for none.
        assert_eq!(claims("0/260      0      0 ---  \n")[&260], BTreeSet::new());
        assert_eq!(freed("ID 256 gen 9 top level 0 path DELETED\n"), BTreeSet::from([256]));
    }

    #[test]
    fn place__should_depend_only_on_what_root_owns() {
        let id = InstanceId::random();
        let other = InstanceId::random();
        let place = |path: String| located(path.as_bytes()).place;
        assert_eq!(place(format!("{id}/home")), Place::Home);
        assert_eq!(place(format!("@/var/data/{id}/home.new")), Place::Home);
        assert_eq!(place(format!("{id}/home/{other}/home")), Place::Nested(id));
        assert_eq!(place(format!("{id}/home/x\n{other}/home")), Place::Nested(id));
        assert_eq!(place(format!("{id}/etc")), Place::Elsewhere);
        assert_eq!(place(String::new()), Place::Elsewhere);
        assert_eq!(
            located(format!("@/{id}/home/a").as_bytes()).relative,
            PathBuf::from(format!("{id}/home/a"))
        );
    }

    #[test]
    fn folder__should_be_opened_only_beneath_and_without_links() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(data.path().join("root/home/a")).unwrap();
        std::os::unix::fs::symlink("/", data.path().join("root/home/link")).unwrap();
        let root = data.path().join("root");
        assert!(open_beneath(&root, Path::new("home/a")).is_ok());
        for path in ["home/link", "home/link/etc", "../root", "home/a/../../..", "/"] {
            assert!(open_beneath(&root, Path::new(path)).is_err(), "{path}");
        }
    }
}
