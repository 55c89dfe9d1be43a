//! `measure` lists the figures, `measure NAME` takes them, at full size. Best run as a release
//! build, on a machine that does nothing else.

use std::{env, io::Write as _, process::ExitCode};

use anyhow::{Context as _, bail};
use crabshack_tests::{
    image, isolation,
    machine::Machine,
    measure::{Figures, crash, create, density, egress_first, exec, gateway, product_upgrade, quota, storm, types},
    suite,
};

/// Name and subject of every measurement.
const NAMES: [(&str, &str); 10] = [
    (
        "create",
        "create to ready against the raw Engine API, and memory with 12 instances",
    ),
    (
        "gateway",
        "the Control UI's handshake and live streams through the host route (needs the OpenClaw image; 10 minutes)",
    ),
    (
        "storm",
        "100 instances created, stopped, started and deleted while both processes are killed",
    ),
    (
        "crash",
        "every action killed before and after, and run twice, with dockerd among the victims",
    ),
    (
        "density",
        "200 idle instances: the node agent's return, processor time and memory",
    ),
    (
        "product-upgrade",
        "both processes replaced, the node agent by one with another recipe, while requests are made",
    ),
    (
        "exec",
        "commands in an instance against the raw Engine API: round trips, and 100 MiB both ways",
    ),
    ("egress-first", "what escapes from the first packet on"),
    (
        "types",
        "one instance of every service type from its creation to its end (the real IronClaw where its image was built)",
    ),
    (
        "quota",
        "one instance at its quota while another writes on (needs loop devices and btrfs-progs)",
    ),
];

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            // A closed pipe is the reader's choice.
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(writeln!(std::io::stderr(), "{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<String> {
    let Some(name) = env::args().nth(1) else {
        return Ok(NAMES.iter().map(|(name, subject)| format!("{name:14} {subject}\n")).collect());
    };
    if !NAMES.iter().any(|(known, _)| *known == name) {
        bail!("there is no measurement `{name}`: run without a name for the list");
    }
    isolation::enter(|| {
        suite::build()?;
        match name.as_str() {
            "gateway" => image::build_openclaw().map(drop),
            "product-upgrade" => image::build_changed_agent(),
            _ => Ok(()),
        }
    })?;
    crabshack_shared::tls::install_provider();
    let figures = suite::runtime()?
        .block_on(take(&name))
        .with_context(|| format!("`{name}` could not be measured"))?;
    Ok(figures.render(&name))
}

async fn take(name: &str) -> anyhow::Result<Figures> {
    let machine = Machine::start().await?;
    let figures = match name {
        "create" => create::figures(&machine, 25, 12).await,
        "gateway" => gateway::figures(&machine).await,
        "storm" => storm::figures(&machine, &storm::Size::FULL).await,
        "crash" => crash::figures(&machine, crash::Share::Whole).await,
        "density" => density::figures(&machine, density::Size::FULL).await,
        "product-upgrade" => product_upgrade::figures(&machine, 4).await,
        "exec" => exec::figures(&machine, exec::Size::FULL).await,
        "quota" => quota::figures(&machine, 1024).await,
        "types" => types::figures(&machine).await,
        _ => egress_first::figures(&machine, 20).await,
    };
    figures.inspect_err(|_| suite::show_logs(&machine.logs()))
}
