//! What can go wrong with Docker, and what to do about it.

use std::time::Duration;

use bollard::errors::Error;
use crabshack_shared::{ids::InstanceId, image::ImageReference};

/// Why Docker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DockerError {
    /// Not a unix socket.
    #[error("`{socket}` is not a Docker socket: give the path of a unix socket, like unix:///var/run/docker.sock")]
    Socket {
        /// What was given.
        socket: String,
    },
    /// Nobody answers.
    #[error("Docker does not answer: check that dockerd runs and that CRABSHACK_DOCKER_SOCKET names its socket")]
    Unreachable(#[source] Box<Error>),
    /// It took the question and went silent.
    #[error("Docker did not {operation} in time: look into dockerd's log")]
    Timeout {
        /// What was asked.
        operation: &'static str,
    },
    /// No such image on the node.
    #[error("image {image} is not on this node: pull it, or build it here")]
    NoImage {
        /// Which.
        image: ImageReference,
    },
    /// The node's own list does not allow it.
    #[error("{reason}")]
    NotAllowed {
        /// In whole words.
        reason: String,
    },
    /// It would write where nothing bounds it.
    #[error(
        "image {image} declares a volume at `{path}`, which would escape the instance's disk limit: build it without that VOLUME line"
    )]
    ImageVolume {
        /// Which.
        image: ImageReference,
        /// Where.
        path: String,
    },
    /// The registry does not give it.
    #[error("image {image} cannot be pulled: {problem}; Docker says: {message}")]
    Pull {
        /// Which.
        image: ImageReference,
        /// What is the matter.
        problem: PullProblem,
        /// What was said.
        message: String,
    },
    /// The registry went silent.
    #[error("pulling image {image} made no progress for {} minutes: check the registry and the network", limit.as_secs() / 60)]
    PullStalled {
        /// Which.
        image: ImageReference,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It is not there.
    #[error("instance {instance} has no container")]
    NoSuchContainer {
        /// Whose.
        instance: InstanceId,
    },
    /// It is not there.
    #[error("instance {instance} has no network")]
    NoSuchNetwork {
        /// Whose.
        instance: InstanceId,
    },
    /// Nothing can be run in it.
    #[error("the container of instance {instance} is not running")]
    NotRunning {
        /// Whose.
        instance: InstanceId,
    },
    /// Another network has the name.
    #[error("network cs-{instance} exists but {difference}: remove it with `docker network rm cs-{instance}`")]
    NetworkDiffers {
        /// Whose.
        instance: InstanceId,
        /// What is not as wanted.
        difference: String,
    },
    /// What is there stands in the way.
    #[error("cannot {operation} of instance {instance}: {message}")]
    Conflict {
        /// What was asked.
        operation: &'static str,
        /// Whose.
        instance: InstanceId,
        /// What stands in the way.
        message: String,
    },
    /// Somebody else listens there.
    #[error(
        "port {port} of the node is taken: stop what listens there (`ss -ltnp 'sport = :{port}'`), or give the instance another port"
    )]
    PortTaken {
        /// Which.
        port: u16,
    },
    /// Docker was killed between reserving the port and starting the container. Started again it reserves
    /// the port anew, drops the endpoint and forgets the port; nothing but its own restart frees it.
    #[error(
        "Docker still reserves port {port} for a start that its own death cut short, though no container has the port: restart \
         Docker (`systemctl restart docker`; with live-restore no container ends by that)"
    )]
    PortLeftOver {
        /// Which.
        port: u16,
    },
    /// Addresses overlap.
    #[error("the addresses of instance {instance} are in use on this node ({message}): give the node another CRABSHACK_POOL")]
    AddressInUse {
        /// Whose.
        instance: InstanceId,
        /// What Docker said.
        message: String,
    },
    /// The engine refused.
    #[error("Docker could not {operation}: {message}")]
    Engine {
        /// What was asked.
        operation: &'static str,
        /// What it said.
        message: String,
    },
    /// The conversation broke.
    #[error("the conversation with Docker broke while it was to {operation}")]
    Client {
        /// What was asked.
        operation: &'static str,
        /// How.
        #[source]
        source: Box<Error>,
    },
}

impl DockerError {
    /// Whether a person must act before another try can work.
    pub(crate) fn needs_person(&self) -> bool {
        match self {
            Self::Socket { .. }
            | Self::NoImage { .. }
            | Self::NotAllowed { .. }
            | Self::ImageVolume { .. }
            | Self::NetworkDiffers { .. }
            | Self::PortTaken { .. }
            | Self::PortLeftOver { .. }
            | Self::AddressInUse { .. } => true,
            Self::Pull { problem, .. } => problem.needs_person(),
            // Others pass by themselves, or show by coming again that they do not.
            _ => false,
        }
    }

    /// For errors that mean nothing special to the caller.
    pub(super) fn of(operation: &'static str, error: Error) -> Self {
        match error {
            Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message } => {
                match taken_port(&message) {
                    Some(port) => Self::PortTaken { port },
                    None => Self::Engine { operation, message },
                }
            }
            Error::RequestTimeoutError => Self::Timeout { operation },
            Error::SocketNotFoundError(_) => Self::Unreachable(Box::new(error)),
            Error::HyperLegacyError { ref err } if err.is_connect() => Self::Unreachable(Box::new(error)),
            source => Self::Client {
                operation,
                source: Box::new(source),
            },
        }
    }
}

/// Why an image did not come, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PullProblem {
    #[error("its registry does not have it: check its name")]
    NotFound,
    #[error("its registry does not let us pull it: check its name, or PUT /registries/HOST with a login")]
    Refused,
    #[error("its registry limits pulls: it is tried again; a login may raise the limit (PUT /registries/HOST)")]
    Limited,
    #[error("the transfer was cut: it is tried again")]
    Cut,
    #[error("its registry cannot be reached or fails: it is tried again")]
    Unreachable,
    #[error("the node's disk has no room for it: it is tried again when there is some")]
    NoRoom,
    #[error("what came is not what its digest names: ask whoever runs the registry")]
    Differs,
    #[error("there is none for this node's architecture")]
    Architecture,
    #[error("the node's Docker wants TLS: for a registry without it, add it to `insecure-registries` of Docker's daemon.json")]
    WantsTls,
    #[error("check its name, the registry and the node's access to it")]
    Other,
}

impl PullProblem {
    /// Docker only gives words. The first line that fits counts.
    pub(super) fn of(message: &str) -> Self {
        const WORDS: [(&str, PullProblem); 31] = [
            ("no space left on device", PullProblem::NoRoom),
            ("disk quota exceeded", PullProblem::NoRoom),
            ("manifest verification failed", PullProblem::Differs),
            ("layer verification failed", PullProblem::Differs),
            ("unexpected commit digest", PullProblem::Differs),
            ("digest mismatch", PullProblem::Differs),
            ("does not match the specified platform", PullProblem::Architecture),
            ("no matching manifest", PullProblem::Architecture),
            ("exec format error", PullProblem::Architecture),
            ("image operating system", PullProblem::Architecture),
            ("toomanyrequests", PullProblem::Limited),
            ("too many requests", PullProblem::Limited),
            ("server gave http response to https client", PullProblem::WantsTls),
            ("denied", PullProblem::Refused),
            ("unauthorized", PullProblem::Refused),
            ("authentication required", PullProblem::Refused),
            ("no basic auth credentials", PullProblem::Refused),
            ("manifest unknown", PullProblem::NotFound),
            ("no such host", PullProblem::Unreachable),
            ("not found", PullProblem::NotFound),
            ("unexpected eof", PullProblem::Cut),
            ("connection reset", PullProblem::Cut),
            ("broken pipe", PullProblem::Cut),
            ("unexpected http status", PullProblem::Unreachable),
            ("error parsing http", PullProblem::Unreachable),
            ("timeout", PullProblem::Unreachable),
            ("deadline exceeded", PullProblem::Unreachable),
            ("connection refused", PullProblem::Unreachable),
            ("dial tcp", PullProblem::Unreachable),
            ("server error", PullProblem::Unreachable),
            ("eof", PullProblem::Cut),
        ];
        let message = message.to_ascii_lowercase();
        WORDS
            .iter()
            .find(|(words, _)| message.contains(words))
            .map_or(Self::Other, |(_, problem)| *problem)
    }

    fn needs_person(self) -> bool {
        !matches!(self, Self::Limited | Self::Cut | Self::Unreachable | Self::NoRoom)
    }
}

/// The engine's status code; none: it did not get as far as to answer.
pub(super) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// The engine's words.
pub(super) fn message(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// End of a refusal for a port that Docker itself has given away.
pub(super) const RESERVED: &str = " failed: port is already allocated";

/// The port in `Bind for 0.0.0.0:19001 failed: port is already allocated` (another container has
/// it) or `listen tcp4 0.0.0.0:19001: bind: address already in use` (another process).
fn taken_port(message: &str) -> Option<u16> {
    [RESERVED, ": bind: address already in use"]
        .iter()
        .filter_map(|end| message.split_once(end))
        .find_map(|(before, _)| before.rsplit(':').next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_problem__should_be_told_from_dockers_words() {
        for (message, problem) in [
            (
                "manifest for a/b:1 not found: manifest unknown: manifest unknown",
                PullProblem::NotFound,
            ),
            (
                "pull access denied for a/b, repository does not exist or may require 'docker login'",
                PullProblem::Refused,
            ),
            ("Get \"https://x/v2/\": no basic auth credentials", PullProblem::Refused),
            (
                "toomanyrequests: You have reached your pull rate limit.",
                PullProblem::Limited,
            ),
            ("write /var/lib/docker/tmp/x: no space left on device", PullProblem::NoRoom),
            (
                "filesystem layer verification failed for digest sha256:1",
                PullProblem::Differs,
            ),
            ("manifest verification failed for digest sha256:1", PullProblem::Differs),
            (
                "no matching manifest for linux/arm64/v8 in the manifest list entries",
                PullProblem::Architecture,
            ),
            ("unexpected EOF", PullProblem::Cut),
            (
                "received unexpected HTTP status: 500 Internal Server Error",
                PullProblem::Unreachable,
            ),
            ("dial tcp: lookup x: no such host", PullProblem::Unreachable),
            ("http: server gave HTTP response to HTTPS client", PullProblem::WantsTls),
            ("something else", PullProblem::Other),
        ] {
            assert_eq!(PullProblem::of(message), problem, "{message}");
        }
        assert!(PullProblem::NotFound.needs_person() && !PullProblem::Limited.needs_person());
    }

    #[test]
    fn docker_error__should_name_the_taken_port() {
        for message in [
            "driver failed programming external connectivity on endpoint cs-1 (ab12): Bind for 0.0.0.0:19001 failed: port is already allocated",
            "failed: Error starting userland proxy: listen tcp4 0.0.0.0:19001: bind: address already in use",
            "failed to bind host port for [::]:19001 failed: port is already allocated",
        ] {
            assert_eq!(taken_port(message), Some(19001), "{message}");
        }
        assert_eq!(taken_port("Address already in use"), None);
    }
}
