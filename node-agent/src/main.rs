//! The node agent: runs the instances of one node. See ARCHITECTURE.md for the map.

mod agent;
mod command;
mod config;
mod data_plane;
mod dns;
mod docker;
mod doctor;
mod egress;
mod facts;
mod files;
#[cfg(test)]
mod fixtures;
mod health;
mod identity;
mod images;
mod lease;
mod ledger;
mod link;
mod logs;
mod metrics;
mod node;
mod pool;
mod pressure;
mod recipe;
mod reconcile;
mod stats;
mod uplink;
mod volume;

use std::process::ExitCode;

use crabshack_shared::{config as shared_config, listen::Inherited, telemetry, tls};

fn main() -> ExitCode {
    let settings = match shared_config::parse::<config::Settings>() {
        Ok(settings) => settings,
        Err((message, code)) => return shared_config::exit(&message, code),
    };
    telemetry::start(settings.log_format, settings.debug);
    tls::install_provider();
    // Before there are threads, since it changes the environment.
    let inherited = match Inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => {
            tracing::error!(%error, "what the service manager passed is no listener: check the socket units");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match &settings.command {
        Some(config::Command::Pool(command)) => return runtime.block_on(pool::run(&settings.data_dir, command)),
        Some(config::Command::Doctor { json }) => return runtime.block_on(doctor::command::run(&settings, *json)),
        None => {}
    }
    match runtime.block_on(agent::run(settings, &inherited)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %telemetry::Chain(&error), "the node agent cannot run");
            ExitCode::FAILURE
        }
    }
}
