//! Runs a tool to its end; a failure carries what it said.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// Runs `line`, split at spaces, and returns its standard output.
pub fn run(line: &str) -> anyhow::Result<String> {
    run_with_input(line, "")
}

/// As [`run`], with text on its standard input.
pub fn run_with_input(line: &str, input: &str) -> anyhow::Result<String> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let program = words.next().context("an empty command line")?;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{program}` cannot be run: is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "`{line}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs `line` inside the network namespace of a process (none: our own).
pub fn run_in(namespace: Option<u32>, line: &str, input: &str) -> anyhow::Result<String> {
    match namespace {
        Some(pid) => run_with_input(&format!("nsenter --net=/proc/{pid}/ns/net {line}"), input),
        None => run_with_input(line, input),
    }
}
