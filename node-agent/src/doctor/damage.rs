//! What somebody changed under an instance: a pure comparison of two looks at it under one order. What
//! was right and is not any more was not our doing.

use crabshack_shared::agent_api::v1::InstanceOrder;

use super::container::{FLAGS, LIMITS};
use crate::{
    reconcile::plan::{Container, LimitsState, Observed, Presence, Run, must_be_made_again},
    volume::Volume,
};

pub(super) const STATE: &str = "container state";
pub(super) const LINK: &str = "instance network";
pub(super) const POLICY: &str = "instance egress";
pub(super) const CONTENT: &str = "instance files";
pub(super) const VOLUME: &str = "volume";

/// A part of an instance that is not as it was. Each is put right by the reconciler's next plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Damage {
    Removed,
    Ended,
    Paused,
    Limits,
    Loosened,
    Network,
    Egress,
    Files,
    Volume,
}

impl Damage {
    const ALL: [Self; 9] = [
        Self::Removed,
        Self::Ended,
        Self::Paused,
        Self::Limits,
        Self::Loosened,
        Self::Network,
        Self::Egress,
        Self::Files,
        Self::Volume,
    ];

    /// The finding's subject.
    pub(crate) fn subject(self) -> &'static str {
        match self {
            Self::Removed | Self::Ended | Self::Paused => STATE,
            Self::Limits => LIMITS,
            Self::Loosened => FLAGS,
            Self::Network => LINK,
            Self::Egress => POLICY,
            Self::Files => CONTENT,
            Self::Volume => VOLUME,
        }
    }

    /// Whether the part is as it should be.
    pub(crate) fn is_mended(self, order: &InstanceOrder, now: &Observed) -> bool {
        let all = |holds: fn(&Container) -> bool| {
            let mut parts = now.parts.iter().filter(|part| part.wanted);
            parts.all(|part| part.container.as_ref().is_some_and(holds))
        };
        match self {
            Self::Removed => all(|container| container.run != Run::Broken),
            Self::Ended | Self::Paused => all(|container| container.run == Run::Running),
            Self::Limits => all(|container| container.limits == LimitsState::Match),
            Self::Loosened => all(|container| container.confined),
            Self::Network => now.network == Presence::Matches && !must_be_made_again(order, now),
            Self::Egress => now.armed,
            Self::Files => now.files,
            Self::Volume => now.volume.as_ref().is_some_and(|volume| *volume != Volume::Unfinished),
        }
    }

    /// What happened; none: that part was changed by nobody.
    fn told(self, order: &InstanceOrder, before: &Observed, now: &Observed) -> Option<String> {
        let mut parts = before.parts.iter();
        parts.find_map(|part| {
            let container = now.parts.iter().find(|now| now.member == part.member);
            let container = container.and_then(|now| now.container.as_ref());
            self.told_of(order, part.container.as_ref()?, container, now)
        })
    }

    /// The same, as far as one of its containers shows it.
    fn told_of(self, order: &InstanceOrder, before: &Container, container: Option<&Container>, now: &Observed) -> Option<String> {
        let run = container.map(|container| &container.run);
        let same = container.filter(|container| container.docker_id == before.docker_id);
        match self {
            Self::Removed => matches!(run, None | Some(Run::Broken)).then(|| "somebody removed its container".to_owned()),
            Self::Ended => match run {
                Some(Run::Exited { out_of_memory: true, .. }) => Some(format!(
                    "it should run, and was killed at its memory limit of {}",
                    order.spec.resources.memory
                )),
                Some(Run::Exited { code, .. }) => Some(format!("it should run, and its container ended with code {code}")),
                _ => None,
            },
            Self::Paused => (run == Some(&Run::Paused)).then(|| "somebody paused its container".to_owned()),
            Self::Limits => match same.map(|container| container.limits) {
                Some(LimitsState::Match) | None => None,
                Some(LimitsState::Differ) => Some("somebody gave its container other limits than ordered".to_owned()),
                Some(LimitsState::TooLow { used }) => Some(format!(
                    "somebody gave its container other limits than ordered, and it uses {} MiB by now: restart it to have the ordered ones back",
                    used.div_ceil(1 << 20)
                )),
            },
            Self::Loosened => same.filter(|container| !container.confined).map(|_| {
                "somebody put its container into another network, past its egress policy, or has Docker start it by itself"
                    .to_owned()
            }),
            Self::Network => (now.network != Presence::Matches).then(|| "somebody removed or changed its network".to_owned()),
            Self::Egress => (!now.armed).then(|| "elements of its egress policy were missing from the ruleset".to_owned()),
            Self::Files => (!now.files).then(|| "files in its /etc/crabshack were not as they should be".to_owned()),
            Self::Volume => now.volume.is_none().then(|| {
                "its volume is gone, so it gets a new, empty one: if it was moved away, stop the instance and put it back"
                    .to_owned()
            }),
        }
    }
}

/// What is not right any more of an instance that had its container.
pub(crate) fn damages(order: &InstanceOrder, before: &Observed, now: &Observed) -> Vec<(Damage, String)> {
    // One that has to be made again is our own work.
    if must_be_made_again(order, before) {
        return Vec::new();
    }
    let was_right = Damage::ALL.into_iter().filter(|damage| damage.is_mended(order, before));
    was_right
        .filter_map(|damage| Some((damage, damage.told(order, before, now)?)))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use crabshack_shared::{
        agent_api::v1::{Desired, Pressure},
        generation::Generation,
    };

    use super::*;
    use crate::{fixtures, ledger::Entry, link::Link, recipe::Member, reconcile::plan::Part};

    pub(in crate::doctor) fn healthy() -> Observed {
        Observed {
            volume: Some(Volume::Plain),
            files: true,
            told: true,
            network: Presence::Matches,
            armed: true,
            pressure: Pressure::None,
            parts: vec![Part {
                member: Member::Main,
                wanted: true,
                image: true,
                container: Some(Container {
                    docker_id: "c".to_owned(),
                    finished_at: None,
                    generation: Generation { epoch: 1, counter: 1 },
                    restarts: 0,
                    run: Run::Running,
                    limits: LimitsState::Match,
                    confined: true,
                    pending: false,
                }),
            }],
        }
    }

    pub(in crate::doctor) fn entry(desired: Desired) -> Entry {
        let order = fixtures::order(desired, 1);
        let link = Link {
            instance: order.id,
            bridge: format!("cs-{}", order.id.short()),
            subnet: "10.201.0.8/29".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 201, 0, 9),
            address: Ipv4Addr::new(10, 201, 0, 10),
            sidecars: Vec::new(),
        };
        Entry {
            order,
            link,
            lapsed: false,
        }
    }

    fn found(change: impl FnOnce(&mut Observed)) -> Vec<Damage> {
        let order = fixtures::order(Desired::Running, 1);
        let mut now = healthy();
        change(&mut now);
        let found = damages(&order, &healthy(), &now);
        assert_eq!(damages(&order, &now, &now), [], "told twice");
        for (damage, text) in &found {
            assert!(
                !damage.is_mended(&order, &now) && damage.is_mended(&order, &healthy()),
                "{damage:?} {text}"
            );
        }
        found.into_iter().map(|(damage, _)| damage).collect()
    }

    fn container(now: &mut Observed) -> &mut Container {
        now.parts[0].container.as_mut().unwrap()
    }

    #[test]
    fn damage__should_be_seen_where_something_was_right_before() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|now| now.armed = false), [Damage::Egress]);
        assert_eq!(found(|now| now.files = false), [Damage::Files]);
        assert_eq!(found(|now| now.volume = None), [Damage::Volume]);
        assert_eq!(found(|now| now.network = Presence::Absent), [Damage::Network]);
        assert_eq!(found(|now| container(now).run = Run::Paused), [Damage::Paused]);
        assert_eq!(found(|now| container(now).limits = LimitsState::Differ), [Damage::Limits]);
        assert_eq!(
            found(|now| container(now).limits = LimitsState::TooLow { used: 5 }),
            [Damage::Limits]
        );
        assert_eq!(found(|now| container(now).confined = false), [Damage::Loosened]);
        let out_of_memory = false;
        assert_eq!(
            found(|now| container(now).run = Run::Exited {
                code: 143,
                out_of_memory
            }),
            [Damage::Ended]
        );
    }

    #[test]
    fn damage__should_include_a_container_that_somebody_removed() {
        let order = fixtures::order(Desired::Running, 1);
        let mut now = healthy();
        now.parts[0].container = None;
        let found = damages(&order, &healthy(), &now);
        assert!(matches!(&found[..], [(Damage::Removed, _)]), "{found:?}");
        assert!(Damage::Removed.is_mended(&order, &healthy()));
        // The engine may still be at it, or it had ended before.
        assert_eq!(self::found(|now| container(now).run = Run::Broken), [Damage::Removed]);
        let mut before = healthy();
        container(&mut before).run = Run::Exited {
            code: 1,
            out_of_memory: false,
        };
        let found = damages(&order, &before, &now);
        assert!(matches!(&found[..], [(Damage::Removed, _)]), "{found:?}");
    }

    #[test]
    fn damage__should_be_seen_of_a_sidecar_too() {
        let order = fixtures::order(Desired::Running, 1);
        let mut before = healthy();
        before.parts.push(Part {
            member: Member::Ssh,
            ..before.parts[0].clone()
        });
        let mut now = before.clone();
        now.parts[1].container = None;
        let found = damages(&order, &before, &now);
        assert!(matches!(&found[..], [(Damage::Removed, _)]), "{found:?}");
        assert!(!Damage::Removed.is_mended(&order, &now) && Damage::Removed.is_mended(&order, &before));
    }

    #[test]
    fn damage__should_not_be_what_we_do_ourselves() {
        let mut order = fixtures::order(Desired::Running, 1);
        order.restarts = 1;
        let mut now = healthy();
        now.parts[0].container = None;
        assert_eq!(damages(&order, &healthy(), &now), [], "a restart was asked for");
        let mut other = healthy();
        container(&mut other).docker_id = "d".to_owned();
        container(&mut other).limits = LimitsState::Differ;
        assert_eq!(
            damages(&fixtures::order(Desired::Running, 1), &healthy(), &other),
            [],
            "a new container has its own limits"
        );
    }
}
