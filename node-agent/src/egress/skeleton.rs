//! The constant part of the ruleset: chains, rules, empty sets. It is the same with no instance and
//! with thousands; [`super::render`] adds and removes elements only.
//!
//! What comes from a bridge of ours and is not known is dropped, so a dead agent lets nothing out.
//! A flow is let through as long as its connection mark is the instance's epoch, so taking the
//! epoch out of `live` has every flow of that instance judged again.
//!
//! The node has one table of connections for all: questions for names are kept out of it, and what
//! an instance may hold of it is limited.

use ipnet::Ipv4Net;
use nftables::{
    expr::{Expression, MetaKey, NamedExpression, Prefix},
    schema::{NfCmd, NfListObject, SetFlag, SetType, Table},
    stmt::Statement,
    types::{NfChainType, NfFamily, NfHook},
};
use serde_json::{Value, json};

use super::rule::*;
use crate::link::BRIDGE_PREFIX;

/// Raised with every change of this file; another one found in the kernel is replaced.
const VERSION: u32 = 3;
/// Port of an instance's SSH server; the only one that is published.
const SSH_PORT: u32 = 2222;
/// Live connections that an instance may have to the outside; far from what fills a node's table.
const MOST_CONNECTIONS: u32 = 4096;
/// Live SSH connections to an instance. Apart, so that strangers who knock do not use up the others.
const MOST_SESSIONS: u32 = 512;
/// The sets that are filled here, once.
pub(super) const CONSTANT_SETS: [&str; 1] = ["private4"];
/// Set on every packet with a known source; the routing guard stops what lacks it. Only the third
/// byte is ours, others may use the rest.
pub(super) const KNOWN_SOURCE: u32 = 0x00c5_0000;
/// The byte of the packet mark that is ours.
pub(super) const MARK_MASK: u32 = 0x00ff_0000;

const PRIORITY_RAW: i32 = -300;
/// Where the destination is the instance's own, also for answers to it and for published ports.
const PRIORITY_AFTER_DESTINATION_NAT: i32 = -90;
/// Before the chains of Docker and of others, to save their work on what we refuse.
const PRIORITY_FILTER: i32 = -10;
/// Before Docker's masquerade rules, of which there is one per network.
const PRIORITY_SOURCE_NAT: i32 = 99;

/// Never the public internet. Documentation ranges are absent: nothing answers there.
const PRIVATE: [(&str, u32); 11] = [
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("224.0.0.0", 4),
    ("240.0.0.0", 4),
];

/// What the table was made from, written into it.
fn schema(pool: Ipv4Net) -> String {
    format!("crabshack schema {VERSION} pool {pool}")
}

/// Creates everything but the elements of instances, in a table that does not exist yet.
pub(super) fn skeleton(pool: Ipv4Net) -> Vec<Command> {
    let mut commands = vec![Command::Typed(NfCmd::Add(table()))];
    commands.extend(["spoofed", "v6", "unknown", "local"].map(counter));
    commands.extend(sets());
    commands.extend(CHAINS.map(chain));
    commands.extend(policy_rules());
    commands.extend(forward_rules());
    commands.extend(node_rules());
    // The hooks come last: what they go to is complete.
    commands.extend(hooks(pool));
    commands
}

/// The table by name.
pub(super) fn table() -> NfListObject<'static> {
    NfListObject::Table(Table {
        family: NfFamily::INet,
        name: TABLE.into(),
        handle: None,
    })
}

const CHAINS: [&str; 11] = [
    "source",
    "known",
    "out",
    "back",
    "restricted",
    "restricted_back",
    "allow",
    "allow_back",
    "deny",
    "tohost",
    "toinstance",
];

fn sets() -> Vec<Command> {
    let private = PRIVATE.map(|(network, length)| prefix(text(network), length));
    vec![
        // Which address may speak on a bridge.
        add_set(set("bind4", vec![SetType::Ifname, SetType::Ipv4Addr])),
        // The epoch that an instance's flows carry, and whether flows of an epoch may go on.
        counting_set("live", json!(["ifname", "mark"])),
        interface_map("epoch", "mark"),
        // The policy of a bridge: for what the instance opens, and for answers to it.
        interface_map("profile", "verdict"),
        interface_map("reprofile", "verdict"),
        add_set(set("ports", vec![SetType::Ifname, SetType::InetProto, SetType::InetService])),
        // What an instance may reach on the node itself.
        add_set(set(
            "service",
            vec![SetType::Ifname, SetType::Ipv4Addr, SetType::InetProto, SetType::InetService],
        )),
        counting_connections("connections"),
        counting_connections("sessions"),
        counting_set("ok", json!("ifname")),
        counting_set("denied", json!("ifname")),
        add_set(nftables::schema::Set {
            flags: Some([SetFlag::Timeout].into()),
            timeout: Some(60),
            size: Some(65_535),
            ..set("rate", vec![SetType::Ifname])
        }),
        add_set(nftables::schema::Set {
            flags: Some([SetFlag::Interval].into()),
            elem: Some(private.to_vec().into()),
            ..set("private4", vec![SetType::Ipv4Addr])
        }),
    ]
}

/// The policy `restricted`: listed ports of public addresses.
fn policy_rules() -> Vec<Command> {
    vec![
        raw_rule(
            "restricted",
            json!([
                {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}},
                {"set": {
                    "op": "update", "set": "@rate", "elem": {"meta": {"key": "iifname"}},
                    "stmt": [{"limit": {"rate": 200, "burst": 400, "per": "second", "inv": true}}],
                }},
                {"goto": {"target": "deny"}},
            ]),
        ),
        rule(
            "restricted",
            vec![is(payload("ip", "daddr"), text("@private4")), goto("deny")],
        ),
        rule("restricted", vec![is(to_port(), text("@ports")), goto("allow")]),
        rule("restricted", vec![goto("deny")]),
        // The same seen from the other side, for a flow whose next packet happens to be an answer.
        rule(
            "restricted_back",
            vec![is(payload("ip", "saddr"), text("@private4")), drop_it()],
        ),
        rule("restricted_back", vec![is(from_port(), text("@ports")), goto("allow_back")]),
        rule("restricted_back", vec![drop_it()]),
        raw_rule(
            "allow",
            json!([too_many("@connections", incoming(), MOST_CONNECTIONS), {"goto": {"target": "deny"}}]),
        ),
        rule("allow", admit(incoming)),
        rule("allow", vec![goto("deny")]),
        rule("allow_back", admit(outgoing)),
        rule("allow_back", vec![drop_it()]),
        rule("deny", vec![is(incoming(), text("@denied"))]),
        rule("deny", vec![is(meta(MetaKey::L4proto), text("tcp")), reset()]),
        rule("deny", vec![reject()]),
    ]
}

/// What is forwarded: out of an instance, and to one.
fn forward_rules() -> Vec<Command> {
    let live = |interface: fn() -> Expression<'static>| is(concat(vec![interface(), ct("mark")]), text("@live"));
    vec![
        rule("out", vec![tracked("state", "established"), live(incoming), accept()]),
        // Only errors about such a flow; a related connection would be one that no policy judged.
        rule("out", vec![tracked("state", "related"), icmp(), live(incoming), accept()]),
        rule(
            "out",
            vec![tracked("state", "invalid"), is(incoming(), text("@denied")), drop_it()],
        ),
        rule("out", vec![is_not(destination_type(), text("unicast")), goto("deny")]),
        rule("out", vec![is(outgoing(), bridges()), goto("deny")]),
        rule("out", vec![dispatch(incoming(), "@profile")]),
        rule("out", vec![count("unknown"), drop_it()]),
        rule("back", vec![tracked("state", "established"), live(outgoing), accept()]),
        rule("back", vec![tracked("state", "related"), icmp(), live(outgoing), accept()]),
        rule(
            "back",
            vec![
                tracked("state", "established"),
                is(ct("direction"), text("reply")),
                dispatch(outgoing(), "@reprofile"),
            ],
        ),
        raw_rule(
            "back",
            json!([
                tracked("state", "new"), tracked("status", "dnat"), ssh(),
                too_many("@sessions", outgoing(), MOST_SESSIONS),
                {"drop": null},
            ]),
        ),
        rule(
            "back",
            vec![tracked("state", "new"), tracked("status", "dnat"), ssh(), goto("allow_back")],
        ),
        rule("back", vec![drop_it()]),
    ]
}

/// What passes between an instance and the node itself.
fn node_rules() -> Vec<Command> {
    vec![
        rule(
            "source",
            vec![is(meta(MetaKey::Nfproto), text("ipv6")), count("v6"), drop_it()],
        ),
        rule(
            "source",
            vec![
                is(concat(vec![incoming(), payload("ip", "saddr")]), text("@bind4")),
                mark_known(),
                goto("known"),
            ],
        ),
        // Every question for a name comes from another port: each would be a connection.
        raw_rule("known", json!([is(to_service(), text("@service")), {"notrack": null}])),
        rule("source", vec![is(incoming(), text("@denied")), count("spoofed"), drop_it()]),
        rule("source", vec![count("unknown"), drop_it()]),
        rule("tohost", vec![tracked("state", "established"), accept()]),
        rule("tohost", vec![tracked("state", "related"), icmp(), accept()]),
        rule(
            "tohost",
            vec![tracked("state", "invalid"), is(incoming(), text("@denied")), drop_it()],
        ),
        rule(
            "tohost",
            vec![is(to_service(), text("@service")), is(incoming(), text("@ok")), accept()],
        ),
        rule("tohost", vec![goto("deny")]),
        rule("toinstance", vec![tracked("state", "established"), accept()]),
        rule("toinstance", vec![tracked("state", "related"), accept()]),
        rule(
            "toinstance",
            vec![tracked("state", "untracked"), is(from_service(), text("@service")), accept()],
        ),
        rule("toinstance", vec![tracked("status", "dnat"), ssh(), accept()]),
        // A packet of the kernel's own has no socket and so no user: neither equal nor unequal to 0.
        rule(
            "toinstance",
            vec![is_not(meta(MetaKey::Skuid), number(0)), count("local"), goto("deny")],
        ),
    ]
}

fn hooks(pool: Ipv4Net) -> Vec<Command> {
    let pool_network = || prefix(text(pool.network().to_string()), pool.prefix_len().into());
    let filter = NfChainType::Filter;
    vec![
        base_chain("prerouting", filter, NfHook::Prerouting, PRIORITY_RAW),
        commented_rule(
            "prerouting",
            vec![is(incoming(), bridges()), goto("source")],
            Some(schema(pool)),
        ),
        rule("prerouting", vec![is(incoming(), text("lo")), accept()]),
        // Nobody outside has an address of the pool, and nobody outside may address it directly.
        rule(
            "prerouting",
            vec![is(payload("ip", "saddr"), pool_network()), count("spoofed"), drop_it()],
        ),
        rule(
            "prerouting",
            vec![is(payload("ip", "daddr"), pool_network()), count("spoofed"), drop_it()],
        ),
        // Where reverse paths are checked (rp_filter), the kernel looks up how an answer to this
        // packet would travel, with this packet's mark: without it the guard would say "nowhere".
        base_chain("prerouting_late", filter, NfHook::Prerouting, PRIORITY_AFTER_DESTINATION_NAT),
        rule(
            "prerouting_late",
            vec![is(payload("ip", "daddr"), pool_network()), mark_known()],
        ),
        base_chain("forward", filter, NfHook::Forward, PRIORITY_FILTER),
        rule("forward", vec![is(incoming(), bridges()), goto("out")]),
        rule("forward", vec![is(outgoing(), bridges()), goto("back")]),
        base_chain("input", filter, NfHook::Input, PRIORITY_FILTER),
        rule("input", vec![is(incoming(), bridges()), goto("tohost")]),
        base_chain("output_early", filter, NfHook::Output, PRIORITY_RAW),
        raw_rule(
            "output_early",
            json!([is(outgoing(), bridges()), is(from_service(), text("@service")), {"notrack": null}]),
        ),
        base_chain("output", filter, NfHook::Output, PRIORITY_FILTER),
        rule("output", vec![is(outgoing(), bridges()), goto("toinstance")]),
        base_chain("postrouting", NfChainType::NAT, NfHook::Postrouting, PRIORITY_SOURCE_NAT),
        rule("postrouting", vec![is(outgoing(), bridges()), leave()]),
        rule("postrouting", vec![is(outgoing(), text("lo")), leave()]),
        rule("postrouting", vec![is(payload("ip", "saddr"), pool_network()), masquerade()]),
    ]
}

/// Tells the routing guard that this table is at work and vouches for the packet.
fn mark_known() -> Statement<'static> {
    assign(meta(MetaKey::Mark), any_of(vec![meta(MetaKey::Mark), number(KNOWN_SOURCE)]))
}

/// Lets a flow pass and gives it the epoch of its instance.
fn admit(interface: fn() -> Expression<'static>) -> Vec<Statement<'static>> {
    vec![
        is(interface(), text("@ok")),
        assign(ct("mark"), lookup(interface(), "@epoch")),
        accept(),
    ]
}

/// Counts this connection in with those of its bridge, and matches when they are more than `most`.
fn too_many(set: &str, bridge: Expression<'static>, most: u32) -> Value {
    json!({"set": {"op": "add", "set": set, "elem": bridge, "stmt": [{"ct count": {"val": most, "inv": true}}]}})
}

fn bridges() -> Expression<'static> {
    text(format!("{BRIDGE_PREFIX}*"))
}

fn incoming() -> Expression<'static> {
    meta(MetaKey::Iifname)
}

fn outgoing() -> Expression<'static> {
    meta(MetaKey::Oifname)
}

fn icmp() -> Statement<'static> {
    is(meta(MetaKey::L4proto), text("icmp"))
}

fn ssh() -> Statement<'static> {
    is(payload("tcp", "dport"), number(SSH_PORT))
}

fn to_port() -> Expression<'static> {
    concat(vec![incoming(), meta(MetaKey::L4proto), payload("th", "dport")])
}

fn from_port() -> Expression<'static> {
    concat(vec![outgoing(), meta(MetaKey::L4proto), payload("th", "sport")])
}

/// To a port of the node itself; what instances may use is in the set `service`.
fn to_service() -> Expression<'static> {
    concat(vec![
        incoming(),
        payload("ip", "daddr"),
        meta(MetaKey::L4proto),
        payload("th", "dport"),
    ])
}

/// The way back.
fn from_service() -> Expression<'static> {
    concat(vec![
        outgoing(),
        payload("ip", "saddr"),
        meta(MetaKey::L4proto),
        payload("th", "sport"),
    ])
}

fn prefix(address: Expression<'static>, length: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(address),
        len: length,
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// One command per line, so that a change can be read.
    fn written() -> String {
        let commands = skeleton("10.201.0.0/16".parse().unwrap());
        let lines = commands.iter().map(|command| serde_json::to_string(command).unwrap());
        format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n"))
    }

    #[test]
    fn skeleton__should_be_the_reviewed_one() {
        let written = written();
        assert_eq!(
            written,
            include_str!("skeleton.json"),
            "raise VERSION, and let skeleton.json be:\n{written}"
        );
    }

    #[test]
    fn skeleton__should_fill_no_set_but_the_constant_ones() {
        let commands: Vec<Value> = serde_json::from_str(&written()).unwrap();
        let sets = commands.iter().filter_map(|command| command.pointer("/add/set"));
        let filled: Vec<_> = sets.filter(|set| set.get("elem").is_some()).map(|set| &set["name"]).collect();
        assert_eq!(filled, CONSTANT_SETS);
    }

    #[test]
    fn skeleton__should_limit_what_is_tracked_before_it_lets_a_flow_pass() {
        let written = written();
        let rules = |chain: &str| {
            let rules = written
                .lines()
                .filter(|line| line.contains(&format!("\"chain\":\"{chain}\",\"expr\"")));
            rules.map(str::to_owned).collect::<Vec<_>>()
        };
        let names = ["known", "output_early"].map(|chain| rules(chain).concat());
        assert!(
            names.iter().all(|rule| rule.contains("@service") && rule.contains("notrack")),
            "{names:?}"
        );
        let admits = rules("allow").concat();
        assert!(
            admits.find("@connections") < admits.find("\"ct\":{\"key\":\"mark\"}"),
            "{admits}"
        );
        assert!(admits.contains("@connections"), "{admits}");
    }

    #[test]
    fn skeleton__should_name_nothing_that_it_does_not_make_first() {
        let mut made = BTreeSet::new();
        for command in serde_json::from_str::<Vec<Value>>(&written()).unwrap() {
            let (kind, object) = command["add"].as_object().unwrap().iter().next().unwrap();
            if kind != "rule" {
                made.insert(object["name"].as_str().unwrap().to_owned());
                continue;
            }
            let text = object["expr"].to_string();
            let named = ["\"@", "\"target\":\"", "\"counter\":\""].into_iter().flat_map(|before| {
                let ends = text.split(before).skip(1);
                ends.map(|rest| rest.split('"').next().unwrap().to_owned())
                    .collect::<Vec<_>>()
            });
            for name in named.chain([object["chain"].as_str().unwrap().to_owned()]) {
                assert!(made.contains(&name), "{name} in {text}");
            }
        }
    }
}
