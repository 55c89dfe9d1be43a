//! What each service type expects of a proxy in front of it. A service type that is not listed is
//! spoken to like any web server.

use crabshack_shared::instance::ServiceType;
use http::{HeaderName, HeaderValue};

/// Port of the gateway inside an instance.
const GATEWAY_PORT: u16 = 18789;

/// How to speak to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upstream {
    /// Where its gateway listens.
    pub(super) port: u16,
    /// The header by which it learns who is asking. A constant role: who is a member is decided
    /// here, so that the agent's own configuration never changes with its members.
    pub(super) identity: Option<(HeaderName, HeaderValue)>,
}

impl Upstream {
    /// The row of a service type.
    pub(super) fn of(service_type: &ServiceType) -> Self {
        let identity = match service_type.as_str() {
            ServiceType::OPENCLAW => Some((
                HeaderName::from_static("x-forwarded-user"),
                HeaderValue::from_static("crabshack-owner"),
            )),
            _ => None,
        };
        Self {
            port: GATEWAY_PORT,
            identity,
        }
    }
}
