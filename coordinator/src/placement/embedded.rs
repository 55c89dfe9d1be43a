//! Placement by the coordinator itself.

use crabshack_shared::ids::NodeId;

use super::{Candidate, Need, NoRoom, Placement, choose};

/// Reserves memory up to a ratio of what a node has.
#[derive(Debug)]
pub(crate) struct Embedded {
    /// Promised memory per real memory.
    pub(crate) overcommit: f64,
}

impl Placement for Embedded {
    fn choose(&self, candidates: &mut [Candidate], need: Need) -> Result<NodeId, NoRoom> {
        let index = choose::least_reserved(candidates, need, self.overcommit)?;
        let chosen = &mut candidates[index];
        chosen.reserved = chosen.reserved.saturating_add(need.memory);
        chosen.promised = chosen.promised.saturating_add(need.storage);
        Ok(chosen.node.clone())
    }
}
