//! What this Docker is, so that the node can refuse one it cannot work with.

use std::{fs, path::Path, sync::PoisonError};

use bollard::models::SystemInfoCgroupVersionEnum;

use super::{Abilities, Bounds, Docker, DockerError, NORMAL};

/// Facts of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DockerFacts {
    /// Like `20.10.24`.
    pub(crate) version: String,
    /// Like `1.41`.
    pub(crate) api_version: String,
    /// Names of the runtimes it offers, sorted.
    pub(crate) runtimes: Vec<String>,
    /// Like `overlay2`.
    pub(crate) storage_driver: String,
    /// 1 or 2; none: unknown to the engine.
    pub(crate) cgroup_version: Option<u8>,
    /// Something else that speaks Docker's language.
    pub(crate) podman: bool,
    /// It does not run as root.
    pub(crate) rootless: bool,
    /// User ids inside are others outside.
    pub(crate) userns: bool,
    /// Files need SELinux labels.
    pub(crate) selinux: bool,
    /// Containers outlive a restart of dockerd.
    pub(crate) live_restore: bool,
    /// Where it keeps images and containers.
    pub(crate) root: Option<std::path::PathBuf>,
    /// Instances can be given less of a disk than the node's own processes.
    pub(crate) io_weight: bool,
    /// It cannot filter system calls.
    pub(crate) unfiltered: bool,
    /// What it can bound.
    pub(crate) bounds: Bounds,
}

impl DockerFacts {
    /// What this engine or its kernel cannot do and people should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let text = "this kernel gives disks no weights, so a busy instance can slow down the disks of its neighbours";
        self.unbounded()
            .into_iter()
            .chain(self.unfiltered())
            .chain((!self.io_weight).then(|| text.to_owned()))
            .collect()
    }

    /// That no system call of an instance is refused; none: they are filtered.
    pub(crate) fn unfiltered(&self) -> Option<String> {
        let text = "Docker does not filter the system calls of instances here: use a kernel and a Docker with seccomp";
        self.unfiltered.then(|| text.to_owned())
    }

    /// What of an instance's use has no limit; none: everything has one.
    pub(crate) fn unbounded(&self) -> Option<String> {
        let missing = self.bounds.missing();
        (!missing.is_empty()).then(|| {
            format!(
                "Docker cannot bound the {} of instances on this kernel: turn the cgroup controllers on",
                missing.join(", ")
            )
        })
    }
}

impl Docker {
    /// Asks the engine about itself.
    pub(crate) async fn facts(&self) -> Result<DockerFacts, DockerError> {
        let (version, info) = tokio::try_join!(
            self.call(NORMAL, |client| async move { client.version().await }),
            self.call(NORMAL, |client| async move { client.info().await }),
        )
        .map_err(|error| DockerError::of("say what it is", error))?;
        let security = info.security_options.unwrap_or_default();
        let cgroup_version = match info.cgroup_version {
            Some(SystemInfoCgroupVersionEnum::_1) => Some(1),
            Some(SystemInfoCgroupVersionEnum::_2) => Some(2),
            _ => None,
        };
        let io_weight = io_weight(cgroup_version, Path::new("/sys/fs/cgroup"));
        // An engine that says nothing about one of them is taken to have it.
        let bounds = Bounds {
            memory: info.memory_limit.unwrap_or(true),
            swap: info.swap_limit.unwrap_or(true),
            cpu: info.cpu_cfs_period.unwrap_or(true) && info.cpu_cfs_quota.unwrap_or(true),
            pids: info.pids_limit.unwrap_or(true),
        };
        let unfiltered = !has(&security, "seccomp");
        *self.abilities.lock().unwrap_or_else(PoisonError::into_inner) = Abilities {
            io_weight,
            swappiness: cgroup_version == Some(1),
            unfiltered,
            bounds,
        };
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        Ok(DockerFacts {
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            runtimes,
            storage_driver: info.driver.unwrap_or_default(),
            cgroup_version,
            io_weight,
            unfiltered,
            bounds,
            podman: version
                .components
                .unwrap_or_default()
                .iter()
                .any(|component| component.name.to_ascii_lowercase().contains("podman")),
            rootless: has(&security, "rootless"),
            userns: has(&security, "userns"),
            selinux: has(&security, "selinux"),
            live_restore: info.live_restore_enabled.unwrap_or_default(),
            root: info.docker_root_dir.map(Into::into),
        })
    }
}

/// Whether the kernel offers a weight for disks. Asked of the files: on cgroup v2 an engine takes a
/// weight without looking, and then no container starts.
fn io_weight(cgroup_version: Option<u8>, cgroups: &Path) -> bool {
    let offers = |folder: &Path, names: &[&str]| names.iter().any(|name| folder.join(name).exists());
    match cgroup_version {
        Some(1) => offers(&cgroups.join("blkio"), &["blkio.weight", "blkio.bfq.weight"]),
        // The root group has no weight, so look at those below it.
        Some(2) => fs::read_dir(cgroups)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| offers(&entry.path(), &["io.weight", "io.bfq.weight"])),
        _ => false,
    }
}

/// Whether an option like `name=seccomp,profile=default` is among them.
fn has(options: &[String], name: &str) -> bool {
    options
        .iter()
        .any(|option| option.split(',').next() == Some(&format!("name={name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_weight__should_be_believed_only_where_the_kernel_has_a_file_for_it() {
        let cgroups = tempfile::tempdir().unwrap();
        let group = cgroups.path().join("system.slice");
        let blkio = cgroups.path().join("blkio");
        fs::create_dir_all(&group).unwrap();
        fs::create_dir_all(&blkio).unwrap();
        fs::write(blkio.join("blkio.throttle.io_service_bytes"), "").unwrap();
        for version in [None, Some(1), Some(2)] {
            assert!(!io_weight(version, cgroups.path()));
        }
        fs::write(group.join("io.bfq.weight"), "").unwrap();
        assert!(io_weight(Some(2), cgroups.path()) && !io_weight(Some(1), cgroups.path()));
        fs::write(blkio.join("blkio.bfq.weight"), "").unwrap();
        assert!(io_weight(Some(1), cgroups.path()));
    }
}
