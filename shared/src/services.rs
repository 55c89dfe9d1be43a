//! The table of service types: what both daemons must agree on about each. How one is run is the node
//! agent's recipe; what is here the coordinator needs too, to place it and to carry traffic to it.

use serde::{Deserialize, Serialize};

use crate::{image::ImageReference, instance::ServiceType, resources::Bytes};

/// The user that OpenClaw hears of from us: we have checked who it is.
pub const OWNER: &str = "crabshack-owner";
/// Docker's runtime that gives a container its own users, so that it may run Docker itself.
pub const SYSBOX: &str = "sysbox-runc";

/// How tightly the containers of an instance are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// No privilege at all: uid 1000, no capability, a root that is read only. For images that follow
    /// our contract.
    #[default]
    Strict,
    /// For images that start as root and drop by themselves: a writable root and the capabilities
    /// that this takes, and nothing of the node.
    Compatible,
}

impl Profile {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Compatible => "compatible",
        }
    }
}

/// How an agent learns who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// It trusts a header of ours, in this form: name and value.
    Header(&'static str, &'static str),
    /// It wants its own token, which only we and it know.
    Bearer,
}

/// The `Origin` that an agent lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The one under which browsers see it.
    Public,
    /// Its own machine's.
    Localhost,
}

/// One row.
#[derive(Debug)]
pub struct Service {
    /// The service type.
    pub name: &'static str,
    /// With less, it does not get up.
    pub minimum_memory: Bytes,
    /// The port of its container that serves HTTP and WebSocket.
    pub gateway_port: u16,
    /// Answers 200 on that port, without authentication, as soon as the instance is ready.
    pub health_path: &'static str,
    /// How it learns who is asking.
    pub identity: Identity,
    /// Which pages it lets in.
    pub origin: Origin,
    /// It keeps secrets of its user's under a key that must never change.
    pub keeps_secrets: bool,
    /// Docker's runtime, where the default one will not do.
    pub runtime: Option<&'static str>,
    /// Repositories at Docker Hub whose images of this type start as root.
    pub published: &'static [&'static str],
}

/// Where every image serves its gateway.
const GATEWAY_PORT: u16 = 18_789;

/// The OpenClaw gateway with SSH beside it.
pub const OPENCLAW: Service = Service {
    name: ServiceType::OPENCLAW,
    minimum_memory: Bytes::gibibytes(1),
    gateway_port: GATEWAY_PORT,
    health_path: "/healthz",
    identity: Identity::Header("x-forwarded-user", OWNER),
    origin: Origin::Public,
    keeps_secrets: false,
    runtime: None,
    published: &["nearaidev/openclaw-nearai-worker"],
};

/// The IronClaw worker, with SSH in a container of its own.
pub const IRONCLAW: Service = Service {
    name: "ironclaw",
    minimum_memory: Bytes::mebibytes(512),
    gateway_port: GATEWAY_PORT,
    health_path: "/api/health",
    identity: Identity::Bearer,
    // It answers 403 to a WebSocket from any other page.
    origin: Origin::Localhost,
    keeps_secrets: true,
    runtime: None,
    published: &["nearaidev/ironclaw-nearai-worker"],
};

/// IronClaw with a Docker of its own inside.
pub const IRONCLAW_DIND: Service = Service {
    name: "ironclaw-dind",
    minimum_memory: Bytes::gibibytes(1),
    runtime: Some(SYSBOX),
    published: &["nearaidev/ironclaw-dind"],
    ..IRONCLAW
};

/// Every service type there is.
pub static SERVICES: [Service; 3] = [OPENCLAW, IRONCLAW, IRONCLAW_DIND];

/// The row of a service type; none: it is not known here.
pub fn service(service_type: &ServiceType) -> Option<&'static Service> {
    SERVICES.iter().find(|service| service.name == service_type.as_str())
}

impl Service {
    /// How an image of this type is run when nobody says.
    pub fn profile_of(&self, image: &ImageReference) -> Profile {
        // An image with a runtime of its own is root in users of its own.
        let is_root = self.runtime.is_some() || self.published.contains(&on_docker_hub(image.name()));
        if is_root { Profile::Compatible } else { Profile::Strict }
    }
}

/// The repository, without Docker Hub's own name and without the tag.
fn on_docker_hub(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let start_of_last = name.rfind('/').map_or(0, |at| at + 1);
    match name[start_of_last..].find(':') {
        Some(colon) => &name[..start_of_last + colon],
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile__should_be_compatible_for_published_images_only() {
        let openclaw = service(&ServiceType::new("openclaw")).unwrap();
        for (image, profile) in [
            ("crabshack/openclaw:1", Profile::Strict),
            ("docker.io/nearaidev/openclaw-nearai-worker:latest", Profile::Compatible),
            ("nearaidev/openclaw-nearai-worker:1", Profile::Compatible),
            ("registry.example/nearaidev/openclaw-nearai-worker:1", Profile::Strict),
            ("docker.io/nearaidev/openclaw-nearai-worker-other:1", Profile::Strict),
        ] {
            assert_eq!(openclaw.profile_of(&image.parse().unwrap()), profile, "{image}");
        }
    }

    #[test]
    fn service__should_be_found_by_its_name() {
        for known in &SERVICES {
            assert_eq!(
                service(&ServiceType::new(known.name)).map(|found| found.name),
                Some(known.name)
            );
        }
        assert!(service(&ServiceType::new("other")).is_none());
    }
}
