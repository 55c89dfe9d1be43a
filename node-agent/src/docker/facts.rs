//! What this Docker is, so that the node can refuse one it cannot work with.

use bollard::models::SystemInfoCgroupVersionEnum;

use super::{Docker, DockerError, NORMAL};

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
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        Ok(DockerFacts {
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            runtimes,
            storage_driver: info.driver.unwrap_or_default(),
            cgroup_version: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_1) => Some(1),
                Some(SystemInfoCgroupVersionEnum::_2) => Some(2),
                _ => None,
            },
            podman: version
                .components
                .unwrap_or_default()
                .iter()
                .any(|component| component.name.to_ascii_lowercase().contains("podman")),
            rootless: has(&security, "rootless"),
            userns: has(&security, "userns"),
            selinux: has(&security, "selinux"),
            live_restore: info.live_restore_enabled.unwrap_or_default(),
        })
    }
}

/// Whether an option like `name=seccomp,profile=default` is among them.
fn has(options: &[String], name: &str) -> bool {
    options
        .iter()
        .any(|option| option.split(',').next() == Some(&format!("name={name}")))
}
