//! The node's images: which it may have, how they come, and when they go. Pulls are few at a time; what
//! the coordinator's list allows is here before it is asked for; what nobody needs any more is removed,
//! if this node agent pulled it.

mod collect;
mod policy;
mod progress;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::Utc;
use crabshack_shared::{
    agent_api::v1::{Desired, HeldImage, ImageOrders, Pressure, PullProgress, RegistryLogin},
    image::ImageReference,
    telemetry::Chain,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};

use self::progress::Layers;
pub(crate) use self::{
    collect::Pulled,
    policy::{Pattern, Policy},
};
use crate::{
    docker::{Docker, DockerError},
    ledger::Ledger,
    pressure::Disks,
};

/// How often progress is told, and the disk looked at, during a pull.
const TELL_PERIOD: Duration = Duration::from_secs(1);

/// Settings of the node about images.
#[derive(Debug)]
pub(crate) struct ImageSettings {
    /// What may run here.
    pub(crate) policy: Policy,
    /// So many images are pulled at once.
    pub(crate) pulls: usize,
    /// So long what nobody needs is kept.
    pub(crate) grace: Duration,
}

/// The node's images.
pub(crate) struct Images {
    docker: Docker,
    ledger: Arc<Ledger>,
    disks: Disks,
    policy: Policy,
    grace: Duration,
    permits: Semaphore,
    /// Those that somebody waits for, each with its turn and how far it has come.
    pulls: Mutex<BTreeMap<ImageReference, Pull>>,
    /// Why allowed images are not here yet.
    troubles: Mutex<BTreeMap<ImageReference, String>>,
    orders: watch::Receiver<ImageOrders>,
    /// Starts a pass of the reconciler.
    wake: Arc<Notify>,
    /// Counts what happened to images on the node.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Pull {
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: usize,
    progress: Option<PullProgress>,
}

impl Images {
    /// Nothing is done before [`Self::spawn`] but what is asked for.
    pub(crate) fn new(docker: Docker, ledger: Arc<Ledger>, disks: Disks, settings: ImageSettings, wake: Arc<Notify>) -> Self {
        Self {
            docker,
            orders: ledger.image_orders(),
            ledger,
            disks,
            policy: settings.policy,
            grace: settings.grace,
            permits: Semaphore::new(settings.pulls),
            pulls: Mutex::default(),
            troubles: Mutex::default(),
            wake,
            changes: watch::Sender::new(0),
        }
    }

    /// Why this node makes no container from an image, whoever asks; none: it does.
    pub(crate) fn refusal(&self, image: &ImageReference) -> Option<String> {
        self.policy.refusal(image)
    }

    /// Gets an image that is not here. Who asks for one that is on its way waits for it.
    pub(crate) async fn pull(&self, image: &ImageReference) -> Result<(), DockerError> {
        if let Some(reason) = self.refusal(image) {
            return Err(DockerError::NotAllowed { reason });
        }
        let waiting = Waiting::begin(self, image);
        let _turn = waiting.turn.lock().await;
        if self.docker.image_digest(image).await?.is_some() {
            return Ok(());
        }
        let _permit = self.permits.acquire().await.ok();
        if let Err(error) = self.ledger.note_pull(image, Utc::now()) {
            tracing::warn!(%image, error = %Chain(&error), "it cannot be written down that this image is pulled: it will have to be removed by hand");
        }
        let began = Instant::now();
        let mut told = began;
        let mut layers = Layers::default();
        self.tell(image, Some(PullProgress::default()));
        let login = self.login(image);
        let pulled = self
            .docker
            .pull(image, login.as_ref(), |line| {
                let detail = line.progress_detail.as_ref();
                layers.note(
                    line.id.as_deref().unwrap_or_default(),
                    line.status.as_deref().unwrap_or_default(),
                    detail.and_then(|detail| detail.current),
                    detail.and_then(|detail| detail.total),
                );
                if told.elapsed() < TELL_PERIOD {
                    return true;
                }
                told = Instant::now();
                self.tell(image, Some(layers.sum()));
                self.disks.pressure() < Pressure::Pulls
            })
            .await;
        self.tell(image, None);
        if pulled.is_ok() {
            tracing::info!(%image, seconds = began.elapsed().as_secs(), "pulled");
        }
        pulled
    }

    /// How far a pull has come; none: the image is not being pulled.
    pub(crate) fn progress(&self, image: &ImageReference) -> Option<PullProgress> {
        self.lock().get(image)?.progress
    }

    /// The images on the node by name, whoever brought them; none while Docker does not answer.
    pub(crate) async fn held(&self) -> Vec<HeldImage> {
        match self.docker.list_images().await {
            Ok(list) => list.held(),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the node's images cannot be listed");
                Vec::new()
            }
        }
    }

    /// What people should know: allowed images that cannot be had.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.values().cloned().collect()
    }

    /// Changes whenever images come or go, whoever brings or takes them.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What must stay: the images of instances, now and before, and those that instances may be made from.
    fn needed(&self) -> Vec<ImageReference> {
        let well = self.ledger.well();
        let mut all = self.orders.borrow().allowed.clone();
        for entry in self.ledger.entries() {
            if matches!(entry.order.desired, Desired::Deleted { .. } | Desired::Elsewhere) {
                continue;
            }
            all.push(entry.order.spec.image.clone());
            if let Some(well) = well.get(&entry.order.id) {
                all.push(well.with.clone());
                all.extend(well.before.clone());
            }
        }
        all
    }

    fn login(&self, image: &ImageReference) -> Option<RegistryLogin> {
        let host = image.location().registry;
        let orders = self.orders.borrow();
        orders.registries.iter().find(|login| login.host == host).cloned()
    }

    fn tell(&self, image: &ImageReference, progress: Option<PullProgress>) {
        if let Some(pull) = self.lock().get_mut(image) {
            pull.progress = progress;
        }
        self.wake.notify_one();
    }

    /// Images that somebody waits for.
    fn busy(&self) -> BTreeSet<String> {
        self.lock().keys().map(ImageReference::to_string).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ImageReference, Pull>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for an image; the last one to go takes the entry along.
struct Waiting<'a> {
    images: &'a Images,
    image: &'a ImageReference,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Waiting<'a> {
    fn begin(images: &'a Images, image: &'a ImageReference) -> Self {
        let mut pulls = images.lock();
        let pull = pulls.entry(image.clone()).or_default();
        pull.waiting += 1;
        let turn = Arc::clone(&pull.turn);
        drop(pulls);
        Self { images, image, turn }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut pulls = self.images.lock();
        let last = pulls.get_mut(self.image).is_some_and(|pull| {
            pull.waiting -= 1;
            pull.waiting == 0
        });
        if last {
            pulls.remove(self.image);
        }
    }
}
