//! Listeners that outlive the processes that serve them: what systemd's sockets are on a real machine.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

use anyhow::Context as _;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::cluster::Who;

/// The first descriptor of each process's listeners, above any that is in use.
const FIRST: [i32; 2] = [200, 210];
/// Names and ports, as in the socket units.
const COORDINATOR: [(&str, u16); 3] = [("api", 7700), ("ui", 3000), ("agents", 7701)];
const NODE_AGENT: [(&str, u16); 2] = [("data-plane", 7702), ("health", 7703)];

/// Open descriptors that every child inherits. Nobody is refused while these are open.
#[derive(Debug)]
pub(crate) struct Passed {
    _open: Vec<OwnedFd>,
}

impl Passed {
    /// Listens everywhere; the processes must not run yet.
    pub(crate) fn bind() -> anyhow::Result<Self> {
        let mut open = Vec::new();
        for who in Who::ALL {
            let (first, listeners) = of(who);
            for (at, (name, port)) in (first..).zip(listeners) {
                let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)))
                    .with_context(|| format!("the listener `{name}` cannot be bound"))?;
                let passed = fcntl_dupfd_cloexec(&listener, at)?;
                fcntl_setfd(&passed, FdFlags::empty())?;
                open.push(passed);
            }
        }
        Ok(Self { _open: open })
    }

    /// What tells a process about its own.
    pub(crate) fn variables(&self, who: Who) -> [(&'static str, String); 3] {
        let (first, listeners) = of(who);
        let names: Vec<_> = listeners.iter().map(|(name, _)| *name).collect();
        [
            ("LISTEN_FDS", listeners.len().to_string()),
            ("LISTEN_FDS_FIRST_FD", first.to_string()),
            ("LISTEN_FDNAMES", names.join(":")),
        ]
    }
}

fn of(who: Who) -> (i32, &'static [(&'static str, u16)]) {
    match who {
        Who::Coordinator => (FIRST[0], &COORDINATOR),
        Who::NodeAgent => (FIRST[1], &NODE_AGENT),
    }
}
