//! The node agent: runs the instances of one node. See ARCHITECTURE.md for the map.

mod agent;
mod command;
mod config;
mod data_plane;
mod dns;
mod docker;
mod egress;
mod facts;
mod files;
#[cfg(test)]
mod fixtures;
mod health;
mod identity;
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

use crabshack_shared::{config as shared_config, telemetry, tls};

fn main() -> ExitCode {
    let settings = match shared_config::parse::<config::Settings>() {
        Ok(settings) => settings,
        Err((message, code)) => return shared_config::exit(&message, code),
    };
    telemetry::start(settings.log_format, settings.debug);
    tls::install_provider();
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
    if let Some(config::Command::Pool(command)) = &settings.command {
        return runtime.block_on(pool::run(&settings.data_dir, command));
    }
    match runtime.block_on(agent::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %telemetry::Chain(&error), "the node agent cannot run");
            ExitCode::FAILURE
        }
    }
}
