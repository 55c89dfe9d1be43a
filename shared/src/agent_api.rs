//! What the coordinator and the node agents say to each other, over mTLS.
//!
//! | who dials | route | |
//! |---|---|---|
//! | agent | `POST /v1/enrol` | join token and certificate request, once; no client certificate |
//! | agent | `POST /v1/renew` | a new certificate; the only route for an expired one |
//! | agent | `GET /v1/orders?revision=N` | long poll: answers when the revision differs, 204 after 30 s |
//! | agent | `POST /v1/report` | what the node observes |
//! | agent | `POST /v1/stopping` | it accepts no more, open tunnels are to end; 204 when no request will use one of them |
//! | coordinator | `GET /v1/instances/{id}/tunnel/{port}` | upgrade `crabshack-tunnel`: bytes to a port of the instance |
//! | coordinator | `GET /v1/instances/{id}/exec` | upgrade `crabshack-exec`: a command in the instance, see [`crate::exec`] |
//! | coordinator | `GET /v1/instances/{id}/logs?tail=N` | `{"logs"}`; with `&follow=true` the text itself, without end |
//! | coordinator | `GET /v1/instances/{id}/stats` | [`v1::Stats`] |
//!
//! Coordinator N serves agents N-1: fields are only added, with defaults.

pub mod v1;

/// The `Upgrade` protocol of a tunnel.
pub const TUNNEL_PROTOCOL: &str = "crabshack-tunnel";

/// How long the coordinator holds a long poll when nothing changes, in seconds.
pub const LONG_POLL_SECONDS: u64 = 30;
