//! The coordinator of Crabshack: holds who owns what, places instances, serves the public API, and
//! carries traffic to the nodes.

mod agents;
mod api;
mod app;
mod auth;
mod ca;
mod cli;
mod config;
mod events;
mod gateway;
mod images;
mod metrics;
mod outgoing;
mod placement;
mod reconcile;
mod router;
mod serve;
mod service_types;
mod status;
mod store;
#[cfg(test)]
mod testing;

use std::{io, process::ExitCode};

use anyhow::Context as _;
use crabshack_shared::{
    api::nodes::JoinTokenAnswer,
    config::{EXIT_USAGE, parse},
    listen::Inherited,
    telemetry::{self, Chain},
    tls,
};

use crate::{
    cli::{Cli, Command, JoinTokenArguments, RecoverArguments, ServeArguments},
    config::{ConfigError, Settings},
    store::Store,
};

fn main() -> ExitCode {
    tls::install_provider();
    let cli = match parse::<Cli>() {
        Ok(cli) => cli,
        Err((text, 0)) => return say(io::stdout(), &text, 0),
        Err((text, code)) => return say(io::stderr(), &text, code),
    };
    let done = match cli.command {
        Command::Serve(arguments) => serve(&arguments),
        Command::JoinToken(arguments) => join_token(&arguments),
        Command::Recover(arguments) => recover(&arguments),
    };
    match done {
        Ok(text) if text.is_empty() => ExitCode::SUCCESS,
        Ok(text) => say(io::stdout(), &format!("{text}\n"), 0),
        Err(error) => {
            let code = if error.is::<ConfigError>() { EXIT_USAGE } else { 1 };
            say(io::stderr(), &format!("crabshack: {}\n", Chain(error.as_ref())), code)
        }
    }
}

fn serve(arguments: &ServeArguments) -> anyhow::Result<String> {
    let settings = Settings::new(arguments)?;
    telemetry::start(arguments.logging.log_format, arguments.logging.debug);
    // Before there are threads: it reads the environment and takes out what is ours alone.
    let inherited = Inherited::take().context("what systemd passed on cannot be listened on: look at the socket units")?;
    runtime()?.block_on(serve::run(settings, arguments.halt_at.clone(), inherited))?;
    Ok(String::new())
}

fn join_token(arguments: &JoinTokenArguments) -> anyhow::Result<String> {
    let secret = config::admin_secret(&arguments.admin)?;
    let url = format!("http://127.0.0.1:{}/nodes/join-token", arguments.port);
    let asked = async {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.post(url).bearer_auth(secret.expose()).send().await?;
        answer.error_for_status()?.json::<JoinTokenAnswer>().await
    };
    let answer = runtime()?
        .block_on(asked)
        .context("the coordinator gave no join token: does it run, and is the admin secret right?")?;
    Ok(answer.token.expose().to_owned())
}

fn recover(arguments: &RecoverArguments) -> anyhow::Result<String> {
    let store = Store::open(&arguments.data_dir)?;
    let raised = store.write_now(|writing| writing.raise_epoch())?;
    Ok(format!("The next wishes carry generation {raised} and later."))
}

/// Two workers are enough: nothing but the store blocks, and that has threads of its own.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
}

/// The one place that talks to people.
fn say(mut to: impl io::Write, text: &str, code: i32) -> ExitCode {
    // When nobody can be told, the exit code still says it.
    drop(to.write_all(text.as_bytes()));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
