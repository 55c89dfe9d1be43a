//! `main` of every suite: isolation, one machine, its tests one after the other.

use std::{
    env, fs,
    io::Write as _,
    path::Path,
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use anyhow::Context as _;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use crate::{image, isolation, machine::Machine, process::log_end};

/// Lines of each log that a failure shows.
const LOG_LINES: usize = 40;

/// Collects the tests of one suite.
pub struct Suite {
    stage: Arc<Stage>,
    trials: Vec<Trial>,
}

struct Stage {
    runtime: Runtime,
    machine: OnceLock<Result<Machine, String>>,
}

impl Stage {
    /// Made by the first test, so that listing tests costs nothing.
    fn machine(&self) -> anyhow::Result<&Machine> {
        let machine = self
            .machine
            .get_or_init(|| self.runtime.block_on(Machine::start()).map_err(|error| format!("{error:#}")));
        machine
            .as_ref()
            .map_err(|error| anyhow::anyhow!("the machine cannot be set up: {error}"))
    }
}

impl Suite {
    /// Adds a test, named `subject__should_do_this`.
    pub fn test(&mut self, name: &str, case: impl AsyncFnOnce(&Machine) -> anyhow::Result<()> + Send + 'static) {
        let stage = Arc::clone(&self.stage);
        self.trials.push(Trial::test(name, move || {
            let run = || {
                let machine = stage.machine()?;
                stage
                    .runtime
                    .block_on(case(machine))
                    .inspect_err(|_| show_logs(&machine.logs()))
            };
            run().map_err(|error: anyhow::Error| Failed::from(format!("{error:#}")))
        }));
    }
}

/// Runs a suite that needs our binaries and the stub's image.
pub fn run(collect: impl FnOnce(&mut Suite)) -> ExitCode {
    run_after(|| Ok(()), collect)
}

/// As [`run`], with one more thing to prepare outside the namespaces.
pub fn run_after(prepare: impl FnOnce() -> anyhow::Result<()>, collect: impl FnOnce(&mut Suite)) -> ExitCode {
    let arguments = Arguments::from_args();
    let listing = arguments.list;
    try_run(arguments, listing, prepare, collect).unwrap_or_else(|error| {
        drop(writeln!(std::io::stderr(), "this suite cannot run: {error:#}"));
        ExitCode::FAILURE
    })
}

fn try_run(
    mut arguments: Arguments,
    listing: bool,
    prepare: impl FnOnce() -> anyhow::Result<()>,
    collect: impl FnOnce(&mut Suite),
) -> anyhow::Result<ExitCode> {
    if !listing {
        isolation::enter(|| {
            build()?;
            prepare()
        })?;
    }
    crabshack_shared::tls::install_provider();
    let stage = Arc::new(Stage {
        runtime: runtime()?,
        machine: OnceLock::new(),
    });
    let mut suite = Suite {
        stage: Arc::clone(&stage),
        trials: Vec::new(),
    };
    collect(&mut suite);
    // One node, one set of ports.
    arguments.test_threads = Some(1);
    Ok(libtest_mimic::run(&arguments, suite.trials).exit_code())
}

/// Two threads: as many as the smallest machine that the product supports.
pub fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime")
}

/// Builds what a suite runs; with `CRABSHACK_BIN_DIR` the binaries are taken as they are.
pub fn build() -> anyhow::Result<()> {
    image::build_stub()?;
    if env::var_os("CRABSHACK_BIN_DIR").is_none() {
        let release = image::profile_folder()?.ends_with("release");
        let mut arguments = vec![
            "build",
            "--locked",
            "-p",
            "crabshack-coordinator",
            "-p",
            "crabshack-node-agent",
        ];
        arguments.extend(release.then_some("--release"));
        image::cargo(&arguments)?;
    }
    Ok(())
}

/// Writes the ends of all logs of a machine to standard error.
pub fn show_logs(folder: &Path) {
    let mut output = std::io::stderr();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // There is nowhere to complain to if standard error is closed.
        drop(writeln!(output, "{}", log_end(&entry.path(), LOG_LINES)));
    }
}
