//! Which images instances are made from. Everything that can be known of an image is known before the
//! first byte of a stream, and an instance is ordered by digest, so that a tag that is replaced later
//! changes nothing.
//!
//! The rule: what a node has that came from no registry is used as it is; everything else is asked of its
//! registry; what that does not give, at all or in time, is used as a node has it.

mod allowed;
mod judge;
mod manifest;
mod registry;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crabshack_shared::{
    agent_api::v1::{HeldImage, ImageOrders, RegistryLogin},
    image::ImageReference,
    instance::ServiceType,
    problem::Problem,
    telemetry::Chain,
};

use self::{manifest::Found, registry::RegistryError};
use crate::{
    api::internal,
    app::App,
    store::{Reading, RegistryRecord, StoreError},
};

/// A registry that takes longer gives no answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a node has told of a new image of its own, and how often to look.
const NEWS: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(200);
/// What is known of so many digests is remembered.
const REMEMBERED: usize = 1000;

/// Asks registries.
#[derive(Debug)]
pub(crate) struct Images {
    http: reqwest::Client,
    /// What was found under a digest never changes.
    known: Mutex<HashMap<ImageReference, Found>>,
}

impl Images {
    /// Asks through this client.
    pub(crate) fn new(http: reqwest::Client) -> Self {
        Self {
            http,
            known: Mutex::default(),
        }
    }

    /// What a registry says of an image, within a bounded time.
    async fn look_up(&self, image: &ImageReference, access: registry::Access) -> Result<Found, RegistryError> {
        if image.digest().is_some()
            && let Some(found) = self.known().get(image)
        {
            return Ok(found.clone());
        }
        let asked = registry::look_up(&self.http, image, access);
        let found = tokio::time::timeout(PATIENCE, asked)
            .await
            .map_err(|_elapsed| RegistryError::Slow(PATIENCE))??;
        if let Ok(pinned) = image.pinned(&found.digest) {
            let mut known = self.known();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(pinned, found.clone());
        }
        Ok(found)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ImageReference, Found>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks an image for a service type: allowed, there, fit for the nodes. Returns the reference to order,
/// which is pinned to a digest unless the image came from no registry.
pub(crate) async fn check(app: &App, service_type: &ServiceType, image: &ImageReference) -> Result<ImageReference, Problem> {
    let (image, nodes, access) = {
        let reading = app.store.reading().map_err(internal)?;
        let list = reading.images().map_err(internal)?;
        let image = allowed::admit(&list, service_type.as_str(), image)?;
        let nodes = nodes(app, &reading).map_err(internal)?;
        let access = access(app, &reading, &image).map_err(internal)?;
        (image, nodes, access)
    };
    if let Some(local) = judge::local(&image, &nodes.held) {
        return Ok(local);
    }
    let asked = app.images.look_up(&image, access).await;
    match judge::judge(&image, asked, &nodes) {
        Err(problem) => fresh(app, &image).await.ok_or(problem),
        found => found,
    }
}

/// An image that was built on a node just now: the node tells of it a moment later.
async fn fresh(app: &App, image: &ImageReference) -> Option<ImageReference> {
    let look = async || {
        let reading = app.store.reading().ok()?;
        judge::local(image, &nodes(app, &reading).ok()?.held)
    };
    let began = Instant::now();
    while began.elapsed() < NEWS {
        tokio::time::sleep(LOOK).await;
        if let Some(local) = look().await {
            return Some(local);
        }
    }
    None
}

/// The digest that a reference leads to now; of an image that came from no registry, its id.
pub(crate) async fn digest(app: &App, image: &ImageReference) -> Result<String, Problem> {
    let (held, access) = {
        let reading = app.store.reading().map_err(internal)?;
        let held = nodes(app, &reading).map_err(internal)?.held;
        (held, access(app, &reading, image).map_err(internal)?)
    };
    if judge::local(image, &held).is_some()
        && let Some(digest) = judge::held(image, &held)
    {
        return Ok(digest.to_owned());
    }
    match app.images.look_up(image, access).await {
        Ok(found) => Ok(found.digest),
        Err(error) => Err(judge::problem(image, &error)),
    }
}

/// What nodes should know of images.
pub(crate) fn orders(app: &App, reading: &Reading) -> Result<ImageOrders, StoreError> {
    let list = reading.images()?;
    let allowed = list
        .iter()
        .filter(|entry| entry.is_allowed())
        .map(|entry| entry.pinned())
        .collect();
    let mut registries = Vec::new();
    for record in reading.registries()? {
        // One that cannot be opened must not keep a node from its orders.
        match login(app, &record) {
            Ok(login) => registries.extend(login),
            Err(error) => {
                tracing::error!(host = record.host, error = %Chain(&error), "the password of a registry cannot be opened");
            }
        }
    }
    Ok(ImageOrders { allowed, registries })
}

fn login(app: &App, record: &RegistryRecord) -> Result<Option<RegistryLogin>, StoreError> {
    let Some(login) = &record.login else { return Ok(None) };
    Ok(Some(RegistryLogin {
        host: record.host.clone(),
        username: login.username.clone(),
        password: app.store.password(&record.host, login)?,
    }))
}

/// What the nodes that speak to us have, and what they are.
#[derive(Debug, Default)]
struct Nodes {
    held: Vec<HeldImage>,
    architectures: BTreeSet<String>,
    /// One of them has an older node agent, which does not tell what it has.
    not_telling: bool,
}

fn nodes(app: &App, reading: &Reading) -> Result<Nodes, StoreError> {
    let mut all = Nodes::default();
    for node in reading.nodes()? {
        if node.revoked || !app.registry.is_alive(&node.id) {
            continue;
        }
        if let Some(facts) = node.facts {
            all.not_telling |= facts.images.is_none();
            all.held.extend(facts.images.unwrap_or_default());
            all.architectures.insert(facts.architecture);
        }
    }
    Ok(all)
}

/// How to ask the registry of an image.
fn access(app: &App, reading: &Reading, image: &ImageReference) -> Result<registry::Access, StoreError> {
    let host = image.location().registry;
    let record = reading.registry(&host)?;
    let login = match &record {
        Some(record) => login(app, record)?,
        None => None,
    };
    Ok(registry::Access {
        plain_http: record.map_or_else(|| registry::is_loopback(&host), |record| record.plain_http),
        login: login.map(|login| (login.username, login.password)),
    })
}

#[cfg(test)]
mod tests;
