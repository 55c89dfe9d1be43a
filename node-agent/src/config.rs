//! Settings of the node agent: every one is a flag and a variable.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, Subcommand};
use crabshack_shared::{config as shared_config, halt::HaltPoint, image::ImageReference, secret::Secret, telemetry::LogFormat};
use ipnet::Ipv4Net;

use crate::{images::Pattern, link::Pool, pool::PoolCommand};

/// Runs the instances of one node: containers, egress rules, disks.
#[derive(Debug, Parser)]
#[command(name = "crabshack-node-agent", version)]
pub(crate) struct Settings {
    /// None: run as a daemon.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Where the coordinator's agent listener is, host:port.
    #[arg(long, env = "CRABSHACK_COORDINATOR", default_value = "127.0.0.1:7701", value_parser = parse_address)]
    pub(crate) coordinator: String,

    /// Join token; needed for the first start only. `crabshack join-token` prints one.
    #[arg(long, env = "CRABSHACK_JOIN_TOKEN", hide_env_values = true)]
    pub(crate) join_token: Option<Secret>,

    /// File that holds the join token.
    #[arg(long, env = "CRABSHACK_JOIN_TOKEN_FILE", conflicts_with = "join_token")]
    pub(crate) join_token_file: Option<PathBuf>,

    /// Folder of the ledger, the certificate and the instances' volumes.
    #[arg(
        long,
        global = true,
        env = "CRABSHACK_AGENT_DATA_DIR",
        default_value = "/var/lib/crabshack/node-agent"
    )]
    pub(crate) data_dir: PathBuf,

    /// Where the coordinator dials in (mTLS).
    #[arg(long, env = "CRABSHACK_DATA_PLANE", default_value = "127.0.0.1:7702")]
    pub(crate) data_plane: SocketAddr,

    /// The same as the coordinator sees it, host:port; by default the address it listens on.
    #[arg(long, env = "CRABSHACK_DATA_PLANE_ADDRESS", value_parser = parse_address)]
    pub(crate) data_plane_address: Option<String>,

    /// Where /health, /ready, /metrics and /doctor answer.
    #[arg(long, global = true, env = "CRABSHACK_HEALTH_LISTEN", default_value = "127.0.0.1:7703")]
    pub(crate) health_listen: SocketAddr,

    /// Private network that instances get their addresses from.
    #[arg(long, env = "CRABSHACK_POOL", default_value = "10.201.0.0/16", value_parser = parse_pool)]
    pub(crate) pool: Pool,

    /// Resolvers that instances' questions are passed on to, ip or ip:port; by default those of /etc/resolv.conf.
    #[arg(long, env = "CRABSHACK_DNS_UPSTREAMS", value_delimiter = ',', value_parser = parse_resolver)]
    pub(crate) dns_upstreams: Vec<SocketAddr>,

    /// Address of the node on which SSH ports are published.
    #[arg(long, env = "CRABSHACK_SSH_BIND", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub(crate) ssh_bind: IpAddr,

    /// Image of the SSH server that stands beside agents without one of their own (`infra/images/ssh/build.sh`).
    #[arg(long, env = "CRABSHACK_SSH_IMAGE", default_value = "crabshack/ssh:1")]
    pub(crate) ssh_image: ImageReference,

    /// Docker's socket.
    #[arg(
        long,
        global = true,
        env = "CRABSHACK_DOCKER_SOCKET",
        default_value = "unix:///var/run/docker.sock"
    )]
    pub(crate) docker_socket: String,

    /// Images that this node runs, whoever asks: repositories, tags or digests, `*` for anything, comma
    /// between; by default any.
    #[arg(long, env = "CRABSHACK_ALLOWED_IMAGES", value_delimiter = ',')]
    pub(crate) allowed_images: Vec<Pattern>,

    /// So many images are pulled at once.
    #[arg(long, env = "CRABSHACK_PULLS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) pulls: u8,

    /// How long an image that was pulled and that nobody needs is kept, like `1d`, `12h` or `30m`.
    #[arg(long, env = "CRABSHACK_IMAGE_GRACE", default_value = "1d", value_parser = shared_config::span)]
    pub(crate) image_grace: Duration,

    /// Log more.
    #[arg(long, env = "CRABSHACK_DEBUG", value_parser = clap::builder::FalseyValueParser::new(), num_args = 0..=1, default_missing_value = "1", default_value = "0")]
    pub(crate) debug: bool,

    /// How log lines look.
    #[arg(long, env = "CRABSHACK_LOG_FORMAT", value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// For the crash harness: where to die.
    #[arg(long, env = "CRABSHACK_HALT_AT", hide = true)]
    pub(crate) halt_at: Option<HaltPoint>,
}

/// What else the program does than run as a daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The disk of all volumes: a preallocated file with a btrfs that enforces every `storage_size`.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Compare what should be true of this node with what is, and say what to do. Exits with 1 when
    /// something is left to do.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

fn parse_pool(text: &str) -> Result<Pool, String> {
    let network: Ipv4Net = text
        .parse()
        .map_err(|_| "it must be a network like 10.201.0.0/16".to_owned())?;
    Pool::new(network).map_err(|error| error.to_string())
}

/// `host:port` with a name or an address, `[address]:port` for IPv6. Names are looked up later: they may move.
fn parse_address(text: &str) -> Result<String, String> {
    let refused = || format!("`{text}` is not host:port, like coordinator.example:7701 or 192.0.2.1:7701");
    let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_good = match address {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|letter| letter.is_ascii_alphanumeric() || "-._".contains(letter))
        }
    };
    match port.parse::<u16>() {
        Ok(1..) if host_is_good => Ok(text.to_owned()),
        _ => Err(refused()),
    }
}

fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)))
        .map_err(|_| format!("`{text}` is not an address like 9.9.9.9 or 9.9.9.9:53"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address__should_be_a_host_and_a_port() {
        for good in ["127.0.0.1:7701", "node-1.example:1", "localhost:7701", "[2001:db8::1]:7701"] {
            assert_eq!(parse_address(good).as_deref(), Ok(good));
        }
        for bad in [
            "no port",
            "no port:7701",
            "host",
            ":7701",
            "host:0",
            "host:70000",
            "2001:db8::1:7701",
            "[x]:1",
            "http://host:1",
        ] {
            assert!(parse_address(bad).is_err_and(|error| error.contains("host:port")), "{bad}");
        }
        for (flag, value) in [("--coordinator", "host"), ("--data-plane-address", "host")] {
            assert!(Settings::try_parse_from(["agent", flag, value]).is_err(), "{flag}");
        }
    }

    #[test]
    fn settings__should_read_resolvers_with_and_without_port() {
        let settings = Settings::parse_from(["agent", "--dns-upstreams", "9.9.9.9,127.0.0.1:5353"]);
        assert_eq!(
            settings.dns_upstreams,
            ["9.9.9.9:53".parse().unwrap(), "127.0.0.1:5353".parse().unwrap()]
        );
        assert!(Settings::try_parse_from(["agent", "--pool", "8.8.8.0/24"]).is_err());
        assert!(settings.command.is_none());
        let pool = Settings::parse_from(["agent", "pool", "create", "--size", "8g", "--data-dir", "/data"]);
        assert!(matches!(pool.command, Some(Command::Pool(PoolCommand::Create { .. }))));
        assert_eq!(pool.data_dir, PathBuf::from("/data"));
        let doctor = Settings::parse_from(["agent", "doctor", "--json", "--health-listen", "127.0.0.1:1"]);
        assert!(matches!(doctor.command, Some(Command::Doctor { json: true })));
        assert_eq!(doctor.health_listen.port(), 1);
    }
}
