//! The public REST types, one file per resource.
