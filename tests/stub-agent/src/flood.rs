//! Packets from the first moment of the process, to everything in `STUB_FLOOD`: UDP datagrams and
//! TCP connection attempts, as fast as possible for `STUB_FLOOD_MS`, then a few per second. With
//! `STUB_FLOOD_PORTS=1` every datagram leaves from a port of its own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::settings::Settings;

/// How many attempts the kernel took.
pub(crate) static SENT: AtomicU64 = AtomicU64::new(0);
/// How many it refused at once (no route, an ICMP error that came back).
pub(crate) static REFUSED: AtomicU64 = AtomicU64::new(0);

/// Starts the thread, if there is anything to flood.
pub(crate) fn start(settings: &Settings) {
    let targets: Vec<SocketAddr> = settings
        .text("STUB_FLOOD")
        .unwrap_or_default()
        .split(',')
        .filter_map(|target| target.parse().ok())
        .collect();
    if targets.is_empty() {
        return;
    }
    let fast = settings.milliseconds("STUB_FLOOD_MS").unwrap_or(Duration::from_secs(2));
    let own_ports = settings.flag("STUB_FLOOD_PORTS");
    thread::spawn(move || run(&targets, fast, own_ports));
}

fn run(targets: &[SocketAddr], fast: Duration, own_ports: bool) {
    let any: [(IpAddr, u16); 2] = [(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0)];
    let bind = || any.map(|address| UdpSocket::bind(address).ok());
    let mut sockets = bind();
    let began = Instant::now();
    for number in 0_u64.. {
        for target in targets {
            if own_ports {
                sockets = bind();
            }
            if let Some(socket) = &sockets[usize::from(target.is_ipv6())] {
                count(socket.send_to(&number.to_be_bytes(), target).is_ok());
            }
            count(knock(*target));
        }
        if began.elapsed() > fast {
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Sends one SYN; the socket is dropped at once. True when the kernel took it.
fn knock(target: SocketAddr) -> bool {
    let Ok(socket) = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), None) else {
        return false;
    };
    match socket.connect(&target.into()) {
        Ok(()) => true,
        // EINPROGRESS has no kind of its own.
        Err(error) => error.raw_os_error() == Some(115),
    }
}

fn count(taken: bool) {
    let counter = if taken { &SENT } else { &REFUSED };
    counter.fetch_add(1, Ordering::Relaxed);
}
