//! The parts of the machine that a plan acts on.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use crabshack_shared::image::ImageReference;

use crate::{
    docker::Docker,
    egress::Egress,
    images::Images,
    ledger::Entry,
    pressure::Disks,
    recipe::RecipeInput,
    volume::{InstanceFolder, Volumes},
};

/// Docker, the ruleset, the disks, and the addresses that recipes need.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) docker: Docker,
    pub(crate) egress: Arc<Egress>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) disks: Disks,
    pub(crate) images: Arc<Images>,
    pub(crate) service_address: Ipv4Addr,
    pub(crate) ssh_bind: IpAddr,
    pub(crate) ssh_image: Arc<ImageReference>,
}

impl Node {
    /// The folders of an instance.
    pub(crate) fn folder(&self, entry: &Entry) -> InstanceFolder {
        self.volumes.folder(entry.order.id)
    }

    /// What a recipe needs to know.
    pub(crate) fn recipe_input<'a>(&'a self, entry: &'a Entry, folder: &'a InstanceFolder) -> RecipeInput<'a> {
        RecipeInput {
            order: &entry.order,
            link: &entry.link,
            folder,
            service_address: self.service_address,
            ssh_bind: self.ssh_bind,
            ssh_image: &self.ssh_image,
        }
    }
}
