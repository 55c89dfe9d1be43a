//! What goes on by itself: allowed images come, unneeded ones go, and whoever tells of images hears of
//! changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use chrono::Utc;
use crabshack_shared::{agent_api::v1::Pressure, image::ImageReference, shutdown::Shutdown, telemetry::Chain};
use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep};

use super::{
    Images,
    collect::{Facts, Present, Verdict, decide},
};
use crate::{docker::DockerError, ledger::LedgerError};

/// How often allowed images are looked for, and unneeded ones, when nothing calls.
const PERIOD: Duration = Duration::from_secs(60);
/// How often the disk is looked at.
const PRESSURE_PERIOD: Duration = Duration::from_secs(5);
/// How long to leave alone what could not be pulled: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Docker tells of one pull in several events.
const SETTLED: Duration = Duration::from_millis(100);
const WHEN_BLIND: Duration = Duration::from_secs(1);

/// Why images could not be collected.
#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error("Docker cannot be asked")]
    Docker(#[from] DockerError),
    #[error("the ledger cannot be written")]
    Ledger(#[from] LedgerError),
}

/// When to try again what could not be pulled.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    length: Duration,
}

impl Images {
    /// Starts what goes on by itself.
    pub(crate) fn spawn(self: &Arc<Self>, shutdown: &Shutdown) {
        shutdown.spawn(Arc::clone(self).listen());
        shutdown.spawn(Arc::clone(self).keep_ready());
        shutdown.spawn(Arc::clone(self).keep_room());
    }

    /// Hears of images that come and go.
    async fn listen(self: Arc<Self>) {
        loop {
            {
                let mut events = std::pin::pin!(self.docker.image_events());
                while let Some(Ok(())) = events.next().await {
                    sleep(SETTLED).await;
                    self.changes.send_modify(|count| *count += 1);
                }
            }
            // Docker is away or restarts: whatever happened meanwhile is seen by who looks.
            sleep(WHEN_BLIND).await;
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Has what the coordinator's list allows here before it is asked for: one image after the other,
    /// so that instances that need one find a free pull.
    async fn keep_ready(self: Arc<Self>) {
        let mut orders = self.orders.clone();
        let mut pauses: BTreeMap<ImageReference, Pause> = BTreeMap::new();
        loop {
            let allowed = orders.borrow_and_update().allowed.clone();
            pauses.retain(|image, _| allowed.contains(image));
            self.forget_troubles(|image| !allowed.contains(image));
            for image in &allowed {
                let waits = pauses.get(image).is_some_and(|pause| pause.until > Instant::now());
                if waits || self.disks.pressure() != Pressure::None {
                    continue;
                }
                match self.make_ready(image).await {
                    Ok(()) => {
                        pauses.remove(image);
                        self.forget_troubles(|known| known == image);
                    }
                    Err(error) => {
                        let length = pauses
                            .get(image)
                            .map_or(FIRST_PAUSE, |pause| (pause.length * 2).min(LONGEST_PAUSE));
                        let until = Instant::now() + length;
                        pauses.insert(image.clone(), Pause { until, length });
                        self.note_trouble(image, &error);
                    }
                }
                if orders.has_changed().unwrap_or(false) {
                    break;
                }
            }
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return },
                () = sleep(PERIOD.min(FIRST_PAUSE)) => {}
            }
        }
    }

    async fn make_ready(&self, image: &ImageReference) -> Result<(), DockerError> {
        // What this node would not run anyway is no trouble.
        if self.refusal(image).is_some() || self.docker.image_digest(image).await?.is_some() {
            return Ok(());
        }
        tracing::info!(%image, "pulling what the list of images allows");
        self.pull(image).await
    }

    fn note_trouble(&self, image: &ImageReference, error: &DockerError) {
        let text = Chain(error).to_string();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.get(image) != Some(&text) {
            tracing::warn!(%image, error = text, "an allowed image is not here yet");
            troubles.insert(image.clone(), text);
        }
    }

    fn forget_troubles(&self, of: impl Fn(&ImageReference) -> bool) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.retain(|image, _| !of(image));
    }

    /// Removes what nobody needs: after a while, and at once when the disk is nearly full.
    async fn keep_room(self: Arc<Self>) {
        loop {
            if let Err(error) = self.collect().await {
                tracing::warn!(error = %Chain(&error), "images that nobody needs cannot be removed now");
            }
            let next = Instant::now() + PERIOD.min(self.grace.max(WHEN_BLIND));
            while Instant::now() < next {
                sleep(PRESSURE_PERIOD.min(next - Instant::now())).await;
                if self.disks.pressure() != Pressure::None {
                    break;
                }
            }
        }
    }

    async fn collect(&self) -> Result<(), CollectError> {
        let verdict = self.judge().await?;
        for (image, since) in &verdict.noted {
            if let Ok(image) = image.parse() {
                self.ledger.note_unneeded(&image, *since)?;
            }
        }
        for image in &verdict.forget {
            self.ledger.forget_pulled(image)?;
        }
        self.ledger.retain_well()?;
        for image in verdict.remove {
            // What was decided a moment ago may be wrong by now, and room may be there again.
            if !self.judge().await?.remove.contains(&image) {
                continue;
            }
            if self.docker.remove_image(&image).await? {
                tracing::info!(%image, "removed: nobody needs it");
                self.ledger.forget_pulled(&image)?;
            }
        }
        Ok(())
    }

    async fn judge(&self) -> Result<Verdict, DockerError> {
        // In this order: what is pulled meanwhile is busy, or on the list of what is there, or not known yet.
        let pulled = self.ledger.pulled();
        let busy = self.busy();
        let list = self.docker.list_images().await?;
        let used = self.docker.used_images().await?;
        let present = list.names().map(|(id, names)| Present {
            id: id.to_owned(),
            names,
        });
        let present: Vec<Present> = present.collect();
        Ok(decide(&Facts {
            pulled: &pulled,
            present: &present,
            used: &used,
            needed: &self.needed(),
            busy: &busy,
            now: Utc::now(),
            grace: self.grace,
            pressed: self.disks.pressure() != Pressure::None,
        }))
    }
}
