//! Deleted instances whose disk is still there: they can be asked back, or their disk can go.

use crabshack_shared::{agent_api::v1::Desired, ids::InstanceId, instance::InstanceName};
use redb::ReadableTable as _;

use super::{InstanceRecord, NoPlace, Snapshot, Source, StoreError, Writing, tables};

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// A deleted instance of which only the disk is left.
    pub(crate) fn retired(&self, id: InstanceId) -> Result<Option<InstanceRecord>, StoreError> {
        self.record(tables::RETIRED, &id.to_string())
    }

    /// All of them, in no order.
    pub(crate) fn retired_instances(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        let mut all = Vec::new();
        self.each_record(tables::RETIRED, |record| all.push(record))?;
        Ok(all)
    }

    /// Whatever takes something from a node: instances, and disks whose instance is gone.
    pub(crate) fn claims(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        let mut all = self.instances()?;
        all.append(&mut self.retired_instances()?);
        Ok(all)
    }

    /// A deleted instance whose disk is to be kept, also one that is still on its way out.
    pub(crate) fn deleted_instance(&self, id: InstanceId) -> Result<Option<InstanceRecord>, StoreError> {
        let leaving = self
            .instance(id)?
            .filter(|record| record.desired == Desired::Deleted { purge: false });
        match leaving {
            Some(record) => Ok(Some(record)),
            None => self.retired(id),
        }
    }
}

impl Writing {
    /// Puts away an instance of which only the disk is left.
    pub(crate) fn retire_instance(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        let mut kept = record.clone();
        kept.disk_only = true;
        self.let_go(record)?;
        self.put(tables::RETIRED, &record.id.to_string(), &kept)
    }

    /// Asks for the removal of a deleted instance's disk: its node is ordered to, and it is
    /// forgotten once the node has.
    pub(crate) fn purge_instance(&self, record: &mut InstanceRecord) -> Result<(), StoreError> {
        record.desired = Desired::Deleted { purge: true };
        record.generation = self.next_generation()?;
        record.wish_generation = record.generation;
        self.take_out(tables::RETIRED, &record.id.to_string())?;
        self.put_instance(record)
    }

    /// Makes a deleted instance a living one again, under its old name or another one, with its old
    /// SSH port if nobody has that now.
    pub(crate) fn undelete_instance(
        &self,
        record: &mut InstanceRecord,
        name: Option<InstanceName>,
    ) -> Result<Result<(), NoPlace>, StoreError> {
        let id = record.id.to_string();
        let name = name.unwrap_or_else(|| record.name.clone());
        if self.0.id_of_name(name.as_str())?.is_some() {
            return Ok(Err(NoPlace::NameTaken));
        }
        if !self.hold_this_port(record.ssh_port, &id)? {
            match self.hold_port(&id)? {
                Some(port) => record.ssh_port = port,
                None => return Ok(Err(NoPlace::NoPort)),
            }
        }
        self.0.open_table(tables::NAMES)?.insert(name.as_str(), id.as_str())?;
        record.name = name;
        record.desired = Desired::Running;
        record.deleted_at = None;
        record.disk_only = false;
        record.generation = self.next_generation()?;
        record.wish_generation = record.generation;
        self.take_out(tables::RETIRED, &id)?;
        self.put_instance(record)?;
        Ok(Ok(()))
    }

    /// False: somebody else has it.
    fn hold_this_port(&self, port: u16, id: &str) -> Result<bool, StoreError> {
        let mut ports = self.0.open_table(tables::PORTS)?;
        let holder = ports.get(port)?.map(|holder| holder.value().to_owned());
        match holder {
            Some(holder) => Ok(holder == id),
            None => {
                ports.insert(port, id)?;
                Ok(true)
            }
        }
    }
}
