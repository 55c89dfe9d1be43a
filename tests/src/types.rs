//! Images of the service types: the real ones of `infra/images`, and stand-ins for published ones, which
//! start as root.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{command, dockerd::Dockerd, image, machine::Machine};

/// The stub as an image that says nothing of a user, so it starts as root.
pub const ROOT_STUB: &str = "crabshack/stub-root:1";
/// IronClaw as a published image has it: started as root, with an SSH server of its own.
pub const PUBLISHED: &str = "crabshack/published-ironclaw:1";

/// Starts as root and drops, as published images do.
const ENTRYPOINT: &str = r#"#!/bin/sh
set -eu
mkdir -p /run/sshd /home/agent/.ssh
printf '%s\n' "${SSH_PUBKEY:-}" >/home/agent/.ssh/authorized_keys
chown -R 1000:1000 /home/agent
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
/usr/sbin/sshd -p 2222 -o PasswordAuthentication=no -o PermitRootLogin=no
exec setpriv --reuid 1000 --regid 1000 --clear-groups /usr/local/bin/ironclaw --no-onboard
"#;

/// A tar that `infra/images/{name}` has built before.
#[derive(Debug, Clone)]
pub struct Built {
    folder: PathBuf,
    tar: PathBuf,
}

impl Built {
    /// None: it was never built here, which takes long.
    pub fn find(name: &str) -> anyhow::Result<Option<Self>> {
        let folder = image::repository().join("infra/images").join(name);
        let tar = command::run(&format!("{} --tar-if-cached", folder.join("build.sh").display()))?;
        let tar = PathBuf::from(tar.trim());
        Ok((!tar.as_os_str().is_empty()).then_some(Self { folder, tar }))
    }

    /// Imports it, and says its name.
    pub async fn import(&self, dockerd: &Dockerd) -> anyhow::Result<String> {
        let ask = |argument: &str| command::run(&format!("{} {argument}", self.folder.join("build.sh").display()));
        let (name, changes) = (ask("--print-name")?, ask("--print-changes")?);
        let changes: Vec<_> = changes.lines().collect();
        image::import(dockerd, &self.tar, name.trim(), &changes).await?;
        Ok(name.trim().to_owned())
    }
}

/// The real images, where both were built.
#[derive(Debug, Clone)]
pub struct Real {
    ironclaw: Built,
    ssh: Built,
}

impl Real {
    /// None: one of them is not there.
    pub fn find() -> anyhow::Result<Option<Self>> {
        let found = Built::find("ironclaw")?.zip(Built::find("ssh")?);
        Ok(found.map(|(ironclaw, ssh)| Self { ironclaw, ssh }))
    }

    /// Imports all; returns the names of IronClaw's and of the SSH server's.
    pub async fn import(&self, machine: &Machine) -> anyhow::Result<(String, String)> {
        let dockerd = &machine.dockerd;
        let names = (self.ironclaw.import(dockerd).await?, self.ssh.import(dockerd).await?);
        let tar = self.published(&machine.folder().join("published"))?;
        let changes = [r#"ENTRYPOINT ["/usr/local/bin/start"]"#];
        image::import(dockerd, &tar, PUBLISHED, &changes).await?;
        fs::remove_file(tar)?;
        Ok(names)
    }

    /// The SSH server's system with IronClaw in it.
    fn published(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let program = "./usr/local/bin/ironclaw";
        fs::create_dir_all(folder)?;
        command::run(&format!(
            "tar -C {} -xf {} {program}",
            folder.display(),
            self.ironclaw.tar.display()
        ))?;
        let start = folder.join("usr/local/bin/start");
        fs::write(&start, ENTRYPOINT)?;
        fs::set_permissions(&start, Permissions::from_mode(0o755))?;
        let tar = folder.with_extension("tar");
        fs::copy(&self.ssh.tar, &tar).context("the SSH image cannot be copied")?;
        command::run(&format!(
            "tar -C {} --owner=0 --group=0 -rf {} {program} ./usr/local/bin/start",
            folder.display(),
            tar.display()
        ))?;
        fs::remove_dir_all(folder)?;
        Ok(tar)
    }
}

/// Imports the stub as an image that starts as root.
pub async fn import_root_stub(dockerd: &Dockerd) -> anyhow::Result<()> {
    let changes = [
        "ENV HOME=/home/agent",
        r#"ENTRYPOINT ["/usr/local/bin/crabshack-stub-agent"]"#,
    ];
    image::import(dockerd, &image::stub_tar()?, ROOT_STUB, &changes).await
}
