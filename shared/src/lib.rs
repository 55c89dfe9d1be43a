//! Words and wire types that the coordinator and the node agent share.
//!
//! Nothing here does I/O, except [`tls`] and [`seal`] (key files), [`telemetry`] (the log),
//! [`shutdown`] (signals), [`listen`] (sockets that systemd opened), [`serve`] (HTTP on them), [`relay`]
//! and [`exec`] (streams that others opened).

pub mod agent_api;
pub mod api;
pub mod config;
pub mod environment;
pub mod exec;
pub mod generation;
pub mod halt;
pub mod ids;
pub mod image;
pub mod instance;
pub mod listen;
pub mod problem;
pub mod relay;
pub mod resources;
pub mod seal;
pub mod secret;
pub mod serve;
pub mod services;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
