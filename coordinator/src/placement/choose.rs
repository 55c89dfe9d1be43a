//! Which of several nodes: pure.

use super::{Candidate, Need, NoRoom};

/// The node with the least reserved share among those with room; ties go to the first by id.
pub(crate) fn least_reserved(candidates: &[Candidate], need: Need, overcommit: f64) -> Result<usize, NoRoom> {
    if candidates.is_empty() {
        return Err(NoRoom::NoNode);
    }
    let strong = |candidate: &&(usize, &Candidate)| candidate.1.cpus >= need.cpus;
    let indexed: Vec<(usize, &Candidate)> = candidates.iter().enumerate().collect();
    if !indexed.iter().any(|candidate| strong(&candidate)) {
        return Err(NoRoom::Processors(need.cpus));
    }
    indexed
        .iter()
        .filter(strong)
        .filter(|(_, candidate)| has_room(candidate, need, overcommit))
        .min_by(|(_, left), (_, right)| {
            let share = |candidate: &Candidate| candidate.reserved as f64 / candidate.memory.max(1) as f64;
            share(left).total_cmp(&share(right)).then_with(|| left.node.cmp(&right.node))
        })
        .map(|(index, _)| *index)
        .ok_or(NoRoom::Memory(need.memory))
}

fn has_room(candidate: &Candidate, need: Need, overcommit: f64) -> bool {
    // Exact up to 8 PiB, which is more than a node has.
    let promised = candidate.reserved.saturating_add(need.memory) as f64;
    promised <= candidate.memory as f64 * overcommit
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
        }
    }

    fn need(memory: u64) -> Need {
        Need {
            memory: memory * GIB,
            cpus: 1000,
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
        };
        let refused = least_reserved(&[candidate("node-000000000001", 8, 0)], many, 1.0).unwrap_err();
        assert_eq!(refused, NoRoom::Processors(64_000));
        assert_eq!(refused.to_string(), "no node has 64 processors");
    }

    #[test]
    fn least_reserved__should_not_overflow() {
        let huge = Need {
            memory: u64::MAX,
            cpus: 1000,
        };
        assert!(least_reserved(&[candidate("node-000000000001", 8, 1)], huge, 1.0).is_err());
    }
}
