//! From links to commands, with no I/O: every policy is elements of the sets of the skeleton.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use nftables::{
    expr::{Expression, Verdict},
    schema::NfCmd,
    stmt::JumpTarget,
};
use serde_json::{Value, json};

use super::{
    rule::{Command, FAMILY, TABLE, add_elements, concat, delete_elements, number, text},
    skeleton,
};
use crate::link::{BRIDGE_PREFIX, Link};

const DNS_PORT: u32 = 53;
/// What the policy `web` opens: HTTP and HTTPS.
const WEB_PORTS: [u32; 2] = [80, 443];

/// The sets that hold elements of links.
pub(super) const SETS: [&str; 9] = [
    "bind4",
    "live",
    "epoch",
    "profile",
    "reprofile",
    "ports",
    "service",
    "ok",
    "denied",
];
/// What rules note of a bridge by themselves.
const NOTED: [&str; 2] = ["connections", "sessions"];

/// A bridge and the addresses that may speak on it: all that the elements of a link depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Binding {
    pub(super) bridge: String,
    pub(super) addresses: BTreeSet<Ipv4Addr>,
}

impl From<&Link> for Binding {
    fn from(link: &Link) -> Self {
        Self {
            bridge: link.bridge.clone(),
            addresses: link.addresses().collect(),
        }
    }
}

impl Binding {
    /// The connection mark of this instance's flows. It comes from the instance, not from the
    /// address, so that a flow of an earlier instance never lives on behind a reused address.
    fn epoch(&self) -> u32 {
        let hex = self.bridge.strip_prefix(BRIDGE_PREFIX).and_then(|id| id.get(..8));
        // 0 is what connections without a mark have.
        hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(1).max(1)
    }
}

/// Lets the link out.
pub(super) fn arm(service: Ipv4Addr, binding: &Binding) -> Vec<Command> {
    elements(service, binding)
        .into_iter()
        .map(|(set, elements)| add_elements(set, elements))
        .collect()
}

/// Takes everything of the link away. Deleting what is not there fails in nft, so it is added first:
/// one transaction, in which nothing of the link is ever seen that was not there before.
pub(super) fn disarm(service: Ipv4Addr, binding: &Binding) -> Vec<Command> {
    let noted = NOTED.map(|set| (set, vec![text(binding.bridge.clone())]));
    let all = [elements(service, binding), noted.into()].concat();
    let add = all.iter().cloned().map(|(set, elements)| add_elements(set, elements));
    let delete = all.iter().cloned().map(|(set, elements)| delete_elements(set, elements));
    add.chain(delete).collect()
}

/// Puts a whole new table in place of whatever is there, with these links armed.
pub(super) fn replace(pool: Ipv4Net, service: Ipv4Addr, bindings: &[Binding]) -> Vec<Command> {
    let mut commands = vec![
        Command::Typed(NfCmd::Add(skeleton::table())),
        Command::Typed(NfCmd::Delete(skeleton::table())),
    ];
    commands.extend(skeleton::skeleton(pool));
    commands.extend(bindings.iter().flat_map(|binding| arm(service, binding)));
    commands
}

/// How many elements of each set an armed link has.
pub(super) fn footprint(service: Ipv4Addr, binding: &Binding) -> BTreeMap<&'static str, usize> {
    elements(service, binding)
        .into_iter()
        .map(|(set, elements)| (set, elements.len()))
        .collect()
}

/// Deletes these elements, by set, as a listing shows them.
pub(super) fn delete(found: &BTreeMap<String, Vec<Value>>) -> Vec<Command> {
    found
        .iter()
        .map(|(set, elements)| {
            Command::Raw(json!({"delete": {"element": {"family": FAMILY, "table": TABLE, "name": set, "elem": elements}}}))
        })
        .collect()
}

fn elements(service: Ipv4Addr, binding: &Binding) -> Vec<(&'static str, Vec<Expression<'static>>)> {
    let bridge = || text(binding.bridge.clone());
    let on_bridge = |rest: Vec<Expression<'static>>| concat([vec![bridge()], rest].concat());
    let policy = |chain: &'static str| {
        let target = JumpTarget { target: chain.into() };
        Expression::List(vec![bridge(), Expression::Verdict(Verdict::Goto(target))])
    };
    let addresses = binding.addresses.iter();
    let addresses = addresses.map(|address| on_bridge(vec![text(address.to_string())]));
    let dns = |protocol| on_bridge(vec![text(service.to_string()), text(protocol), number(DNS_PORT)]);
    let web = WEB_PORTS.map(|port| on_bridge(vec![text("tcp"), number(port)]));
    vec![
        ("bind4", addresses.collect()),
        ("live", vec![on_bridge(vec![number(binding.epoch())])]),
        ("epoch", vec![Expression::List(vec![bridge(), number(binding.epoch())])]),
        ("profile", vec![policy("restricted")]),
        ("reprofile", vec![policy("restricted_back")]),
        ("ports", web.to_vec()),
        ("service", vec![dns("udp"), dns("tcp")]),
        ("ok", vec![bridge()]),
        ("denied", vec![bridge()]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);

    fn binding(bridge: &str) -> Binding {
        Binding {
            bridge: bridge.to_owned(),
            addresses: BTreeSet::from([Ipv4Addr::new(10, 201, 0, 10)]),
        }
    }

    fn written(verb: &str, commands: &[Command]) -> Vec<(String, Value)> {
        let commands = commands.iter().map(|command| serde_json::to_value(command).unwrap());
        commands
            .filter_map(|command| command.pointer(&format!("/{verb}/element")).cloned())
            .map(|element| (element["name"].as_str().unwrap().to_owned(), element["elem"].clone()))
            .collect()
    }

    #[test]
    fn arm__should_bind_the_address_and_open_web_and_names_only() {
        let bridge = "cs-0123456789ab";
        let expected = [
            ("bind4", json!([{"concat": [bridge, "10.201.0.10"]}])),
            ("live", json!([{"concat": [bridge, 0x0123_4567]}])),
            ("epoch", json!([[bridge, 0x0123_4567]])),
            ("profile", json!([[bridge, {"goto": {"target": "restricted"}}]])),
            ("reprofile", json!([[bridge, {"goto": {"target": "restricted_back"}}]])),
            (
                "ports",
                json!([{"concat": [bridge, "tcp", 80]}, {"concat": [bridge, "tcp", 443]}]),
            ),
            (
                "service",
                json!([{"concat": [bridge, "10.201.0.1", "udp", 53]}, {"concat": [bridge, "10.201.0.1", "tcp", 53]}]),
            ),
            ("ok", json!([bridge])),
            ("denied", json!([bridge])),
        ]
        .map(|(set, elements)| (set.to_owned(), elements));
        let commands = arm(SERVICE, &binding(bridge));
        assert_eq!(written("add", &commands), expected);
        assert_eq!(expected.clone().map(|(set, _)| set), SETS);
        assert_eq!(commands.len(), expected.len());
    }

    #[test]
    fn arm__should_bind_every_container_of_an_instance() {
        let mut binding = binding("cs-0123456789ab");
        binding.addresses.insert(Ipv4Addr::new(10, 201, 0, 11));
        let both = json!([{"concat": [binding.bridge, "10.201.0.10"]}, {"concat": [binding.bridge, "10.201.0.11"]}]);
        let commands = arm(SERVICE, &binding);
        assert!(written("add", &commands).contains(&("bind4".to_owned(), both)));
        assert_eq!(footprint(SERVICE, &binding)["bind4"], 2);
    }

    #[test]
    fn disarm__should_delete_all_that_arm_adds_and_what_was_noted() {
        let binding = binding("cs-0123456789ab");
        let commands = disarm(SERVICE, &binding);
        let deleted = written("delete", &commands);
        assert_eq!(deleted, written("add", &commands));
        assert_eq!(deleted.len() * 2, commands.len());
        assert!(deleted.starts_with(&written("add", &arm(SERVICE, &binding))));
        assert!(NOTED.iter().all(|set| deleted.iter().any(|(name, _)| name == set)));
    }

    #[test]
    fn epoch__should_never_be_that_of_an_unmarked_connection() {
        for (bridge, epoch) in [
            ("cs-000000000001", 1),
            ("cs-ffffffff0000", u32::MAX),
            ("cs-", 1),
            ("cs-not-hex-at", 1),
        ] {
            assert_eq!(binding(bridge).epoch(), epoch, "{bridge}");
        }
    }
}
