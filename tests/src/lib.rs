//! Suites that run the real binaries against a real Docker and a real nftables, and the
//! measurements.
//!
//! Every suite and the `measure` binary first move into fresh network, mount and process
//! namespaces ([`isolation`]), where a [`machine::Machine`] gives them a dockerd of their own and a
//! make-believe internet ([`internet`]); [`cluster::Cluster`] starts our processes on it. Nothing
//! touches the host's network, and nothing outlives the suite, even when it is killed.

pub mod client;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod data_plane;
pub mod dockerd;
pub mod engine;
pub mod exec;
pub mod gateway;
pub mod image;
pub mod internet;
pub mod isolation;
pub mod leftovers;
pub mod looks;
pub mod machine;
pub mod measure;
pub mod must;
pub mod observed;
pub mod openclaw;
pub mod passed;
pub mod pool;
pub mod process;
pub mod registry;
pub mod scratch;
pub mod ssh;
pub mod suite;
pub mod tenant;
pub mod trust;
pub mod types;
pub mod witness;
