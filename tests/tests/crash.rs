//! The crash harness, a random third of it with a few kills of dockerd; `measure crash` takes all.

use std::{process::ExitCode, time::Duration};

use anyhow::ensure;
use crabshack_tests::{
    machine::Machine,
    measure::crash::{self, Share},
    suite,
};

/// All of it takes longer than CI has; `measure crash` takes it. After so long none is begun, so that
/// the whole stays under six minutes on a slow machine as well.
const LONGEST: Duration = Duration::from_secs(310);

fn main() -> ExitCode {
    suite::run(|suite| suite.test("action__should_survive_a_kill_before_and_after_it_and_a_repetition", a_third))
}

async fn a_third(machine: &Machine) -> anyhow::Result<()> {
    let figures = crash::figures(machine, Share::Third(LONGEST)).await?;
    let text = figures.render("crash");
    ensure!(figures.number("holes") == 0, "{text}");
    ensure!(figures.number("missed") == 0, "kills that did not happen: {text}");
    ensure!(figures.number("engine_kills") > 0, "dockerd was not killed: {text}");
    ensure!(figures.number("kills") > 10, "too few kills to show anything: {text}");
    Ok(())
}
