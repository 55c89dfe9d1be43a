//! What can be asked of the `crabshack` binary. Every setting is a flag and a variable.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser, value_parser};
use crabshack_shared::{config::span, halt::HaltPoint, secret::Secret, telemetry::LogFormat};

/// Hosts AI agents: holds who owns what, serves the API, carries traffic to the nodes.
#[derive(Debug, Parser)]
#[command(name = "crabshack", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the coordinator.
    Serve(Box<ServeArguments>),
    /// Ask the running coordinator for a token with which one node may join.
    JoinToken(JoinTokenArguments),
    /// Make the next start outrank everything said before. Use it on a store that was restored from an older copy.
    Recover(RecoverArguments),
}

/// How the admin secret is given.
#[derive(Debug, Args)]
pub(crate) struct AdminSecret {
    /// The secret that opens the API, at least 16 characters.
    #[arg(long = "admin-secret", env = "CRABSHACK_ADMIN_SECRET", hide_env_values = true)]
    pub(crate) secret: Option<Secret>,
    /// A file that holds the secret.
    #[arg(long = "admin-secret-file", env = "CRABSHACK_ADMIN_SECRET_FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Args)]
pub(crate) struct Logging {
    /// Log more.
    #[arg(long, env = "CRABSHACK_DEBUG", value_parser = switch, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) debug: bool,
    /// Log lines for people or for collectors.
    #[arg(long, env = "CRABSHACK_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

/// Settings of `crabshack serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) admin: AdminSecret,
    #[command(flatten)]
    pub(crate) logging: Logging,
    /// Port of the public API on the loopback address.
    #[arg(long, env = "CRABSHACK_PORT", default_value_t = 7700, value_parser = value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Port of browser traffic on the loopback address.
    #[arg(long, env = "CRABSHACK_UI_PORT", default_value_t = 3000, value_parser = value_parser!(u16).range(1..))]
    pub(crate) ui_port: u16,
    /// Where node agents connect.
    #[arg(long, env = "CRABSHACK_AGENT_LISTEN", default_value = "127.0.0.1:7701")]
    pub(crate) agent_listen: SocketAddr,
    /// Where everything is kept.
    #[arg(long, env = "CRABSHACK_DATA_DIR", default_value = "./crabshack-data")]
    pub(crate) data_dir: PathBuf,
    /// The domain under which every instance has its host, `NAME.ZONE`; by default the host of the public URL, or `localhost`.
    #[arg(long, env = "CRABSHACK_UI_ZONE", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) ui_zone: Option<String>,
    /// Scheme, host and port that users see; `http://ZONE:UI_PORT` by default.
    #[arg(long, env = "CRABSHACK_PUBLIC_URL")]
    pub(crate) public_url: Option<String>,
    /// Host under which users reach the nodes by SSH; by default the address that each node gives.
    #[arg(long, env = "NODE_SSH_HOST", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) node_ssh_host: Option<String>,
    /// SSH port of the nodes themselves.
    #[arg(long, env = "NODE_SSH_PORT", default_value_t = 22, value_parser = value_parser!(u16).range(1..))]
    pub(crate) node_ssh_port: u16,
    /// Who logs in to the nodes themselves.
    #[arg(long, env = "NODE_SSH_USER", default_value = "root", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) node_ssh_user: String,
    /// How much memory may be promised for each byte that a node has.
    #[arg(long, env = "CRABSHACK_MEMORY_OVERCOMMIT", default_value_t = 1.0, value_parser = overcommit)]
    pub(crate) memory_overcommit: f64,
    /// Seconds after which a stream gives up waiting. The work goes on.
    #[arg(long, env = "CRABSHACK_READY_TIMEOUT", default_value_t = 120, value_parser = value_parser!(u64).range(1..=86_400))]
    pub(crate) ready_timeout: u64,
    /// How long the disk of a deleted instance is kept, like `7d`, `12h`, `30m` or `10s`.
    #[arg(long, env = "CRABSHACK_DELETE_GRACE", default_value = "7d", value_parser = span)]
    pub(crate) delete_grace: Duration,
    /// File with certificates (PEM) of authorities that registries and other services outside may have,
    /// beside those of the system.
    #[arg(long, env = "CRABSHACK_CA_BUNDLE")]
    pub(crate) ca_bundle: Option<PathBuf>,
    /// A command in an instance that says and hears nothing for so long is ended.
    #[arg(long, env = "CRABSHACK_EXEC_IDLE", default_value = "1h", value_parser = span)]
    pub(crate) exec_idle: Duration,
    /// A command in an instance is ended after so long.
    #[arg(long, env = "CRABSHACK_EXEC_LENGTH", default_value = "24h", value_parser = span)]
    pub(crate) exec_length: Duration,
    /// Life of certificates in seconds, for tests.
    #[arg(long, env = "CRABSHACK_CERTIFICATE_SECONDS", hide = true, default_value_t = 90 * 24 * 3600, value_parser = value_parser!(u64).range(5..=31_536_000))]
    pub(crate) certificate_seconds: u64,
    /// Life of join tokens in seconds, for tests.
    #[arg(long, env = "CRABSHACK_JOIN_TOKEN_SECONDS", hide = true, default_value_t = 3600, value_parser = value_parser!(u32).range(1..=3600))]
    pub(crate) join_token_seconds: u32,
    /// Where the crash harness kills this process, for tests.
    #[arg(long, env = "CRABSHACK_HALT_AT", hide = true)]
    pub(crate) halt_at: Option<HaltPoint>,
}

/// Settings of `crabshack join-token`.
#[derive(Debug, Args)]
pub(crate) struct JoinTokenArguments {
    #[command(flatten)]
    pub(crate) admin: AdminSecret,
    /// Port of the public API on the loopback address.
    #[arg(long, env = "CRABSHACK_PORT", default_value_t = 7700, value_parser = value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

/// Settings of `crabshack recover`.
#[derive(Debug, Args)]
pub(crate) struct RecoverArguments {
    /// Where everything is kept.
    #[arg(long, env = "CRABSHACK_DATA_DIR", default_value = "./crabshack-data")]
    pub(crate) data_dir: PathBuf,
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

fn overcommit(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.1..=1000.0).contains(&ratio) => Ok(ratio),
        _ => Err("use a ratio from 0.1 to 1000, like 1.5".to_owned()),
    }
}
