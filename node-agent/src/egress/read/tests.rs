//! Against what nft 1.0.6 prints.

use serde_json::json;

use super::*;

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
        set("connections", json!([{"elem": {"val": BRIDGE, "ct count": {"val": 4096}}}])),
        set("sessions", json!([{"elem": {"val": BRIDGE, "ct count": {"val": 512}}}])),
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
        addresses: [Ipv4Addr::new(10, 201, 0, 10)].into(),
    };
    assert_eq!(read(&listing).armed(SERVICE), [binding]);
    for set in (3..=9).chain(12..=13) {
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
fn table__should_call_a_link_armed_that_an_earlier_version_armed() {
    let mut listing = listing();
    let objects = listing["nftables"].as_array_mut().unwrap();
    objects.retain(|object| object["set"]["name"] != "denied");
    assert_eq!(read(&listing).armed(SERVICE).len(), 1);
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

/// What nft lists of the skeleton.
fn constant_objects() -> Vec<Value> {
    let objects = skeleton::skeleton("10.201.0.0/16".parse().unwrap())
        .into_iter()
        .filter_map(|command| serde_json::to_value(command).unwrap().get("add").cloned());
    objects
        .filter(|object| object.get("rule").is_some() || object.get("set").is_some())
        .collect()
}

fn expected() -> Constant {
    Constant::of(&skeleton::skeleton("10.201.0.0/16".parse().unwrap())).unwrap()
}

fn found(objects: &[Value]) -> Constant {
    read(&json!({"nftables": objects})).constant()
}

#[test]
fn constant__should_differ_by_a_rule_more_or_less_or_another_schema() {
    let objects = constant_objects();
    assert_eq!(found(&objects), expected());
    let rules = objects.iter().enumerate().filter(|(_, object)| object.get("rule").is_some());
    for (index, rule) in rules {
        let without = [&objects[..index], &objects[index + 1..]].concat();
        assert_ne!(found(&without), expected(), "without {rule}");
        assert!(!found(&without).resembles(&expected()), "without {rule}");
        let twice = [&objects[..], &objects[index..=index]].concat();
        assert_ne!(found(&twice), expected(), "twice {rule}");
    }
    let another = Constant::of(&skeleton::skeleton("10.202.0.0/16".parse().unwrap())).unwrap();
    assert!(!another.resembles(&expected()));
    assert!(!Table::default().constant().resembles(&expected()));
}

#[test]
fn constant__should_differ_by_a_rule_that_was_replaced() {
    let objects = constant_objects();
    for index in 0..objects.len() {
        let mut changed = objects.clone();
        let Some(statements) = changed[index].pointer_mut("/rule/expr") else {
            continue;
        };
        *statements = json!([{"accept": null}]);
        if changed != objects {
            assert_ne!(found(&changed), expected(), "{}", objects[index]);
        }
    }
}

#[test]
fn constant__should_differ_by_the_elements_of_a_constant_set_only() {
    let mut objects = constant_objects();
    let mut change = |set: &str, elements: Value| {
        let object = objects.iter_mut().find(|object| object["set"]["name"] == set).unwrap();
        object["set"]["elem"] = elements;
        found(&objects)
    };
    assert_eq!(change("ports", json!([{"concat": [BRIDGE, "tcp", 80]}])), expected());
    assert_eq!(change("rate", json!([BRIDGE])), expected());
    let one = change("private4", json!([{"prefix": {"addr": "10.0.0.0", "len": 8}}]));
    assert_ne!(one, expected());
    let none = change("private4", json!([]));
    assert_ne!(none, expected());
    assert!(!none.resembles(&expected()));
}
