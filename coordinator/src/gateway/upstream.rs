//! What each service type expects of a proxy in front of it. A service type that is not listed is
//! spoken to like any web server.

use crabshack_shared::{
    instance::ServiceType,
    secret::Secret,
    services::{self, Identity, OPENCLAW, Origin, Profile},
};
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};

/// How to speak to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upstream {
    /// Where its gateway listens.
    pub(super) port: u16,
    /// The header by which it learns who is asking. A constant role: who is a member is decided
    /// here, so that the agent's own configuration never changes with its members.
    pub(super) identity: Option<(HeaderName, HeaderValue)>,
    /// The page that it believes to be its own, where that is not the one that browsers see.
    pub(super) origin: Option<HeaderValue>,
}

impl Upstream {
    /// The row of an instance's service type, with its agent's own token.
    pub(super) fn of(service_type: &ServiceType, profile: Profile, agent_token: &Secret) -> Self {
        let service = services::service(service_type);
        let identity = service.and_then(|service| match (service.identity, profile) {
            (Identity::Header(name, value), Profile::Strict) => {
                Some((HeaderName::from_static(name), HeaderValue::from_static(value)))
            }
            // An image that is not ours was not told to trust our header.
            (Identity::Bearer, _) | (Identity::Header(..), Profile::Compatible) => {
                let mut value = HeaderValue::try_from(format!("Bearer {}", agent_token.expose())).ok()?;
                value.set_sensitive(true);
                Some((AUTHORIZATION, value))
            }
        });
        let localhost = service.is_some_and(|service| service.origin == Origin::Localhost);
        Self {
            // One that is not known is an older one.
            port: service.unwrap_or(&OPENCLAW).gateway_port,
            identity,
            origin: localhost.then_some(HeaderValue::from_static("http://localhost")),
        }
    }
}
