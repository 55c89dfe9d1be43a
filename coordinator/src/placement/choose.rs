//! Which of several nodes: pure.

use super::{Candidate, Need, NoRoom};

/// The node with the least reserved share among those with room; ties go to the first by id.
pub(crate) fn least_reserved(candidates: &[Candidate], need: Need, overcommit: f64) -> Result<usize, NoRoom> {
    if candidates.is_empty() {
        return Err(NoRoom::NoNode);
    }
    let mut left: Vec<(usize, &Candidate)> = candidates.iter().enumerate().collect();
    let steps: [(Fits, NoRoom); 5] = [
        (
            &|candidate| has_runtime(candidate, need),
            NoRoom::Runtime(need.runtime.unwrap_or_default()),
        ),
        (&|candidate| !candidate.pressed, NoRoom::Pressed),
        (&|candidate| candidate.cpus >= need.cpus, NoRoom::Processors(need.cpus)),
        (
            &|candidate| has_memory(candidate, need, overcommit),
            NoRoom::Memory(need.memory),
        ),
        (&|candidate| has_storage(candidate, need), NoRoom::Storage(need.storage)),
    ];
    // The first thing that nobody has is what is missing.
    for (fits, missing) in steps {
        left.retain(|(_, candidate)| fits(candidate));
        if left.is_empty() {
            return Err(missing);
        }
    }
    left.iter()
        .min_by(|(_, left), (_, right)| {
            let share = |candidate: &Candidate| candidate.reserved as f64 / candidate.memory.max(1) as f64;
            share(left).total_cmp(&share(right)).then_with(|| left.node.cmp(&right.node))
        })
        .map(|(index, _)| *index)
        .ok_or(NoRoom::NoNode)
}

type Fits<'a> = &'a dyn Fn(&Candidate) -> bool;

fn has_runtime(candidate: &Candidate, need: Need) -> bool {
    let offers = |wanted: &str| candidate.runtimes.iter().any(|name| name == wanted);
    need.runtime.is_none_or(offers)
}

fn has_memory(candidate: &Candidate, need: Need, overcommit: f64) -> bool {
    // Exact up to 8 PiB, which is more than a node has.
    let promised = candidate.reserved.saturating_add(need.memory) as f64;
    need.memory == 0 || promised <= candidate.memory as f64 * overcommit
}

fn has_storage(candidate: &Candidate, need: Need) -> bool {
    need.storage == 0
        || candidate
            .storage
            .is_none_or(|total| candidate.promised.saturating_add(need.storage) <= total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn candidate(node: &str, memory: u64, reserved: u64) -> Candidate {
        Candidate {
            node: node.parse().unwrap(),
            memory: memory * GIB,
            reserved: reserved * GIB,
            cpus: 2000,
            storage: None,
            promised: 0,
            pressed: false,
            runtimes: vec!["runc".to_owned()],
        }
    }

    fn need(memory: u64) -> Need {
        Need {
            memory: memory * GIB,
            cpus: 1000,
            storage: 10 * GIB,
            runtime: None,
        }
    }

    #[test]
    fn least_reserved__should_prefer_the_emptier_node_with_room() {
        let nodes = [
            candidate("node-000000000001", 8, 4),
            candidate("node-000000000002", 16, 4),
            candidate("node-000000000003", 2, 0),
        ];
        assert_eq!(least_reserved(&nodes, need(4), 1.0), Ok(1));
        assert_eq!(least_reserved(&nodes, need(2), 1.0), Ok(2));
        assert_eq!(least_reserved(&nodes, need(13), 1.0), Err(NoRoom::Memory(13 * GIB)));
        assert_eq!(least_reserved(&nodes, need(13), 2.0), Ok(1));
    }

    #[test]
    fn least_reserved__should_say_what_is_missing() {
        assert_eq!(least_reserved(&[], need(1), 1.0), Err(NoRoom::NoNode));
        let many = Need {
            memory: GIB,
            cpus: 64_000,
            storage: GIB,
            runtime: None,
        };
        let refused = least_reserved(&[candidate("node-000000000001", 8, 0)], many, 1.0).unwrap_err();
        assert_eq!(refused, NoRoom::Processors(64_000));
        assert_eq!(refused.to_string(), "no node has 64 processors");
    }

    #[test]
    fn least_reserved__should_keep_promises_of_storage_where_they_count() {
        let mut nodes = [candidate("node-000000000001", 8, 4), candidate("node-000000000002", 8, 0)];
        nodes[1].storage = Some(25 * GIB);
        nodes[1].promised = 10 * GIB;
        assert_eq!(least_reserved(&nodes, need(1), 1.0), Ok(1));
        nodes[1].promised = 16 * GIB;
        assert_eq!(least_reserved(&nodes, need(1), 1.0), Ok(0), "a plain folder promises nothing");
        let refused = least_reserved(&nodes[1..], need(1), 1.0).unwrap_err();
        assert!(refused.to_string().contains("10240 MiB of storage"), "{refused}");
    }

    #[test]
    fn least_reserved__should_leave_a_node_with_full_disks_alone() {
        let mut nodes = [candidate("node-000000000001", 8, 4), candidate("node-000000000002", 8, 0)];
        nodes[1].pressed = true;
        assert_eq!(least_reserved(&nodes, need(1), 1.0), Ok(0));
        assert_eq!(least_reserved(&nodes[1..], need(1), 1.0), Err(NoRoom::Pressed));
    }

    #[test]
    fn least_reserved__should_choose_a_node_that_has_the_runtime() {
        let mut nodes = [candidate("node-000000000001", 8, 0), candidate("node-000000000002", 8, 4)];
        let inside = Need {
            runtime: Some("sysbox-runc"),
            ..need(1)
        };
        let refused = least_reserved(&nodes, inside, 1.0).unwrap_err();
        assert!(refused.to_string().contains("the Docker runtime `sysbox-runc`"), "{refused}");
        nodes[1].runtimes.push("sysbox-runc".to_owned());
        assert_eq!(least_reserved(&nodes, inside, 1.0), Ok(1));
    }

    #[test]
    fn growth__should_ask_only_for_what_grows() {
        let grown = Need::growth(need(2), Need { memory: GIB, ..need(4) });
        assert_eq!(grown, Need::default());
        // What was promised too much stays, and less is always possible.
        let full = [candidate("node-000000000001", 2, 4)];
        assert_eq!(least_reserved(&full, grown, 1.0), Ok(0));
    }

    #[test]
    fn least_reserved__should_not_overflow() {
        let huge = Need {
            memory: u64::MAX,
            cpus: 1000,
            storage: u64::MAX,
            runtime: None,
        };
        assert!(least_reserved(&[candidate("node-000000000001", 8, 1)], huge, 1.0).is_err());
    }
}
