//! Docker's word that something happened to an instance.

use std::{collections::HashMap, future::ready};

use bollard::query_parameters::EventsOptionsBuilder;
use crabshack_shared::ids::InstanceId;
use futures_util::{Stream, TryStreamExt as _, stream};

use super::{Docker, DockerError, NORMAL, labels};

/// Something happened to the container of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happening {
    /// Whose.
    pub(crate) instance: InstanceId,
    /// The kernel killed a process of it for want of memory. Nothing but this event tells so when the
    /// container runs on.
    pub(crate) out_of_memory: bool,
}

const OPERATION: &str = "tell what happens";

impl Docker {
    /// Instances whose container ended, went, ran out of memory, was paused or changed its health. Ends, or
    /// gives an error and ends, when dockerd goes: then call again and look at everything, since
    /// nothing tells what was missed. Hints only, so what is not readable is passed over.
    pub(crate) fn events(&self) -> impl Stream<Item = Result<Happening, DockerError>> + Send + use<> {
        let filters = HashMap::from([
            ("type", vec!["container"]),
            ("label", vec![labels::INSTANCE]),
            ("event", vec!["die", "destroy", "oom", "pause", "health_status"]),
        ]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let client = self.client(NORMAL);
        stream::once(ready(client))
            .map_ok(move |client| client.events(Some(options.clone())))
            .try_flatten()
            .map_err(|error| DockerError::of(OPERATION, error))
            .try_filter_map(|event| {
                let attributes = event.actor.and_then(|actor| actor.attributes);
                let id = attributes.and_then(|attributes| attributes.get(labels::INSTANCE)?.parse().ok());
                let out_of_memory = event.action.as_deref() == Some("oom");
                ready(Ok(id.map(|instance| Happening { instance, out_of_memory })))
            })
    }
}
