//! What the kernel holds now, from a listing of our table. Own types: the crate's refuse a listing
//! that has a verdict map, and count in 32 bits.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde::Deserialize;
use serde_json::Value;

use super::{
    BridgeCounters, Count, EgressCounters,
    render::{self, Binding},
    rule::Command,
};
use crate::link::BRIDGE_PREFIX;

/// A listing that is not of the form that nft documents.
#[derive(Debug, thiserror::Error)]
#[error("cannot understand what nft lists")]
pub(crate) struct Unreadable(#[from] serde_json::Error);

/// Our table as it is.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table {
    /// Of rules; one of them says what the table was made from.
    comments: BTreeSet<String>,
    rules: BTreeMap<String, usize>,
    sets: BTreeMap<String, Vec<Element>>,
    counters: BTreeMap<String, Count>,
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq)]
struct Element {
    /// As nft printed it, value included, so that it can be deleted.
    printed: Value,
    /// Of the key.
    parts: Vec<Value>,
    count: Count,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

/// One object of a listing; kinds that we do not read are empty.
#[derive(Deserialize)]
struct Object {
    rule: Option<ListedRule>,
    set: Option<ListedSet>,
    map: Option<ListedSet>,
    counter: Option<ListedCounter>,
}

#[derive(Deserialize)]
struct ListedRule {
    chain: String,
    comment: Option<String>,
}

#[derive(Deserialize)]
struct ListedSet {
    name: String,
    #[serde(default)]
    elem: Vec<Value>,
}

#[derive(Deserialize)]
struct ListedCounter {
    name: String,
    #[serde(flatten)]
    count: Count,
}

impl Table {
    /// Reads `nft -j list table`.
    pub(super) fn parse(listing: &str) -> Result<Self, Unreadable> {
        let listing: Listing = serde_json::from_str(listing)?;
        let mut table = Self::default();
        for object in listing.nftables {
            if let Some(rule) = object.rule {
                *table.rules.entry(rule.chain).or_default() += 1;
                table.comments.extend(rule.comment);
            }
            if let Some(set) = object.set {
                table.sets.insert(set.name, set.elem.into_iter().map(element).collect());
            }
            if let Some(map) = object.map {
                table.sets.insert(map.name, map.elem.into_iter().map(mapping).collect());
            }
            if let Some(counter) = object.counter {
                table.counters.insert(counter.name, counter.count);
            }
        }
        Ok(table)
    }

    /// Whether every rule of this skeleton is there, and none but them.
    pub(super) fn matches(&self, schema: &str, skeleton: &[Command]) -> Result<bool, Unreadable> {
        let mut expected: BTreeMap<String, usize> = BTreeMap::new();
        for command in skeleton {
            let command = serde_json::to_value(command)?;
            if let Some(chain) = command.pointer("/add/rule/chain").and_then(Value::as_str) {
                *expected.entry(chain.to_owned()).or_default() += 1;
            }
        }
        Ok(self.comments.contains(schema) && self.rules == expected)
    }

    /// The links with every element of theirs in place.
    pub(super) fn armed(&self, service: Ipv4Addr) -> Vec<Binding> {
        self.bindings()
            .into_iter()
            .filter(|binding| {
                render::footprint(service, binding)
                    .iter()
                    .all(|(set, count)| self.of_bridge(set, &binding.bridge).count() >= *count)
            })
            .collect()
    }

    /// Every element of a bridge, by set, as it was printed.
    pub(super) fn elements_of(&self, bridge: &str) -> BTreeMap<String, Vec<Value>> {
        self.sets
            .keys()
            .map(|set| {
                (
                    set.clone(),
                    self.of_bridge(set, bridge).map(|element| element.printed.clone()).collect(),
                )
            })
            .filter(|(_, elements): &(_, Vec<Value>)| !elements.is_empty())
            .collect()
    }

    pub(super) fn counters(&self) -> EgressCounters {
        let mut bridges: BTreeMap<String, BridgeCounters> = BTreeMap::new();
        let mut add = |set: &str, field: fn(&mut BridgeCounters) -> &mut Count| {
            for element in self.sets.get(set).into_iter().flatten() {
                if let Some(bridge) = element.bridge() {
                    *field(bridges.entry(bridge.to_owned()).or_default()) += element.count;
                }
            }
        };
        // The first packet of a flow is counted in `ok`, the others in `live`.
        add("ok", |counters| &mut counters.allowed);
        add("live", |counters| &mut counters.allowed);
        add("denied", |counters| &mut counters.denied);
        let named = |name: &str| self.counters.get(name).copied().unwrap_or_default();
        EgressCounters {
            bridges,
            spoofed: named("spoofed"),
            ipv6: named("v6"),
            unknown: named("unknown"),
            local: named("local"),
        }
    }

    fn bindings(&self) -> Vec<Binding> {
        let elements = self.sets.get("bind4").into_iter().flatten();
        elements
            .filter_map(|element| {
                Some(Binding {
                    bridge: element.bridge()?.to_owned(),
                    address: element.parts.get(1)?.as_str()?.parse().ok()?,
                })
            })
            .collect()
    }

    fn of_bridge<'a>(&'a self, set: &str, bridge: &'a str) -> impl Iterator<Item = &'a Element> {
        let elements = self.sets.get(set).into_iter().flatten();
        elements.filter(move |element| element.bridge() == Some(bridge))
    }
}

impl Element {
    /// The bridge is the first part of every key of ours.
    fn bridge(&self) -> Option<&str> {
        let name = self.parts.first()?.as_str()?;
        name.starts_with(BRIDGE_PREFIX).then_some(name)
    }
}

/// `KEY`, or `{"elem": {"val": KEY, "counter": {...}}}`; a KEY is a value or `{"concat": [...]}`.
fn element(printed: Value) -> Element {
    let key = printed.pointer("/elem/val").unwrap_or(&printed).clone();
    let count = printed
        .pointer("/elem/counter")
        .and_then(|counter| Count::deserialize(counter).ok())
        .unwrap_or_default();
    let parts = match key.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.clone(),
        None => vec![key.clone()],
    };
    Element {
        // Without the counter: an element is found by its key.
        printed: key,
        parts,
        count,
    }
}

/// `[KEY, VALUE]`.
fn mapping(printed: Value) -> Element {
    let key = printed.get(0).cloned().unwrap_or_default();
    Element { printed, ..element(key) }
}

#[cfg(test)]
mod tests;
