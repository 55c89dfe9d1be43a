//! Instances: what was asked for. Names are unique among the living, SSH ports among all that may
//! still hold one.

use chrono::{DateTime, Utc};
use crabshack_shared::{
    agent_api::v1::{Desired, OnDisconnect},
    generation::Generation,
    ids::{InstanceId, NodeId, UserId},
    image::ImageReference,
    instance::{InstanceName, ServiceType},
    resources::Resources,
    seal::Sealed,
    services::Profile,
};
use redb::ReadableTable as _;
use serde::{Deserialize, Serialize};

use super::{Snapshot, Source, StoreError, Writing, tables};

/// The SSH ports that instances get, both ends included.
pub(super) const SSH_PORTS: std::ops::RangeInclusive<u16> = 19_001..=29_999;

/// What an instance is, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) service_type: ServiceType,
    pub(crate) image: ImageReference,
    pub(crate) resources: Resources,
    pub(crate) ssh_pubkey: Option<String>,
    pub(crate) nearai_api_url: String,
    #[serde(default)]
    pub(crate) profile: Profile,
}

/// The desired state of one instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) id: InstanceId,
    pub(crate) name: InstanceName,
    pub(crate) owner: UserId,
    pub(crate) spec: Spec,
    /// Its `InstanceSecrets`.
    pub(crate) sealed: Sealed,
    /// Its own for life, on whichever node it is.
    pub(crate) ssh_port: u16,
    pub(crate) desired: Desired,
    /// Of the last wish.
    pub(crate) generation: Generation,
    /// Of the last wish about its state; those after it only changed what it is.
    #[serde(default)]
    pub(crate) wish_generation: Generation,
    /// How often a restart was asked for.
    pub(crate) restarts: u64,
    /// Which node has it; none: not placed yet.
    pub(crate) assignment: Option<NodeId>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) deleted_at: Option<DateTime<Utc>>,
    /// Counts changes that only a new container takes on.
    #[serde(default)]
    pub(crate) spec_revision: u64,
    /// Of the wish with which `spec_revision` last rose.
    #[serde(default)]
    pub(crate) spec_generation: Generation,
    /// What its node does while we are away.
    #[serde(default)]
    pub(crate) on_disconnect: OnDisconnect,
    /// Of the wish with which `on_disconnect` last changed.
    #[serde(default)]
    pub(crate) lease_generation: Generation,
    /// True: it cannot be deleted.
    #[serde(default)]
    pub(crate) protected: bool,
    /// True once only its disk is left: it reserves no memory.
    #[serde(default)]
    pub(crate) disk_only: bool,
    /// Nodes that had it before and may still have a copy.
    #[serde(default)]
    pub(crate) left: Vec<NodeId>,
}

impl InstanceRecord {
    /// False from the moment its deletion is asked for.
    pub(crate) fn is_living(&self) -> bool {
        !matches!(self.desired, Desired::Deleted { .. })
    }

    /// True for the node that has it and those that had it.
    pub(crate) fn was_on(&self, node: &NodeId) -> bool {
        self.assignment.as_ref() == Some(node) || self.left.contains(node)
    }
}

/// An instance to be written down.
#[derive(Debug)]
pub(crate) struct NewInstance {
    pub(crate) id: InstanceId,
    /// None: one is chosen.
    pub(crate) name: Option<InstanceName>,
    pub(crate) owner: UserId,
    pub(crate) spec: Spec,
    pub(crate) sealed: Sealed,
    pub(crate) protected: bool,
    pub(crate) on_disconnect: OnDisconnect,
}

/// Why an instance was not written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Its name belongs to a living one.
    NameTaken,
    /// All SSH ports are held.
    NoPort,
}

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// An instance that lives or is on its way out.
    pub(crate) fn instance(&self, id: InstanceId) -> Result<Option<InstanceRecord>, StoreError> {
        self.record(tables::INSTANCES, &id.to_string())
    }

    /// A living instance.
    pub(crate) fn instance_named(&self, name: &InstanceName) -> Result<Option<InstanceRecord>, StoreError> {
        let Some(id) = self.0.id_of_name(name.as_str())? else {
            return Ok(None);
        };
        match self.record(tables::INSTANCES, &id)? {
            Some(record) => Ok(Some(record)),
            None => Err(StoreError::Missing {
                table: "instances",
                key: id,
            }),
        }
    }

    /// All instances that live or are on their way out, in no order.
    pub(crate) fn instances(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        let mut all = Vec::new();
        self.each_record(tables::INSTANCES, |record| all.push(record))?;
        Ok(all)
    }
}

impl Writing {
    /// Writes down a new instance with the next generation and a free SSH port.
    pub(crate) fn create_instance(
        &self,
        new: NewInstance,
        now: DateTime<Utc>,
    ) -> Result<Result<InstanceRecord, NoPlace>, StoreError> {
        let id = new.id.to_string();
        let name = match new.name {
            Some(name) if self.0.id_of_name(name.as_str())?.is_some() => return Ok(Err(NoPlace::NameTaken)),
            Some(name) => name,
            None => loop {
                let name = InstanceName::random();
                if self.0.id_of_name(name.as_str())?.is_none() {
                    break name;
                }
            },
        };
        let Some(ssh_port) = self.hold_port(&id)? else {
            return Ok(Err(NoPlace::NoPort));
        };
        self.0.open_table(tables::NAMES)?.insert(name.as_str(), id.as_str())?;
        let generation = self.next_generation()?;
        let record = InstanceRecord {
            id: new.id,
            name,
            owner: new.owner,
            spec: new.spec,
            sealed: new.sealed,
            ssh_port,
            desired: Desired::Running,
            generation,
            wish_generation: generation,
            restarts: 0,
            assignment: None,
            created_at: now,
            deleted_at: None,
            spec_revision: 0,
            spec_generation: Generation::default(),
            on_disconnect: new.on_disconnect,
            lease_generation: generation,
            protected: new.protected,
            disk_only: false,
            left: Vec::new(),
        };
        self.put_instance(&record)?;
        Ok(Ok(record))
    }

    /// Writes a changed record.
    pub(crate) fn put_instance(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        self.put(tables::INSTANCES, &record.id.to_string(), record)
    }

    /// Asks for the end of an instance: its name is free from now on.
    pub(crate) fn delete_instance(&self, record: &mut InstanceRecord, purge: bool, now: DateTime<Utc>) -> Result<(), StoreError> {
        record.desired = Desired::Deleted { purge };
        record.deleted_at = Some(now);
        record.generation = self.next_generation()?;
        record.wish_generation = record.generation;
        self.put_instance(record)?;
        let mut names = self.0.open_table(tables::NAMES)?;
        names.remove(record.name.as_str())?;
        Ok(())
    }

    /// Removes an instance of which nothing is left.
    pub(crate) fn forget_instance(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        self.let_go(record)?;
        self.drop_events(&record.id.to_string())
    }

    /// Takes an instance out of everything but its history.
    pub(super) fn let_go(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        let id = record.id.to_string();
        self.take_out(tables::INSTANCES, &id)?;
        self.take_out(tables::OBSERVATIONS, &id)?;
        let mut ports = self.0.open_table(tables::PORTS)?;
        let is_its_own = ports.get(record.ssh_port)?.is_some_and(|holder| holder.value() == id);
        if is_its_own {
            ports.remove(record.ssh_port)?;
        }
        Ok(())
    }

    /// The next free port after the last one given: a port that was freed rests for a while, so
    /// that old `known_hosts` entries and open sessions do not meet a stranger.
    pub(super) fn hold_port(&self, id: &str) -> Result<Option<u16>, StoreError> {
        let mut ports = self.0.open_table(tables::PORTS)?;
        let first = u16::try_from(self.last_port()?)
            .ok()
            .and_then(|last| last.checked_add(1))
            .filter(|next| SSH_PORTS.contains(next))
            .unwrap_or(*SSH_PORTS.start());
        for port in (first..=*SSH_PORTS.end()).chain(*SSH_PORTS.start()..first) {
            if ports.get(port)?.is_none() {
                ports.insert(port, id)?;
                self.set_last_port(port)?;
                return Ok(Some(port));
            }
        }
        Ok(None)
    }
}
