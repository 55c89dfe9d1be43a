//! Configuration: one clap struct is flag, variable, default and `--help`. It is complete before
//! anything binds; what is wrong is named and ends the process with exit code 64.

use std::{process::ExitCode, time::Duration};

use clap::{
    CommandFactory, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// `EX_USAGE` of sysexits: bad configuration.
pub const EXIT_USAGE: i32 = 64;

/// Reads arguments and environment. On bad configuration returns the message that names the
/// variable and the exit code; `--help` and `--version` come back with code 0.
pub fn parse<T: Parser + CommandFactory>() -> Result<T, (String, i32)> {
    T::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => (error.render().to_string(), 0),
        _ => (describe::<T>(&error), EXIT_USAGE),
    })
}

/// clap names the flag; people who set variables look for the variable.
fn describe<T: CommandFactory>(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let arguments: Vec<String> = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => vec![argument.clone()],
        Some(ContextValue::Strings(arguments)) => arguments.clone(),
        _ => Vec::new(),
    };
    let variables: Vec<String> = arguments
        .iter()
        .filter_map(|argument| variable_of(&T::command(), argument))
        .collect();
    if variables.is_empty() {
        text
    } else {
        format!("{text}\nCheck the variable {}.\n", variables.join(", "))
    }
}

fn variable_of(command: &clap::Command, argument: &str) -> Option<String> {
    let flag = argument.split_whitespace().next()?.trim_start_matches("--");
    command
        .get_arguments()
        .chain(command.get_subcommands().flat_map(clap::Command::get_arguments))
        .find(|known| known.get_long() == Some(flag))
        .and_then(|known| known.get_env())
        .map(|name| name.to_string_lossy().into_owned())
}

/// Ends a `main` whose configuration was bad, or that was only asked for help: tells the person and
/// gives the exit code.
pub fn exit(message: &str, code: i32) -> ExitCode {
    use std::io::Write as _;
    let text = message.trim_end();
    let told = if code == 0 {
        writeln!(std::io::stdout(), "{text}")
    } else {
        writeln!(std::io::stderr(), "{text}")
    };
    // Whoever closed the stream does not want to know.
    drop(told);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Reads a span of time, like `7d`, `12h`, `30m` or `10s`; for clap's `value_parser`.
///
/// # Errors
/// What form it should have.
pub fn span(text: &str) -> Result<Duration, String> {
    let seconds = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(24 * 3600),
        _ => None,
    };
    let text = text.trim();
    text.chars()
        .last()
        .and_then(seconds)
        .zip(text.get(..text.len().saturating_sub(1)))
        .filter(|(_, count)| count.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|(unit, count)| count.parse::<u64>().ok()?.checked_mul(unit))
        .filter(|seconds| *seconds <= 100 * 365 * 24 * 3600)
        .map(Duration::from_secs)
        .ok_or_else(|| "use a whole number with s, m, h or d, like `7d`; at most 100 years".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span__should_read_days_hours_minutes_and_seconds() {
        for (text, seconds) in [("7d", 604_800), ("12h", 43_200), ("30m", 1800), ("10s", 10), ("0s", 0)] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "7", "d", "-1d", "1.5h", "7w", "1d2h", "99999999999d", "\u{e4}"] {
            assert!(span(text).is_err(), "{text}");
        }
    }
}
