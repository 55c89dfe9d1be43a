//! The settings in the form the code uses. Complete and checked before anything binds.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crabshack_shared::{instance::InstanceName, secret::Secret};
use http::Uri;
use reqwest::Certificate;

use crate::cli::{AdminSecret, ServeArguments};

/// A shorter admin secret could be guessed.
const SECRET_MINIMUM: usize = 16;

/// A setting that cannot be used. The text names the variable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("set CRABSHACK_ADMIN_SECRET or CRABSHACK_ADMIN_SECRET_FILE: the API cannot be served without a secret")]
    NoSecret,
    #[error("set only one of CRABSHACK_ADMIN_SECRET and CRABSHACK_ADMIN_SECRET_FILE")]
    TwoSecrets,
    #[error("CRABSHACK_ADMIN_SECRET must be at least {SECRET_MINIMUM} printable characters without spaces")]
    BadSecret,
    #[error("CRABSHACK_ADMIN_SECRET_FILE: {path} cannot be read")]
    SecretFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("CRABSHACK_UI_ZONE must be a lowercase domain like `localhost` or `agents.example.com`, without a port")]
    Zone,
    #[error("CRABSHACK_PUBLIC_URL must be scheme, host and port, like `https://agents.example.com`, without a path")]
    PublicUrl,
    #[error(
        "CRABSHACK_PUBLIC_URL and CRABSHACK_UI_ZONE name different hosts: instances are hosts of one zone, so leave the zone out"
    )]
    TwoZones,
    #[error("CRABSHACK_CA_BUNDLE: {path} cannot be read")]
    CaBundleFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("CRABSHACK_CA_BUNDLE: {path} must hold certificates in PEM form")]
    CaBundle { path: PathBuf },
}

/// Browsers resolve it, and every host under it, by themselves.
const DEFAULT_ZONE: &str = "localhost";

/// What the coordinator was started with.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Opens the API.
    pub(crate) admin_secret: Secret,
    /// Port of the public API.
    pub(crate) port: u16,
    /// Port of browser traffic.
    pub(crate) ui_port: u16,
    /// Where node agents connect.
    pub(crate) agent_listen: SocketAddr,
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
    /// The domain under which every instance has its host, lowercase.
    pub(crate) zone: String,
    /// What users see of us.
    pub(crate) public_url: PublicUrl,
    /// How to log in to nodes, and to instances on them.
    pub(crate) node_ssh: NodeSsh,
    /// Promised memory per real memory.
    pub(crate) memory_overcommit: f64,
    /// After this a stream gives up waiting.
    pub(crate) ready_timeout: Duration,
    /// So long the disk of a deleted instance is kept.
    pub(crate) delete_grace: Duration,
    /// Authorities that are trusted beside the system's, for what goes out.
    pub(crate) ca_bundle: Vec<Certificate>,
    /// A command is ended when it says and hears nothing for so long.
    pub(crate) exec_idle: Duration,
    /// A command is ended after so long.
    pub(crate) exec_length: Duration,
    /// Life of a certificate.
    pub(crate) certificate_life: Duration,
    /// How long a join token can be used.
    pub(crate) join_token_life: Duration,
}

/// Scheme, host and port under which browsers reach the UI listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicUrl {
    /// `http` or `https`.
    pub(crate) scheme: &'static str,
    /// The host that users see.
    pub(crate) host: String,
    /// The port, also when it is the scheme's default.
    pub(crate) port: u16,
}

/// How to log in to nodes.
#[derive(Debug)]
pub(crate) struct NodeSsh {
    /// Overrides what each node says.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
    pub(crate) user: String,
}

impl Settings {
    /// Checks what clap could not.
    pub(crate) fn new(arguments: &ServeArguments) -> Result<Self, ConfigError> {
        let public_url = arguments.public_url.as_deref().map(PublicUrl::parse).transpose()?;
        let zone = match (&arguments.ui_zone, &public_url) {
            (Some(zone), _) => zone.trim_end_matches('.').to_owned(),
            (None, Some(url)) => url.host.clone(),
            (None, None) => DEFAULT_ZONE.to_owned(),
        };
        if !is_domain(&zone) {
            return Err(ConfigError::Zone);
        }
        let public_url = public_url.unwrap_or_else(|| PublicUrl {
            scheme: "http",
            host: zone.clone(),
            port: arguments.ui_port,
        });
        if public_url.host != zone {
            return Err(ConfigError::TwoZones);
        }
        Ok(Self {
            admin_secret: admin_secret(&arguments.admin)?,
            port: arguments.port,
            ui_port: arguments.ui_port,
            agent_listen: arguments.agent_listen,
            data_dir: arguments.data_dir.clone(),
            zone,
            public_url,
            node_ssh: NodeSsh {
                host: arguments.node_ssh_host.clone(),
                port: arguments.node_ssh_port,
                user: arguments.node_ssh_user.clone(),
            },
            memory_overcommit: arguments.memory_overcommit,
            ready_timeout: Duration::from_secs(arguments.ready_timeout),
            delete_grace: arguments.delete_grace,
            ca_bundle: arguments.ca_bundle.as_deref().map_or(Ok(Vec::new()), ca_bundle)?,
            exec_idle: arguments.exec_idle,
            exec_length: arguments.exec_length,
            certificate_life: Duration::from_secs(arguments.certificate_seconds),
            join_token_life: Duration::from_secs(arguments.join_token_seconds.into()),
        })
    }

    /// Under which origin browsers see an instance, like `http://agent-1.localhost:3000`.
    pub(crate) fn origin(&self, name: &InstanceName) -> String {
        let PublicUrl { scheme, port, .. } = &self.public_url;
        let zone = &self.zone;
        match (*scheme, *port) {
            ("http", 80) | ("https", 443) => format!("{scheme}://{name}.{zone}"),
            _ => format!("{scheme}://{name}.{zone}:{port}"),
        }
    }
}

impl PublicUrl {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let uri: Uri = text.parse().map_err(|_| ConfigError::PublicUrl)?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => ("http", 80),
            Some("https") => ("https", 443),
            _ => return Err(ConfigError::PublicUrl),
        };
        let authority = uri.authority().ok_or(ConfigError::PublicUrl)?;
        let bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        let port = match authority.port() {
            Some(_) => authority.port_u16().filter(|port| *port != 0).ok_or(ConfigError::PublicUrl)?,
            None => default_port,
        };
        if !bare || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(ConfigError::PublicUrl);
        }
        Ok(Self {
            scheme,
            host: authority.host().to_ascii_lowercase(),
            port,
        })
    }
}

/// The admin secret from wherever it was given.
pub(crate) fn admin_secret(given: &AdminSecret) -> Result<Secret, ConfigError> {
    let secret = match (&given.secret, &given.file) {
        (Some(_), Some(_)) => return Err(ConfigError::TwoSecrets),
        (None, None) => return Err(ConfigError::NoSecret),
        (Some(secret), None) => secret.clone(),
        (None, Some(path)) => {
            let text = fs::read_to_string(path).map_err(|source| ConfigError::SecretFile {
                path: path.clone(),
                source,
            })?;
            Secret::from(text.trim().to_owned())
        }
    };
    let text = secret.expose();
    if text.len() >= SECRET_MINIMUM && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(secret)
    } else {
        Err(ConfigError::BadSecret)
    }
}

fn ca_bundle(path: &Path) -> Result<Vec<Certificate>, ConfigError> {
    let path_of = || path.to_owned();
    let bytes = fs::read(path).map_err(|source| ConfigError::CaBundleFile { path: path_of(), source })?;
    let certificates = Certificate::from_pem_bundle(&bytes).unwrap_or_default();
    if certificates.is_empty() {
        return Err(ConfigError::CaBundle { path: path_of() });
    }
    Ok(certificates)
}

fn is_domain(text: &str) -> bool {
    text.len() <= 180
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    fn settings(flags: &[&str]) -> Result<Settings, ConfigError> {
        let base = ["crabshack", "serve", "--admin-secret", "0123456789abcdef"];
        let cli = Cli::try_parse_from(base.iter().chain(flags)).unwrap();
        match cli.command {
            Command::Serve(arguments) => Settings::new(&arguments),
            _ => unreachable!("only serve is asked for"),
        }
    }

    #[test]
    fn settings__should_derive_the_origin_of_an_instance() {
        let name = "agent-1".parse().unwrap();
        assert_eq!(settings(&[]).unwrap().origin(&name), "http://agent-1.localhost:3000");
        let public = [
            "--public-url",
            "https://agents.example.com",
            "--ui-zone",
            "agents.example.com",
        ];
        assert_eq!(settings(&public).unwrap().origin(&name), "https://agent-1.agents.example.com");
        let port = ["--public-url", "https://example.com:8443/", "--ui-zone", "example.com"];
        assert_eq!(settings(&port).unwrap().origin(&name), "https://agent-1.example.com:8443");
    }

    #[test]
    fn settings__should_refuse_what_cannot_be_used_and_name_the_variable() {
        for (flags, variable) in [
            (&["--public-url", "ftp://x"][..], "CRABSHACK_PUBLIC_URL"),
            (&["--public-url", "http://x/path"], "CRABSHACK_PUBLIC_URL"),
            (&["--public-url", "http://x:0"], "CRABSHACK_PUBLIC_URL"),
            (&["--ui-zone", "a_b"], "CRABSHACK_UI_ZONE"),
            (&["--ui-zone", "localhost:3000"], "CRABSHACK_UI_ZONE"),
            (&["--admin-secret-file", "/nonexistent"], "CRABSHACK_ADMIN_SECRET_FILE"),
            (&["--ca-bundle", "/nonexistent"], "CRABSHACK_CA_BUNDLE"),
            (&["--ca-bundle", "/dev/null"], "CRABSHACK_CA_BUNDLE"),
        ] {
            let text = settings(flags).unwrap_err().to_string();
            assert!(text.contains(variable), "{text}");
        }
        let short = AdminSecret {
            secret: Some(Secret::from("short".to_owned())),
            file: None,
        };
        assert!(matches!(admin_secret(&short), Err(ConfigError::BadSecret)));
    }
}
