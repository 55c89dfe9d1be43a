//! What is on the node that belongs to no instance we know: pure.

use std::collections::BTreeSet;

use crabshack_shared::{agent_api::v1::Finding, ids::InstanceId};

use super::found;
use crate::{
    docker::{Stranger, StrangerKind},
    link::BRIDGE_PREFIX,
};

pub(super) const LEFTOVERS: &str = "leftovers";

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Real {
    pub(super) containers: BTreeSet<InstanceId>,
    pub(super) networks: BTreeSet<InstanceId>,
    /// What Docker has under names like ours without our label.
    pub(super) strangers: Vec<Stranger>,
    /// Interfaces with our prefix.
    pub(super) bridges: BTreeSet<String>,
    /// Bridges that the ruleset names.
    pub(super) armed: BTreeSet<String>,
    /// Instances with a folder on the disk.
    pub(super) folders: BTreeSet<InstanceId>,
}

/// Findings, and the bridges to take out of the ruleset: what belongs to nothing must not be let out
/// when something else gets its name.
pub(super) fn find(
    ordered: &BTreeSet<InstanceId>,
    is_kept: impl Fn(InstanceId) -> bool,
    real: &Real,
) -> (Vec<Finding>, Vec<String>) {
    let unknown = |set: &BTreeSet<InstanceId>| -> Vec<InstanceId> { set.difference(ordered).copied().collect() };
    let mut findings = Vec::new();
    for id in unknown(&real.containers) {
        findings.push(found(
            LEFTOVERS,
            Some(id),
            format!(
                "an instance that no order names runs or rests here and is left alone: if it may go, \
                 `docker rm -f $(docker ps -aq --filter label=crabshack.instance={id})`"
            ),
        ));
    }
    for id in unknown(&real.networks).into_iter().filter(|id| !real.containers.contains(id)) {
        findings.push(found(
            LEFTOVERS,
            Some(id),
            format!("a network of no known instance is left: `docker network rm cs-{id}`"),
        ));
    }
    for id in unknown(&real.folders) {
        if !is_kept(id) && !real.containers.contains(&id) {
            findings.push(found(
                LEFTOVERS,
                Some(id),
                "the disk of an instance that no order names is left; it holds somebody's data: remove it only by hand"
                    .to_owned(),
            ));
        }
    }
    findings.extend(real.strangers.iter().map(stranger));
    let bridge = |id: &InstanceId| format!("{BRIDGE_PREFIX}{}", id.short());
    let foreign = real.strangers.iter().map(|stranger| stranger.bridge.clone());
    // The bridge of one that is ordered may be older or younger than what Docker said of networks.
    let known = real.networks.iter().chain(ordered).map(bridge);
    let backed: BTreeSet<String> = known.chain(foreign).collect();
    for name in real.bridges.difference(&backed) {
        findings.push(found(
            LEFTOVERS,
            None,
            format!("the bridge {name} belongs to no network of Docker's: `ip link delete {name}`"),
        ));
    }
    // An instance without orders keeps running, and keeps its way out.
    let used: BTreeSet<String> = ordered
        .iter()
        .chain(&real.containers)
        .chain(&real.networks)
        .map(bridge)
        .collect();
    let armed = real.armed.difference(&used).cloned().collect();
    (findings, armed)
}

fn stranger(stranger: &Stranger) -> Finding {
    let (kind, command) = match stranger.kind {
        StrangerKind::Container => ("container", "docker rm -f"),
        StrangerKind::Network => ("network", "docker network rm"),
    };
    let name = &stranger.name;
    let text = format!("the {kind} {name} is named like ours and is not: if nobody needs it, `{command} {name}`");
    found(LEFTOVERS, None, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers__should_leave_alone_what_is_known_kept_or_runs() {
        let (known, kept, stranger) = (InstanceId::random(), InstanceId::random(), InstanceId::random());
        let bridge = |id: InstanceId| format!("{BRIDGE_PREFIX}{}", id.short());
        let real = Real {
            containers: BTreeSet::from([known, stranger]),
            networks: BTreeSet::from([known, stranger]),
            bridges: BTreeSet::from([bridge(known), bridge(stranger)]),
            armed: BTreeSet::from([bridge(known), bridge(stranger)]),
            folders: BTreeSet::from([known, kept, stranger]),
            ..Real::default()
        };
        let (findings, armed) = find(&BTreeSet::from([known]), |id| id == kept, &real);
        assert_eq!(
            findings.iter().map(|finding| finding.instance).collect::<Vec<_>>(),
            [Some(stranger)]
        );
        assert!(armed.is_empty());
    }

    #[test]
    fn leftovers__should_name_what_belongs_to_nothing_and_close_its_way_out() {
        let gone = InstanceId::random();
        let bridge = format!("{BRIDGE_PREFIX}{}", gone.short());
        let real = Real {
            networks: BTreeSet::from([gone]),
            folders: BTreeSet::from([gone]),
            ..Real::default()
        };
        assert_eq!(find(&BTreeSet::new(), |_| false, &real).0.len(), 2);
        let real = Real {
            bridges: BTreeSet::from([bridge.clone()]),
            armed: BTreeSet::from([bridge.clone()]),
            ..Real::default()
        };
        let (findings, armed) = find(&BTreeSet::new(), |_| false, &real);
        assert!(findings.len() == 1 && findings[0].text.contains(&bridge));
        assert_eq!(armed, [bridge]);
    }

    #[test]
    fn leftovers__should_name_what_only_looks_like_ours() {
        let network = Stranger {
            kind: StrangerKind::Network,
            name: "cs-stray".to_owned(),
            bridge: "cs-stray".to_owned(),
        };
        let real = Real {
            bridges: BTreeSet::from(["cs-stray".to_owned()]),
            strangers: vec![network],
            ..Real::default()
        };
        let (findings, armed) = find(&BTreeSet::new(), |_| false, &real);
        let texts: Vec<&str> = findings.iter().map(|finding| finding.text.as_str()).collect();
        assert!(
            matches!(texts[..], [text] if text.contains("`docker network rm cs-stray`")),
            "{texts:?}"
        );
        assert!(armed.is_empty());
    }
}
