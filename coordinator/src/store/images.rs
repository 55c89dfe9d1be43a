//! The list of images that instances may be made from. A reference is in it once, however it is spelled.

use chrono::{DateTime, Utc};
use crabshack_shared::{api::images::ALLOW_CREATE, image::ImageReference};
use serde::{Deserialize, Serialize};

use super::{Snapshot, Source, StoreError, Writing, tables::Records};

/// By the location that a reference spells out, with its digest.
pub(super) const IMAGES: Records = Records::new("images");

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) reference: ImageReference,
    pub(crate) service_type: String,
    pub(crate) status: String,
    pub(crate) created_at: DateTime<Utc>,
    /// What the reference led to when it was last looked up.
    pub(crate) digest: Option<String>,
    pub(crate) label: Option<String>,
    pub(crate) preferred: i64,
    pub(crate) note: Option<String>,
}

impl ImageRecord {
    /// Instances may be made from it.
    pub(crate) fn is_allowed(&self) -> bool {
        self.status == ALLOW_CREATE
    }

    /// The digest that it stands for, if one is known.
    pub(crate) fn digest(&self) -> Option<&str> {
        self.reference.digest().or(self.digest.as_deref())
    }

    /// The reference with the digest that it stands for.
    pub(crate) fn pinned(&self) -> ImageReference {
        let pinned = self.digest().and_then(|digest| self.reference.pinned(digest).ok());
        pinned.unwrap_or_else(|| self.reference.clone())
    }
}

/// The key of a reference.
fn key(reference: &ImageReference) -> String {
    let location = reference.location();
    match reference.digest() {
        Some(digest) => format!("{location}@{digest}"),
        None => location.to_string(),
    }
}

#[expect(private_bounds, reason = "who holds a snapshot needs no access to its primitives")]
impl<T: Source> Snapshot<T> {
    /// The whole list, oldest first.
    pub(crate) fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let mut all: Vec<ImageRecord> = Vec::new();
        self.each_record(IMAGES, |record| all.push(record))?;
        all.sort_by_key(|record| record.created_at);
        Ok(all)
    }
}

impl Writing {
    /// Adds an entry. False: the reference is there already.
    pub(crate) fn add_image(&self, record: &ImageRecord) -> Result<bool, StoreError> {
        let key = key(&record.reference);
        if self.record::<ImageRecord>(IMAGES, &key)?.is_some() {
            return Ok(false);
        }
        self.put(IMAGES, &key, record)?;
        Ok(true)
    }

    /// Takes an entry out. False: there is none.
    pub(crate) fn remove_image(&self, reference: &ImageReference) -> Result<bool, StoreError> {
        self.take_out(IMAGES, &key(reference))
    }

    /// Notes what a reference leads to now. False: so it was known, or the entry is gone.
    pub(crate) fn note_digest(&self, reference: &ImageReference, digest: &str) -> Result<bool, StoreError> {
        let key = key(reference);
        match self.record::<ImageRecord>(IMAGES, &key)? {
            Some(mut record) if record.digest.as_deref() != Some(digest) => {
                record.digest = Some(digest.to_owned());
                self.put(IMAGES, &key, &record)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
