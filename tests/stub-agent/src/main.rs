//! An agent that only tests run: it speaks the image contract (environment file, managed settings,
//! gateway and SSH ports) and misbehaves on request, by the `STUB_*` variables of [`settings`].
//!
//! It is one static binary in an otherwise empty image; called as `crabshack-configure` it merges
//! the managed settings, as every image must; as `sh` it starts the command; as `stub TOOL` it is one of
//! [`tools`]; with `eat MIB` it only uses that much memory.

mod configure;
mod disk;
mod flood;
mod hostile;
mod misbehave;
mod probe;
mod report;
mod routes;
mod settings;
mod tools;

use std::{
    env,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::settings::Settings;

/// Where every image serves its gateway.
const GATEWAY_PORT: u16 = 18789;
/// Where every image serves SSH.
const SSH_PORT: u16 = 2222;

fn main() -> ExitCode {
    let settings = Settings::read();
    let called_as = env::args().next().unwrap_or_default();
    let result = if Path::new(&called_as)
        .file_name()
        .is_some_and(|name| name == "crabshack-configure")
    {
        configure::run(&settings).map(|()| ExitCode::SUCCESS)
    } else if Path::new(&called_as).file_name().is_some_and(|name| name == "sh") {
        // There is no shell in the image: `sh -c SCRIPT NAME COMMAND...` is taken to end in the command.
        Err(Command::new(env::args().nth(4).unwrap_or_default())
            .args(env::args().skip(5))
            .exec()
            .into())
    } else if let Some(tool) = tool() {
        tools::run(&tool)
    } else if let Some(mebibytes) = env::args().skip_while(|word| word != "eat").nth(1) {
        // A process of its own that is killed for its appetite, unless there is enough.
        drop(misbehave::eat(mebibytes.parse().unwrap_or_default()));
        Ok(ExitCode::SUCCESS)
    } else {
        // Before anything else: the suites ask what leaves in the very first moment.
        flood::start(&settings);
        start(settings)
    };
    result.unwrap_or_else(|error| {
        drop(std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("{error:#}\n").as_bytes(),
        ));
        ExitCode::FAILURE
    })
}

/// The words after `stub`, whether it was called by that name or told it.
fn tool() -> Option<Vec<String>> {
    let mut words = env::args().skip_while(|word| Path::new(word).file_name().is_none_or(|name| name != "stub"));
    words.next().map(|_| words.collect())
}

fn start(settings: Settings) -> anyhow::Result<ExitCode> {
    configure::run(&settings)?;
    if let Some(code) = misbehave::crash_on_start(&settings)? {
        return Ok(code);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(settings))
}

async fn serve(settings: Settings) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let gateway = TcpListener::bind(("0.0.0.0", GATEWAY_PORT))
        .await
        .context("cannot bind the gateway port")?;
    let ssh = TcpListener::bind(("0.0.0.0", SSH_PORT))
        .await
        .context("cannot bind the SSH port")?;
    let _memory = misbehave::eat_memory(&settings);
    tokio::spawn(misbehave::heartbeat(settings.clone()));
    tokio::spawn(greet(ssh));
    let serving = axum::serve(gateway, routes::router(&settings));
    let ignore_term = settings.flag("STUB_IGNORE_TERM");
    tokio::select! {
        ended = serving => ended.map(|()| ExitCode::SUCCESS).context("the gateway ended"),
        code = misbehave::exit_after(&settings) => Ok(code),
        () = async { while terminate.recv().await.is_some() { if !ignore_term { break; } } } => Ok(ExitCode::SUCCESS),
    }
}

/// Stands for sshd: one line and the end.
async fn greet(ssh: TcpListener) {
    while let Ok((mut connection, _)) = ssh.accept().await {
        tokio::spawn(async move {
            // A client that left early is no concern of ours.
            drop(connection.write_all(b"SSH-2.0-stub-agent\r\n").await);
        });
    }
}
