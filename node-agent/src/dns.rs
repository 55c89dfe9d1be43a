//! The resolver of the instances: a plain forwarder on the service address. It passes messages on
//! as they are, and sees to it that no instance takes the whole of it.

mod admission;
mod message;
mod resolv;
mod tcp;
mod udp;
mod upstream;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use self::{admission::Admission, upstream::Upstreams};

const PORT: u16 = 53;

/// Where to listen and whom to ask.
#[derive(Debug, Clone)]
pub(crate) struct DnsSettings {
    /// The service address; port 53.
    pub(crate) listen: Ipv4Addr,
    /// Resolvers, in the order in which they are asked.
    pub(crate) upstreams: Vec<SocketAddr>,
}

/// Why names cannot be resolved for instances.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DnsError {
    /// The port is taken.
    #[error(
        "port {} ({protocol}) of {} is taken: make the resolver of this node listen on its own addresses only \
         (`bind-interfaces` in dnsmasq, `interface` in unbound), not on all",
        listen.port(),
        listen.ip()
    )]
    Taken {
        listen: SocketAddr,
        protocol: &'static str,
        #[source]
        source: io::Error,
    },
    /// The address is not one of this node, or we may not.
    #[error(
        "cannot listen on {listen} ({protocol}): the address must be on `lo` (egress control puts it there) and we must be root"
    )]
    Bind {
        listen: SocketAddr,
        protocol: &'static str,
        #[source]
        source: io::Error,
    },
    /// The node's own configuration cannot be read.
    #[error("cannot read {path}: name the resolvers in CRABSHACK_DNS_UPSTREAMS")]
    Unreadable {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    /// Nobody to ask.
    #[error("no resolver is known: name some in CRABSHACK_DNS_UPSTREAMS, or put `nameserver` lines into /etc/resolv.conf")]
    NoUpstream,
}

/// A forwarder that has its sockets, but does not answer yet.
#[derive(Debug)]
pub(crate) struct DnsForwarder {
    udp: UdpSocket,
    tcp: TcpListener,
    upstreams: Upstreams,
}

/// Takes the sockets.
///
/// # Errors
/// When there is no upstream, or the address cannot be had.
pub(crate) async fn bind(settings: DnsSettings) -> Result<DnsForwarder, DnsError> {
    bind_at(SocketAddr::from((settings.listen, PORT)), settings.upstreams).await
}

/// The node's own resolvers, from `/etc/resolv.conf`.
///
/// # Errors
/// When the file cannot be read or names none.
pub(crate) fn system_upstreams() -> Result<Vec<SocketAddr>, DnsError> {
    resolv::read("/etc/resolv.conf")
}

async fn bind_at(listen: SocketAddr, upstreams: Vec<SocketAddr>) -> Result<DnsForwarder, DnsError> {
    if upstreams.is_empty() {
        return Err(DnsError::NoUpstream);
    }
    let failed = |protocol| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => DnsError::Taken {
                listen,
                protocol,
                source,
            },
            _ => DnsError::Bind {
                listen,
                protocol,
                source,
            },
        }
    };
    let tcp = TcpListener::bind(listen).await.map_err(failed("tcp"))?;
    // Port 0 is for tests: both sockets get the same one.
    let listen = tcp.local_addr().map_err(failed("tcp"))?;
    let udp = UdpSocket::bind(listen).await.map_err(failed("udp"))?;
    Ok(DnsForwarder {
        udp,
        tcp,
        upstreams: Upstreams::new(upstreams),
    })
}

impl DnsForwarder {
    /// Answers until the token is cancelled; questions that are open then are dropped.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let admission = Arc::new(Admission::default());
        let work = async {
            tokio::join!(
                udp::serve(self.udp, self.upstreams.clone(), Arc::clone(&admission)),
                tcp::serve(self.tcp, self.upstreams.clone(), admission),
            )
        };
        stop.run_until_cancelled(work).await;
    }
}

#[cfg(test)]
mod tests;
