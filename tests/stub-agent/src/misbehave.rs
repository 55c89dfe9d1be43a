//! Crashes, early ends, appetite, and the heartbeat that proves which of them happened.

use std::{
    fs, future,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use crate::settings::Settings;

/// Counts this start in the home; tells to crash while there are fewer than `STUB_CRASH_TIMES`.
pub(crate) fn crash_on_start(settings: &Settings) -> anyhow::Result<Option<ExitCode>> {
    let path = settings.home().join(".stub/starts");
    let starts = fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or_default()
        + 1;
    fs::write(&path, starts.to_string())?;
    let crash = settings.number("STUB_CRASH_TIMES").is_some_and(|times| starts <= times);
    // A log that tells one start from the next; the colour is what a report must leave out.
    let word = if crash { "\x1b[31mcrashes\x1b[0m" } else { "serves" };
    drop(writeln!(io::stdout(), "start {starts} {word}"));
    Ok(crash.then(|| exit_code(settings, 1)))
}

/// Ends when it should end by itself; else never.
pub(crate) async fn exit_after(settings: &Settings) -> ExitCode {
    match settings.milliseconds("STUB_EXIT_AFTER_MS") {
        Some(after) => tokio::time::sleep(after).await,
        None => future::pending().await,
    }
    exit_code(settings, 0)
}

fn exit_code(settings: &Settings, default: u8) -> ExitCode {
    let code = settings.number("STUB_EXIT_CODE").and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(default))
}

/// Memory that is really used, every page written.
pub(crate) fn eat_memory(settings: &Settings) -> Vec<u8> {
    eat(settings.number("STUB_EAT_MEMORY_MB").unwrap_or_default())
}

/// As [`eat_memory`], in MiB.
pub(crate) fn eat(mebibytes: u64) -> Vec<u8> {
    vec![1; usize::try_from(mebibytes << 20).unwrap_or_default()]
}

/// Writes a counter into the home once per second.
pub(crate) async fn heartbeat(settings: Settings) {
    let path = settings.home().join("heartbeat");
    for beat in 0_u64.. {
        // A full disk stops the heart, which is what a test would look for.
        if fs::write(&path, beat.to_string()).is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
