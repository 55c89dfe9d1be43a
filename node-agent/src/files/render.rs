//! The files' texts. Pure.

use std::collections::BTreeMap;

use crabshack_shared::secret::Secret;

use super::{FilesError, MANAGED};
use crate::recipe::{Files, SSH_PORT};

/// Where the container sees the files.
const MOUNTED: &str = "/etc/crabshack";

/// One file as it should be.
pub(super) struct Wanted {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    /// None: it should not be there.
    pub(super) content: Option<Vec<u8>>,
}

/// Everything but the host key, which is made and not rendered.
pub(super) fn render(files: &Files) -> Result<[Wanted; 4], FilesError> {
    let authorized_keys = files.authorized_keys.as_ref().filter(|_| files.ssh);
    Ok([
        Wanted {
            name: MANAGED,
            mode: 0o600,
            content: Some(managed(files)),
        },
        Wanted {
            name: "env",
            mode: 0o400,
            content: Some(environment(&files.environment)?.into_bytes()),
        },
        Wanted {
            name: "authorized_keys",
            mode: 0o600,
            content: authorized_keys.map(|keys| keys.clone().into_bytes()),
        },
        Wanted {
            name: "sshd_config",
            mode: 0o600,
            content: files.ssh.then(|| sshd_config().into_bytes()),
        },
    ])
}

/// The settings that win over the workload's own.
pub(super) fn managed(files: &Files) -> Vec<u8> {
    format!("{:#}\n", files.managed).into_bytes()
}

/// `KEY=VALUE` lines, the value literally up to the end of the line.
fn environment(variables: &BTreeMap<String, Secret>) -> Result<String, FilesError> {
    let mut text = String::new();
    for (name, value) in variables {
        let refuse = |problem| {
            Err(FilesError::Environment {
                name: name.clone(),
                problem,
            })
        };
        let mut characters = name.bytes();
        let valid = characters
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
            && characters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !valid {
            return refuse("its name must be letters, digits and `_`, not starting with a digit");
        }
        if value.expose().contains(['\n', '\r', '\0']) {
            return refuse("its value must be one line");
        }
        for part in [name, "=", value.expose(), "\n"] {
            text.push_str(part);
        }
    }
    Ok(text)
}

/// sshd without any privilege: it runs as the one user that may log in.
fn sshd_config() -> String {
    format!(
        "# Written by the Crabshack node agent, which replaces changes.\n\
         Port {SSH_PORT}\n\
         HostKey {MOUNTED}/{host_key}\n\
         AuthorizedKeysFile {MOUNTED}/authorized_keys\n\
         AllowUsers agent\n\
         UsePAM no\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         PermitRootLogin no\n\
         AllowTcpForwarding no\n\
         AllowStreamLocalForwarding no\n\
         AllowAgentForwarding no\n\
         X11Forwarding no\n\
         PermitTunnel no\n\
         GatewayPorts no\n\
         Subsystem sftp internal-sftp\n\
         PidFile none\n\
         PrintMotd no\n\
         MaxAuthTries 3\n\
         LoginGraceTime 20\n\
         ClientAliveInterval 60\n",
        host_key = super::host_key::PRIVATE,
    )
}
