//! Against what nft 1.0.6 prints.

use serde_json::json;

use super::*;
use crate::egress::skeleton::{schema, skeleton};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
const BRIDGE: &str = "cs-0123456789ab";

/// A listing with one link whose elements are all there, and one that lacks its policy.
fn listing() -> Value {
    let other = "cs-ffff456789ab";
    let counted =
        |key: Value, packets: u64| json!({"elem": {"val": key, "counter": {"packets": packets, "bytes": packets * 100}}});
    let policy = |chain: &str| json!([[BRIDGE, {"goto": {"target": chain}}]]);
    let set = |name: &str, elements: Value| json!({"set": {"family": "inet", "name": name, "table": "crabshack", "handle": 15, "elem": elements}});
    let map = |name: &str, elements: Value| json!({"map": {"name": name, "type": "ifname", "map": "verdict", "elem": elements}});
    json!({"nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "crabshack", "handle": 1}},
        {"counter": {"family": "inet", "name": "v6", "table": "crabshack", "packets": 2, "bytes": 5_000_000_000_u64}},
        set("bind4", json!([{"concat": [BRIDGE, "10.201.0.10"]}, {"concat": [other, "10.201.0.18"]}])),
        set("live", json!([counted(json!({"concat": [BRIDGE, 19_088_743]}), 7), counted(json!({"concat": [other, 1]}), 0)])),
        map("epoch", json!([[BRIDGE, 19_088_743]])),
        map("profile", policy("restricted")),
        map("reprofile", policy("restricted_back")),
        set("ports", json!([{"concat": [BRIDGE, "tcp", 80]}, {"concat": [BRIDGE, "tcp", 443]}])),
        set("service", json!([{"concat": [BRIDGE, "10.201.0.1", "tcp", 53]}, {"concat": [BRIDGE, "10.201.0.1", "udp", 53]}])),
        set("ok", json!([counted(json!(BRIDGE), 3)])),
        set("denied", json!([counted(json!(BRIDGE), 1), counted(json!(other), 4)])),
        {"set": {"name": "rate", "type": "ifname", "flags": ["timeout"], "timeout": 60}},
        {"chain": {"family": "inet", "table": "crabshack", "name": "out", "handle": 4}},
        {"rule": {"chain": "out", "handle": 38, "expr": [{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@profile"}}]}},
    ]})
}

fn read(listing: &Value) -> Table {
    Table::parse(&listing.to_string()).unwrap()
}

#[test]
fn table__should_call_a_link_armed_only_when_nothing_of_it_is_missing() {
    let mut listing = listing();
    let binding = Binding {
        bridge: BRIDGE.to_owned(),
        address: Ipv4Addr::new(10, 201, 0, 10),
    };
    assert_eq!(read(&listing).armed(SERVICE), [binding]);
    for set in [3, 4, 5, 6, 7, 8, 9, 10, 11] {
        let kind = if (5..8).contains(&set) { "map" } else { "set" };
        let elements = listing["nftables"][set][kind]["elem"].as_array_mut().unwrap();
        let first = elements.remove(0);
        assert_eq!(
            read(&listing).armed(SERVICE),
            [],
            "without an element of {}",
            listing["nftables"][set]
        );
        listing["nftables"][set][kind]["elem"]
            .as_array_mut()
            .unwrap()
            .insert(0, first);
    }
}

#[test]
fn table__should_add_up_what_was_counted() {
    let counters = read(&listing()).counters();
    let count = |packets| Count {
        packets,
        bytes: packets * 100,
    };
    assert_eq!(
        counters.bridges[BRIDGE],
        BridgeCounters {
            allowed: count(10),
            denied: count(1)
        }
    );
    assert_eq!(
        counters.bridges["cs-ffff456789ab"],
        BridgeCounters {
            allowed: count(0),
            denied: count(4)
        }
    );
    assert_eq!(
        counters.ipv6,
        Count {
            packets: 2,
            bytes: 5_000_000_000
        }
    );
    assert_eq!(counters.spoofed, Count::default());
}

#[test]
fn table__should_print_the_elements_of_a_bridge_so_that_nft_finds_them() {
    let elements = read(&listing()).elements_of("cs-ffff456789ab");
    let expected = [
        ("bind4", json!([{"concat": ["cs-ffff456789ab", "10.201.0.18"]}])),
        ("denied", json!(["cs-ffff456789ab"])),
        ("live", json!([{"concat": ["cs-ffff456789ab", 1]}])),
    ];
    assert_eq!(json!(elements), json!(BTreeMap::from(expected)));
}

#[test]
fn table__should_match_its_skeleton_until_a_rule_or_the_schema_differs() {
    let pool = "10.201.0.0/16".parse().unwrap();
    let rules = skeleton(pool)
        .into_iter()
        .filter_map(|command| serde_json::to_value(command).unwrap().get("add").cloned());
    let objects: Vec<Value> = rules.filter(|object| object.get("rule").is_some()).collect();
    let matches = |objects: &[Value]| {
        read(&json!({"nftables": objects}))
            .matches(&schema(pool), &skeleton(pool))
            .unwrap()
    };
    assert!(matches(&objects));
    assert!(!matches(&objects[1..]));
    assert!(!matches(&[&objects[..], &objects[..1]].concat()));
    assert!(
        !read(&json!({"nftables": objects}))
            .matches("another", &skeleton(pool))
            .unwrap()
    );
    assert!(!Table::default().matches(&schema(pool), &skeleton(pool)).unwrap());
}
