//! The public REST types, one file per resource.

pub mod events;
pub mod images;
pub mod instances;
pub mod nodes;
pub mod progress;
pub mod registries;
