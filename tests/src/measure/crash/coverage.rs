//! Does the reference run lead to every action that there is? Read from the sources, so that a new
//! action is either in the run or named here with its reason.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};

/// Where the actions are written down.
const NODE_AGENT: &str = include_str!("../../../../node-agent/src/reconcile/plan.rs");
const COORDINATOR: &str = include_str!("../../../../coordinator/src/reconcile/instances.rs");

/// What one node without a pool cannot be led to.
const ELSEWHERE: [(&str, &str); 2] = [
    (
        "LimitVolume",
        "needs a pool with quotas, dear to make for each run: tests/volumes.rs kills around it",
    ),
    (
        "Move",
        "needs a second node: the coordinator's own tests of moves do it with made-up nodes",
    ),
];

/// Fails when an action of either plan is neither in `seen` nor excused.
pub(super) fn check(seen: &BTreeSet<&str>) -> anyhow::Result<()> {
    let known: BTreeSet<_> = [NODE_AGENT, COORDINATOR]
        .iter()
        .map(|source| actions(source))
        .collect::<anyhow::Result<Vec<_>>>()?
        .concat()
        .into_iter()
        .collect();
    let excused: BTreeSet<_> = ELSEWHERE.iter().map(|(action, _)| *action).collect();
    let absent: Vec<_> = known
        .iter()
        .filter(|action| !seen.contains(*action) && !excused.contains(*action))
        .collect();
    ensure!(
        absent.is_empty(),
        "the scenario does not lead to {absent:?}: add an act for each, or name it with its reason in coverage.rs"
    );
    let stale: Vec<_> = excused
        .iter()
        .filter(|action| seen.contains(*action) || !known.contains(*action))
        .collect();
    ensure!(stale.is_empty(), "coverage.rs excuses {stale:?} without need");
    Ok(())
}

/// The variants of `enum Action`.
fn actions(source: &str) -> anyhow::Result<Vec<&str>> {
    let (_, rest) = source.split_once("pub(crate) enum Action {").context("no `enum Action`")?;
    let (body, _) = rest.split_once("\n}").context("`enum Action` does not end")?;
    let names = body
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    Ok(names.map(|line| line.split([' ', ',', '(']).next().unwrap_or(line)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions__should_be_read_from_both_sources() {
        let agent = actions(NODE_AGENT).unwrap();
        assert!(
            agent.contains(&"CreateVolume") && agent.contains(&"RemoveVolume"),
            "{agent:?}"
        );
        let coordinator = actions(COORDINATOR).unwrap();
        assert!(
            coordinator.contains(&"Place") && coordinator.contains(&"Forget"),
            "{coordinator:?}"
        );
    }

    #[test]
    fn check__should_name_what_is_not_led_to() {
        let text = check(&BTreeSet::from(["CreateVolume"])).unwrap_err().to_string();
        assert!(text.contains("StartContainer") && !text.contains("CreateVolume"), "{text}");
    }
}
