//! SSH ports that instances hold which are not known here: a node has them, and this store lost them
//! or never knew them. Nobody else may get such a port while its holder is there.

use std::collections::{BTreeMap, BTreeSet};

use crabshack_shared::ids::{InstanceId, NodeId};

use super::{InstanceRecord, Snapshot, Source, StoreError, Writing, instances::SSH_PORTS, tables};

/// The ports that the unknown instances of a node hold, with their holders.
pub(crate) type UnknownPorts = BTreeMap<u16, InstanceId>;

/// What is to be done about a port.
#[derive(Debug)]
pub(crate) enum PortChange {
    /// Its unknown holder is gone.
    Free(u16),
    /// It is free here, and held there.
    Hold(u16, InstanceId),
    /// It was given to an instance that could never use it and gets another one.
    Take(u16, InstanceId, Box<InstanceRecord>),
}

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// What is to be done so that exactly the reported ports are held for the unknown instances of
    /// a node.
    pub(crate) fn port_changes(&self, node: &NodeId, reported: &UnknownPorts) -> Result<Vec<PortChange>, StoreError> {
        let mut changes = Vec::new();
        let mut taken = BTreeSet::new();
        let mut known = Vec::new();
        self.0.each_port(|port, holder| {
            let by_unknown = of_unknown(holder, node);
            match reported.get(&port) {
                Some(id) if by_unknown == Some(*id) => {
                    taken.insert(port);
                }
                // Held again below, for whoever has it now.
                _ if by_unknown.is_some() => changes.push(PortChange::Free(port)),
                Some(id) => {
                    taken.insert(port);
                    known.extend(holder.parse::<InstanceId>().ok().map(|holder| (port, *id, holder)));
                }
                None => {}
            }
        })?;
        let free = |port: &u16| SSH_PORTS.contains(port) && !taken.contains(port);
        changes.extend(
            reported
                .iter()
                .filter(|(port, _)| free(port))
                .map(|(port, id)| PortChange::Hold(*port, *id)),
        );
        for (port, id, holder) in known {
            if let Some(record) = self.unused(node, holder)? {
                changes.push(PortChange::Take(port, id, Box::new(record)));
            }
        }
        Ok(changes)
    }

    /// An instance that is or may come on this node, and whose container never answered.
    fn unused(&self, node: &NodeId, id: InstanceId) -> Result<Option<InstanceRecord>, StoreError> {
        let used = self.observation(id)?.is_some_and(|observation| observation.ready_once);
        Ok(self
            .instance(id)?
            .filter(|record| !used && record.is_living() && record.assignment.as_ref().is_none_or(|assigned| assigned == node)))
    }
}

impl Writing {
    /// Holds the reported ports, and no others, for the unknown instances of a node. Returns those
    /// that got another port by that, which is a new wish.
    pub(crate) fn hold_unknown_ports(&self, node: &NodeId, reported: &UnknownPorts) -> Result<Vec<InstanceRecord>, StoreError> {
        let mut moved = Vec::new();
        for change in self.port_changes(node, reported)? {
            match change {
                PortChange::Free(port) => {
                    self.0.open_table(tables::PORTS)?.remove(port)?;
                }
                PortChange::Hold(port, id) => self.hold_for_unknown(node, port, id)?,
                PortChange::Take(port, id, mut record) => {
                    // With no port left it keeps the one that it cannot have.
                    let Some(other) = self.hold_port(&record.id.to_string())? else {
                        continue;
                    };
                    self.hold_for_unknown(node, port, id)?;
                    record.ssh_port = other;
                    record.generation = self.next_generation()?;
                    self.put_instance(&record)?;
                    moved.push(*record);
                }
            }
        }
        Ok(moved)
    }

    fn hold_for_unknown(&self, node: &NodeId, port: u16, id: InstanceId) -> Result<(), StoreError> {
        let mut ports = self.0.open_table(tables::PORTS)?;
        ports.insert(port, format!("{node}/{id}").as_str())?;
        Ok(())
    }
}

/// The unknown instance of this node that holds a port.
fn of_unknown(holder: &str, node: &NodeId) -> Option<InstanceId> {
    holder.strip_prefix(node.as_str())?.strip_prefix('/')?.parse().ok()
}

#[cfg(test)]
mod tests;
