//! The service types that can be asked for. The node decides how each is run.

use crabshack_shared::{instance::ServiceType, resources::Bytes};

/// What the coordinator needs to know of a service type.
struct Known {
    name: &'static str,
    /// Below this it cannot start, so never less is reserved.
    minimum_memory: Bytes,
}

const KNOWN: [Known; 1] = [Known {
    name: ServiceType::OPENCLAW,
    minimum_memory: Bytes::gibibytes(1),
}];

/// The service type of that name, if there is one.
pub(crate) fn find(name: &str) -> Option<ServiceType> {
    KNOWN
        .iter()
        .find(|known| known.name == name)
        .map(|known| ServiceType::new(known.name))
}

/// All names, for people.
pub(crate) fn names() -> String {
    KNOWN.map(|known| known.name).join(", ")
}

/// What is reserved at least; nothing for a type that is no longer known.
pub(crate) fn minimum_memory(service_type: &ServiceType) -> Bytes {
    KNOWN
        .iter()
        .find(|known| known.name == service_type.as_str())
        .map_or(Bytes::new(0), |known| known.minimum_memory)
}
