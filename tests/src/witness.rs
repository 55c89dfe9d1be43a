//! Counts every packet that passes a hook, by chain, source, destination, protocol and port. The
//! kernel counts, so no flood is too fast and no process has to look in time.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::Context as _;
use serde_json::Value;

use crate::command;

const TABLE: &str = "crabshack_tests";

/// A place to count at.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// Name of the chain, and of its rows.
    pub name: &'static str,
    /// nft's hook and priority, like `input priority 50`.
    pub at: &'static str,
    /// Which packets, in nft's words; may be empty.
    pub which: &'static str,
}

/// One row: so many packets of this kind passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The hook's name.
    pub hook: String,
    /// Where from.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Destination port.
    pub port: u16,
    /// How many.
    pub packets: u64,
}

/// The counters of one network namespace.
#[derive(Debug)]
pub struct Witness {
    namespace: Option<u32>,
}

impl Witness {
    /// Puts counters at the hooks of a process' network namespace (none: our own).
    pub fn install(namespace: Option<u32>, hooks: &[Hook]) -> anyhow::Result<Self> {
        let mut text = format!("table inet {TABLE} {{\n");
        for Hook { name, at, which } in hooks {
            for (family, address) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
                writeln!(
                    text,
                    "set {name}{family} {{ type {address} . {address} . inet_proto . inet_service; size 65535; flags dynamic; counter; }}"
                )?;
            }
            writeln!(
                text,
                "chain {name} {{ type filter hook {at}; policy accept;\n\
                 {which} meta l4proto {{ tcp, udp }} update @{name}4 {{ ip saddr . ip daddr . meta l4proto . th dport }}\n\
                 {which} meta l4proto {{ tcp, udp }} update @{name}6 {{ ip6 saddr . ip6 daddr . meta l4proto . th dport }}\n}}"
            )?;
        }
        text.push_str("}\n");
        command::run_in(namespace, "nft -f -", &text).context("the packet counters cannot be set up")?;
        Ok(Self { namespace })
    }

    /// Everything seen until now.
    pub fn read(&self) -> anyhow::Result<Vec<Seen>> {
        let text = command::run_in(self.namespace, &format!("nft -n -j list table inet {TABLE}"), "")?;
        let listing: Value = serde_json::from_str(&text)?;
        let sets = listing["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|object| object.get("set"));
        let mut rows = Vec::new();
        for set in sets {
            let name = set["name"].as_str().unwrap_or_default();
            for element in set["elem"].as_array().into_iter().flatten() {
                rows.push(row(name, &element["elem"]).with_context(|| format!("cannot read {element}"))?);
            }
        }
        Ok(rows)
    }

    /// How many packets were seen of which `which` is true.
    pub fn count(&self, which: impl Fn(&Seen) -> bool) -> anyhow::Result<u64> {
        Ok(self.read()?.iter().filter(|row| which(row)).map(|row| row.packets).sum())
    }
}

fn row(set: &str, element: &Value) -> Option<Seen> {
    let [source, destination, protocol, port] = element["val"]["concat"].as_array()?.as_slice() else {
        return None;
    };
    Some(Seen {
        hook: set.trim_end_matches(['4', '6']).to_owned(),
        source: source.as_str()?.parse().ok()?,
        destination: destination.as_str()?.parse().ok()?,
        protocol: match protocol
            .as_str()
            .map(str::to_owned)
            .or_else(|| Some(protocol.as_u64()?.to_string()))?
            .as_str()
        {
            "6" | "tcp" => "tcp".to_owned(),
            "17" | "udp" => "udp".to_owned(),
            other => other.to_owned(),
        },
        port: u16::try_from(port.as_u64()?).ok()?,
        packets: element["counter"]["packets"].as_u64()?,
    })
}
