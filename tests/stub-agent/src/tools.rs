//! `stub TOOL`: what suites run as commands in an instance, because the image has nothing else.

use std::{
    env, fs,
    io::{self, Read, Write},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::json;

/// Bytes that are poured at a time.
const CHUNK: usize = 32 << 10;
/// After so many bytes what is poured begins again.
const PERIOD: usize = 251;

/// Runs one and returns its exit code.
pub(crate) fn run(words: &[String]) -> anyhow::Result<ExitCode> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("`{text}` is no number"));
    match words[..] {
        ["cat"] => io::copy(&mut io::stdin().lock(), &mut Unbuffered(io::stdout())).map(drop)?,
        ["exit", code] => return Ok(ExitCode::from(u8::try_from(number(code)?)?)),
        ["both"] => {
            write!(io::stdout(), "to stdout")?;
            write!(io::stderr(), "to stderr")?;
        }
        ["pour", bytes] => pour(number(bytes)?)?,
        ["swallow"] => {
            let swallowed = io::copy(&mut io::stdin().lock(), &mut io::sink())?;
            writeln!(io::stdout(), "{swallowed}")?;
        }
        ["size"] => sizes()?,
        ["who"] => who()?,
        // Says its number, and stays: alone, with a child, or although it is hung up on.
        ["stay"] => stay()?,
        ["stay", "with-child"] => {
            let child = Command::new("/proc/self/exe")
                .args(["stub", "stay"])
                .stdin(Stdio::null())
                .spawn();
            child?.wait()?;
        }
        _ => bail!("there is no such tool: {words:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is written is written at once.
struct Unbuffered(io::Stdout);

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.0.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pour(bytes: u64) -> anyhow::Result<()> {
    let pattern: Vec<u8> = (0..CHUNK + PERIOD)
        .map(|at| u8::try_from(at % PERIOD).unwrap_or_default())
        .collect();
    let mut output = io::stdout().lock();
    let mut at = 0;
    while at < bytes {
        let from = usize::try_from(at)? % PERIOD;
        let length = CHUNK.min(usize::try_from(bytes - at)?);
        output.write_all(&pattern[from..from + length])?;
        at += length as u64;
    }
    Ok(output.flush()?)
}

/// The terminal's size, again for each line that is typed, until the input ends.
fn sizes() -> anyhow::Result<()> {
    let mut line = [0; 64];
    loop {
        let size = rustix::termios::tcgetwinsize(io::stdin())?;
        writeln!(io::stdout(), "{} {}", size.ws_row, size.ws_col)?;
        if io::stdin().read(&mut line)? == 0 {
            return Ok(());
        }
    }
}

fn who() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    let all = json!({
        "uid": field("Uid"),
        "gid": field("Gid"),
        "groups": field("Groups"),
        "capabilities": field("CapEff"),
        "bounding_capabilities": field("CapBnd"),
        "no_new_privileges": field("NoNewPrivs"),
        "seccomp": field("Seccomp"),
        "folder": env::current_dir()?,
        "environment": env::vars().collect::<std::collections::BTreeMap<_, _>>(),
    });
    Ok(writeln!(io::stdout(), "{all}")?)
}

fn stay() -> anyhow::Result<()> {
    writeln!(io::stdout(), "here")?;
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
