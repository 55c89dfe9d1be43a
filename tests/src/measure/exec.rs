//! `exec`: a command through the public API against the same through the raw Engine API, without a
//! terminal.

use std::{pin::Pin, time::Instant};

use anyhow::{Context as _, bail, ensure};
use bollard::{
    Docker,
    container::LogOutput,
    exec::{CreateExecOptions, StartExecResults},
};
use futures_util::{Stream, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::Figures;
use crate::{
    client::stub,
    cluster::Cluster,
    exec::{Exec, Heard, Sender},
    machine::Machine,
    must::{median, text},
};

/// A line, as somebody types it or a program asks.
const LINE: &[u8] = b"echo round trip of one line through cat in the instance......\n";
/// One message.
const PIECE: usize = 64 << 10;

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Round trips in each batch.
    pub trips: usize,
    /// Batches of each kind, in turn.
    pub batches: usize,
    /// What goes through, in bytes.
    pub bulk: usize,
}

impl Size {
    /// Of the figures.
    pub const FULL: Self = Self {
        trips: 200,
        batches: 60,
        bulk: 100 << 20,
    };
}

/// Round trips, and bytes both ways.
pub async fn figures(machine: &Machine, size: Size) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("figures")).await?;
        let id = text(&cluster.client.instance("figures").await?, "instance_id")?.to_owned();
        round_trips(cluster, machine.dockerd.engine(), &id, size, &mut figures).await?;
        let began = Instant::now();
        figures.add("bytes_lost", bytes_lost(cluster, "figures", size.bulk).await?);
        let seconds = began.elapsed().as_secs_f64();
        figures.add_rounded("bulk_mib", size.bulk as f64 / f64::from(1 << 20));
        figures.add_rounded("bulk_mib_per_second_and_way", size.bulk as f64 / f64::from(1 << 20) / seconds);
        Ok(())
    })
    .await?;
    Ok(figures)
}

async fn round_trips(cluster: &Cluster<'_>, engine: &Docker, id: &str, size: Size, figures: &mut Figures) -> anyhow::Result<()> {
    let mut raw = Raw::open(engine, id, &["stub", "cat"]).await?;
    let mut ours = Exec::started(&cluster.client, "figures", &json!({"command": ["stub", "cat"]})).await?;
    let (mut raw_times, mut our_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for batch in 0..=size.batches {
        let mut raw_batch = Vec::new();
        let mut our_batch = Vec::new();
        for _ in 0..size.trips {
            let began = Instant::now();
            raw.round_trip(LINE).await?;
            raw_batch.push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            ours.sender.stdin(LINE).await?;
            ensure!(ours.receiver.stdout(LINE.len()).await? == LINE, "another line came back");
            our_batch.push(began.elapsed().as_secs_f64() * 1e6);
        }
        // The first one warms up.
        if batch > 0 {
            ratios.push(median(our_batch.clone()) / median(raw_batch.clone()));
            raw_times.extend(raw_batch);
            our_times.extend(our_batch);
        }
    }
    figures.add("round_trips", raw_times.len());
    figures.add_rounded("raw_round_trip_us", median(raw_times));
    figures.add_rounded("round_trip_us", median(our_times));
    figures.add_rounded("round_trip_ratio", median(ratios));
    Ok(())
}

/// Sends a pattern through `cat` and counts what does not come back as it was.
pub async fn bytes_lost(cluster: &Cluster<'_>, name: &str, bulk: usize) -> anyhow::Result<u64> {
    let request = json!({"command": ["stub", "cat"]});
    let Exec { sender, mut receiver } = Exec::started(&cluster.client, name, &request).await?;
    let sending = tokio::spawn(send(sender, bulk));
    let (mut arrived, mut wrong) = (0, 0);
    let code = loop {
        match receiver.next().await? {
            Heard::Stdout(bytes) => {
                wrong += bytes
                    .iter()
                    .enumerate()
                    .filter(|(at, byte)| **byte != pattern(arrived + at))
                    .count();
                arrived += bytes.len();
            }
            Heard::Message(message) if message["type"] == "exit" => break message["code"].as_i64(),
            other => bail!("{other:?} after {arrived} bytes"),
        }
    };
    let _sender = sending.await??;
    ensure!(code == Some(0), "cat ended with {code:?}");
    Ok((bulk.abs_diff(arrived) + wrong) as u64)
}

/// To the end of standard input; the sender is given back so that it stays open.
async fn send(mut sender: Sender, bulk: usize) -> anyhow::Result<Sender> {
    let mut at = 0;
    while at < bulk {
        let length = PIECE.min(bulk - at);
        let piece: Vec<u8> = (at..at + length).map(pattern).collect();
        sender.stdin(&piece).await?;
        at += length;
    }
    sender.say(&json!({"type": "stdin_end"})).await?;
    Ok(sender)
}

fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or_default()
}

/// The same without us.
struct Raw {
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
}

impl Raw {
    async fn open(engine: &Docker, id: &str, command: &[&str]) -> anyhow::Result<Self> {
        let options = CreateExecOptions {
            cmd: Some(command.to_vec()),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let exec = engine.create_exec(&format!("cs-{id}"), options).await?.id;
        match engine.start_exec(&exec, None).await? {
            StartExecResults::Attached { output, input } => Ok(Self { output, input }),
            StartExecResults::Detached => bail!("the engine detached"),
        }
    }

    async fn round_trip(&mut self, line: &[u8]) -> anyhow::Result<()> {
        self.input.write_all(line).await?;
        self.input.flush().await?;
        let mut back = Vec::new();
        while back.len() < line.len() {
            let piece = self.output.next().await.context("cat ended")??;
            back.extend_from_slice(piece.as_ref());
        }
        ensure!(back == line, "another line came back");
        Ok(())
    }
}
