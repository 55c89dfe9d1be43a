//! The storm, at CI's size.

use std::process::ExitCode;

use anyhow::ensure;
use crabshack_tests::{machine::Machine, measure::storm, suite};

fn main() -> ExitCode {
    suite::run(|suite| suite.test("storm__should_end_as_wished_whoever_is_killed", small))
}

async fn small(machine: &Machine) -> anyhow::Result<()> {
    let figures = storm::figures(machine, &storm::Size::SMALL).await?;
    let text = figures.render("storm");
    for zero in ["containers_stopped_by_kill", "wrong_state", "leftovers"] {
        ensure!(figures.number(zero) == 0, "{zero}: {text}");
    }
    ensure!(figures.number("kills") >= 3, "too few kills to show anything: {text}");
    ensure!(
        figures.number("agent_answer_ms") < 1000 && figures.number("adopted_ms") < 5000,
        "{text}"
    );
    Ok(())
}
