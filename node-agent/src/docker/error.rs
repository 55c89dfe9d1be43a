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
    #[error("image {image} cannot be pulled: {message}; check its name, the registry and the node's access to it")]
    Pull {
        /// Which.
        image: ImageReference,
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
            | Self::ImageVolume { .. }
            | Self::Pull { .. }
            | Self::NetworkDiffers { .. }
            | Self::PortTaken { .. }
            | Self::PortLeftOver { .. }
            | Self::AddressInUse { .. } => true,
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
