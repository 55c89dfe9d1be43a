//! The crash harness, every third step.

use std::process::ExitCode;

use anyhow::ensure;
use crabshack_tests::{machine::Machine, measure::crash, suite};

/// All steps take longer than CI has; `measure crash` takes them all.
const EVERY: usize = 3;

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test(
            "action__should_survive_a_kill_before_and_after_it_and_a_repetition",
            every_third,
        )
    })
}

async fn every_third(machine: &Machine) -> anyhow::Result<()> {
    let figures = crash::figures(machine, EVERY).await?;
    let text = figures.render("crash");
    ensure!(figures.number("holes") == 0, "{text}");
    ensure!(figures.number("kills") > 10, "too few kills to show anything: {text}");
    Ok(())
}
