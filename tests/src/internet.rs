//! A make-believe internet: a network namespace held by a child process, one cable away from the
//! node. It answers on public, private and metadata addresses alike, so that what a policy does
//! not stop would really arrive, and be counted.

pub mod world;

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::{
    command,
    witness::{Hook, Witness},
};

/// Set in the child: its process is the internet.
pub(crate) const ROLE: &str = "CRABSHACK_TESTS_INTERNET";
/// The node's address on the cable.
pub const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// A public address: web, mail, SSH and DNS.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The clouds' metadata service.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Neighbours in private ranges.
pub const PRIVATE: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 99, 0, 1),
    Ipv4Addr::new(192, 168, 77, 1),
    Ipv4Addr::new(100, 64, 0, 9),
];
/// A public IPv6 address.
pub const PUBLIC6: &str = "2001:db8:113::1";

/// The running namespace; ends with this value.
#[derive(Debug)]
pub struct Internet {
    child: Child,
    _output: BufReader<ChildStdout>,
    witness: Witness,
}

impl Internet {
    /// Makes the namespace, the cable and the node's default route through it.
    pub fn start() -> anyhow::Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "--"])
            .arg(env::current_exe()?)
            // It gets as far as we did.
            .args(env::args_os().skip(1))
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pid = child.id();
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut input = child.stdin.take().context("no input")?;
        // The first line says that it has left our network namespace.
        expect(&mut output, world::ALIVE)?;
        command::run(&format!("ip link add internet type veth peer name node netns {pid}"))?;
        command::run_with_input(
            "ip -batch -",
            &format!(
                "link set internet up\naddress add {NODE}/24 dev internet\nroute add default via 198.51.100.1\n\
                 address add 2001:db8:1::2/64 dev internet nodad\nroute add default via 2001:db8:1::1\n"
            ),
        )?;
        input.write_all(b"go\n")?;
        expect(&mut output, world::READY)?;
        // Its end of file tells the child to end.
        child.stdin = Some(input);
        let arrivals = Hook {
            name: "arrived",
            at: "prerouting priority -300",
            which: "iifname node",
        };
        let witness = Witness::install(Some(pid), &[arrivals])?;
        Ok(Self {
            child,
            _output: output,
            witness,
        })
    }

    /// Counts what arrives.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Its name server.
    pub fn name_server() -> SocketAddr {
        SocketAddr::new(IpAddr::V4(PUBLIC), 53)
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        // Already gone is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn expect(output: &mut BufReader<ChildStdout>, wanted: &str) -> anyhow::Result<()> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(
        line.trim_end() == wanted,
        "the internet namespace said `{}` instead of `{wanted}`",
        line.trim_end()
    );
    Ok(())
}
