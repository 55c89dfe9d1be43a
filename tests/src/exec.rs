//! A command in an instance, as a client of the public API runs it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};

use crate::{client::Client, cluster::API, gateway, must::text};

/// Longer than anything here is silent.
const SILENCE: Duration = Duration::from_secs(30);

/// What arrives.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Standard output, or a terminal's.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// A message.
    Message(Value),
    /// It was closed, with this code.
    Closed(Option<u16>),
}

/// What a client sends.
pub struct Sender(SplitSink<WebSocketStream<TcpStream>, Message>);
/// What a client hears.
pub struct Receiver(SplitStream<WebSocketStream<TcpStream>>);

/// A running command.
pub struct Exec {
    /// To it.
    pub sender: Sender,
    /// From it.
    pub receiver: Receiver,
}

/// All that a command said.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The last message.
    pub last: Value,
    /// The code with which it was closed.
    pub closed: Option<u16>,
}

impl Exec {
    /// Asks for a ticket and opens the WebSocket.
    pub async fn open(client: &Client, name: &str, request: &Value) -> anyhow::Result<Self> {
        let ticket = client.post(&format!("/instances/{name}/exec"), request).await?.success()?;
        Self::with_ticket(text(&ticket, "path")?).await
    }

    /// Opens the WebSocket.
    pub async fn with_ticket(path: &str) -> anyhow::Result<Self> {
        let authority = API.trim_start_matches("http://");
        let address: SocketAddr = authority.parse()?;
        let socket = gateway::websocket(address, authority, path, &[]).await?;
        let (sender, receiver) = socket.split();
        Ok(Self {
            sender: Sender(sender),
            receiver: Receiver(receiver),
        })
    }

    /// Opens it and waits until it is started.
    pub async fn started(client: &Client, name: &str, request: &Value) -> anyhow::Result<Self> {
        let mut exec = Self::open(client, name, request).await?;
        let first = exec.receiver.next().await?;
        ensure!(
            first == Heard::Message(json!({"type": "started"})),
            "{first:?} instead of the start"
        );
        Ok(exec)
    }

    /// Runs a command without input to its end.
    pub async fn run(client: &Client, name: &str, request: &Value) -> anyhow::Result<Outcome> {
        let mut exec = Self::open(client, name, request).await?;
        exec.receiver.rest().await
    }
}

impl Sender {
    /// Standard input.
    pub async fn stdin(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(0);
        message.extend_from_slice(bytes);
        Ok(self.0.send(Message::binary(message)).await?)
    }

    /// A message.
    pub async fn say(&mut self, message: &Value) -> anyhow::Result<()> {
        Ok(self.0.send(Message::text(message.to_string())).await?)
    }

    /// Anything.
    pub async fn send(&mut self, message: Message) -> anyhow::Result<()> {
        Ok(self.0.send(message).await?)
    }
}

impl Receiver {
    /// What comes next.
    pub async fn next(&mut self) -> anyhow::Result<Heard> {
        loop {
            let message = timeout(SILENCE, self.0.next())
                .await
                .context("nothing is heard of a command")?;
            return Ok(match message {
                None => Heard::Closed(None),
                Some(Ok(Message::Binary(bytes))) => match bytes.first() {
                    Some(1) => Heard::Stdout(bytes.slice(1..)),
                    Some(2) => Heard::Stderr(bytes.slice(1..)),
                    other => bail!("a message of stream {other:?}"),
                },
                Some(Ok(Message::Text(text))) => Heard::Message(serde_json::from_str(&text)?),
                Some(Ok(Message::Close(frame))) => Heard::Closed(frame.map(|frame| number(frame.code))),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error.into()),
            });
        }
    }

    /// Standard output until there is so much.
    pub async fn stdout(&mut self, length: usize) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < length {
            match self.next().await? {
                Heard::Stdout(bytes) => all.extend_from_slice(&bytes),
                other => bail!("{other:?} instead of output, after {:?}", String::from_utf8_lossy(&all)),
            }
        }
        Ok(all)
    }

    /// Standard output until it holds a text.
    pub async fn stdout_with(&mut self, wanted: &str) -> anyhow::Result<String> {
        let mut all = String::new();
        while !all.contains(wanted) {
            match self.next().await? {
                Heard::Stdout(bytes) => all.push_str(&String::from_utf8_lossy(&bytes)),
                other => bail!("{other:?} instead of `{wanted}`, after {all:?}"),
            }
        }
        Ok(all)
    }

    /// Everything to the end.
    pub async fn rest(&mut self) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        loop {
            match self.next().await? {
                Heard::Stdout(bytes) => outcome.stdout.extend_from_slice(&bytes),
                Heard::Stderr(bytes) => outcome.stderr.extend_from_slice(&bytes),
                Heard::Message(message) => outcome.last = message,
                Heard::Closed(code) => {
                    outcome.closed = code;
                    return Ok(outcome);
                }
            }
        }
    }
}

impl Outcome {
    /// Its exit code; anything else is an error.
    pub fn code(&self) -> anyhow::Result<i64> {
        ensure!(
            self.last["type"] == "exit" && self.closed == Some(1000),
            "no exit: {:?}",
            self
        );
        self.last["code"].as_i64().context("no code")
    }

    /// The text of its error; anything else is one of ours.
    pub fn problem(&self, code: &str) -> anyhow::Result<String> {
        ensure!(
            self.last["type"] == "error" && self.last["code"] == code && self.closed.is_some(),
            "not `{code}`: {} (closed {:?})",
            self.last,
            self.closed
        );
        Ok(text(&self.last, "error")?.to_owned())
    }
}

fn number(code: CloseCode) -> u16 {
    code.into()
}
