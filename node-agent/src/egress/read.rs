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
    skeleton,
};
use crate::link::BRIDGE_PREFIX;

/// A listing that is not of the form that nft documents.
#[derive(Debug, thiserror::Error)]
#[error("cannot understand what nft lists")]
pub(crate) struct Unreadable(#[from] serde_json::Error);

/// Our table as it is.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table {
    /// By chain, in their order; the comment of one says what the table was made from.
    rules: BTreeMap<String, Vec<Rule>>,
    sets: BTreeMap<String, Vec<Element>>,
    counters: BTreeMap<String, Count>,
}

/// What is the same whatever is armed: every rule, and the sets that are filled once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Constant {
    rules: BTreeMap<String, Vec<Rule>>,
    sets: BTreeMap<String, Vec<Value>>,
}

/// One rule, in the words of nft.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Rule {
    #[serde(rename = "expr", default)]
    statements: Vec<Value>,
    comment: Option<String>,
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
    #[serde(flatten)]
    rule: Rule,
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
        Ok(Self::made_of(listing.nftables))
    }

    fn made_of(objects: Vec<Object>) -> Self {
        let mut table = Self::default();
        for object in objects {
            if let Some(listed) = object.rule {
                table.rules.entry(listed.chain).or_default().push(listed.rule);
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
        table
    }

    /// What no arming changes.
    pub(super) fn constant(&self) -> Constant {
        let sets = skeleton::CONSTANT_SETS.map(|set| {
            let elements = self.sets.get(set).into_iter().flatten();
            (set.to_owned(), elements.map(|element| element.printed.clone()).collect())
        });
        Constant {
            rules: self.rules.clone(),
            sets: sets.into(),
        }
    }

    /// The links with every element of theirs in place. A set that is not there at all is one that
    /// the version before did not have: an upgrade cuts nobody off.
    pub(super) fn armed(&self, service: Ipv4Addr) -> Vec<Binding> {
        self.bindings()
            .into_iter()
            .filter(|binding| {
                render::footprint(service, binding)
                    .iter()
                    .filter(|(set, _)| self.sets.contains_key(**set))
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

    /// Every bridge that an element names. Sets that fill by themselves do not count.
    pub(super) fn bridges(&self) -> BTreeSet<String> {
        let fixed = self.sets.iter().filter(|(set, _)| render::SETS.contains(&set.as_str()));
        let elements = fixed.flat_map(|(_, elements)| elements);
        elements.filter_map(|element| Some(element.bridge()?.to_owned())).collect()
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
        let mut bindings: BTreeMap<String, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for element in self.sets.get("bind4").into_iter().flatten() {
            let address = element.parts.get(1).and_then(|part| part.as_str()?.parse().ok());
            if let (Some(bridge), Some(address)) = (element.bridge(), address) {
                bindings.entry(bridge.to_owned()).or_default().insert(address);
            }
        }
        let bindings = bindings.into_iter();
        bindings.map(|(bridge, addresses)| Binding { bridge, addresses }).collect()
    }

    fn of_bridge<'a>(&'a self, set: &str, bridge: &'a str) -> impl Iterator<Item = &'a Element> {
        let elements = self.sets.get(set).into_iter().flatten();
        elements.filter(move |element| element.bridge() == Some(bridge))
    }
}

impl Constant {
    /// What these commands make: nft lists it in the very words in which it is written.
    pub(super) fn of(skeleton: &[Command]) -> Result<Self, Unreadable> {
        let mut objects = Vec::new();
        for command in skeleton {
            let added = serde_json::to_value(command)?["add"].take();
            if added.get("rule").is_some() || added.get("set").is_some() {
                objects.push(serde_json::from_value(added)?);
            }
        }
        Ok(Table::made_of(objects).constant())
    }

    /// As many rules in every chain, with the same comments: the same table, at most in other words.
    pub(super) fn resembles(&self, other: &Self) -> bool {
        let outline = |constant: &Self| {
            let chains = constant.rules.iter().map(|(chain, rules)| {
                let comments = rules.iter().map(|rule| rule.comment.clone());
                (chain.clone(), comments.collect::<Vec<_>>())
            });
            chains.collect::<BTreeMap<_, _>>()
        };
        outline(self) == outline(other) && self.sets.values().all(|elements| !elements.is_empty())
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
