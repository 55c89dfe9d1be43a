//! One WebSocket, from its ticket to its last message. Binary messages carry the command's streams, each
//! with its number as the first byte, and are frames of the node's stream but for the length; texts are
//! [`ToCommand`] and [`FromCommand`]. What one side does not take, the other is not asked for.

use std::{io, sync::Arc, time::Duration};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use crabshack_shared::{
    agent_api::v1::Desired,
    exec::{Frame, FrameReader, FrameWriter, FromCommand, PIECE_LIMIT, Stream, ToCommand},
    problem::{Code, Problem},
    telemetry::Chain,
};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, split},
    time::{Instant, interval_at, timeout},
};
use tracing::{debug, warn};

use super::{
    Pending,
    activity::{Activity, Limit},
    audit, place,
};
use crate::{
    agents::connect::ConnectError,
    api::{extract::no_such_instance, instances::view, internal},
    app::App,
    events::Changes,
};

/// A client that is away without having said so shows by not answering.
const PING_PERIOD: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(60);
/// For the last message, and then for the client to close.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What a close frame's reason can hold.
const REASON: usize = 123;

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The command did.
    Exit(i64),
    /// It was not run, or let go of.
    Error { error: String, code: Code },
    /// Nobody is there to be told.
    ClientGone,
}

impl From<Problem> for End {
    fn from(problem: Problem) -> Self {
        Self::Error {
            error: problem.to_string(),
            code: problem.code(),
        }
    }
}

type Sink = SplitSink<WebSocket, Message>;

/// Runs what the ticket is for.
pub(super) async fn run(app: Arc<App>, pending: Pending, socket: WebSocket) {
    let (mut sink, mut stream) = socket.split();
    // Before anything is looked at: a stop in between must not be missed.
    let changes = app.events.follow(pending.instance);
    let begun = async {
        let found = view::find(&app, &pending.name).map_err(internal)?;
        let found = found.filter(|found| found.record.id == pending.instance);
        let found = found.ok_or_else(|| no_such_instance(&pending.name))?;
        let node = place(&found)?;
        let noted = audit::begun(&app, &pending, found.record.generation).await?;
        Ok::<_, Problem>((node, noted))
    };
    let (node, noted) = match begun.await {
        Ok(begun) => begun,
        Err(problem) => return close(sink, stream, &problem.into()).await,
    };
    let activity = Activity::new();
    let end = {
        let talk = async {
            match app.connector.exec(&node, pending.instance).await {
                Ok(tunnel) => talk(&pending, tunnel, &mut sink, &mut stream, &activity).await,
                Err(error) => unreached(&pending, &error),
            }
        };
        tokio::select! {
            end = talk => end,
            limit = activity.limit(app.settings.exec_idle, app.settings.exec_length) => over(limit),
            () = pending.session.cancelled() => {
                Problem::unauthorized("the instance's token was changed, which ends what was open").into()
            }
            end = withdrawn(&app, &pending, changes) => end,
            () = app.shutdown.token.cancelled() => {
                Problem::unavailable(Code::Unreachable, "the coordinator is being stopped: try again", 1).into()
            }
        }
    };
    let after = activity.age();
    tokio::join!(close(sink, stream, &end), audit::ended(&app, &pending, noted, &end, after));
}

/// Carries both directions until one says that it is over.
async fn talk(
    pending: &Pending,
    tunnel: impl AsyncRead + AsyncWrite,
    sink: &mut Sink,
    stream: &mut SplitStream<WebSocket>,
    activity: &Activity,
) -> End {
    let (reader, writer) = split(tunnel);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let spoken = async {
        // What the node answers to this, if it refuses, comes by the other direction.
        if let Err(error) = writer.message(&pending.request).await {
            debug!(instance.id = %pending.instance, "a command was not taken: {}", Chain(&error));
        }
        input(stream, &mut writer, activity).await
    };
    let heard = async {
        output(&mut reader, sink, activity).await.unwrap_or_else(|error| {
            warn!(instance.id = %pending.instance, "a command's stream from its node broke: {}", Chain(&error));
            Problem::unreachable("the connection to the instance's node broke, and with it the command").into()
        })
    };
    tokio::select! {
        end = heard => end,
        end = spoken => end,
    }
}

/// From the command to the client.
async fn output(reader: &mut FrameReader<impl AsyncRead + Unpin>, sink: &mut Sink, activity: &Activity) -> io::Result<End> {
    let mut ping = interval_at(Instant::now() + PING_PERIOD, PING_PERIOD);
    loop {
        let mut next = tokio::select! {
            next = reader.next() => Some(next?.ok_or(io::ErrorKind::UnexpectedEof)?),
            _ = ping.tick() => None,
        };
        if next.is_none() && (activity.is_silent(SILENCE) || sink.feed(Message::Ping(Bytes::new())).await.is_err()) {
            return Ok(End::ClientGone);
        }
        while let Some(frame) = next {
            let message = match told(frame)? {
                Told::Message(message) => message,
                Told::Alive => break,
                Told::End(end) => return Ok(end),
            };
            activity.moved();
            if sink.feed(message).await.is_err() {
                return Ok(End::ClientGone);
            }
            next = reader.ready()?;
        }
        if sink.flush().await.is_err() {
            return Ok(End::ClientGone);
        }
    }
}

enum Told {
    Message(Message),
    Alive,
    End(End),
}

fn told(frame: Frame) -> io::Result<Told> {
    Ok(match frame.stream {
        Stream::Stdout | Stream::Stderr if frame.content().is_empty() => Told::Alive,
        Stream::Stdout | Stream::Stderr => Told::Message(Message::Binary(frame.into_whole())),
        Stream::Message => match serde_json::from_slice(frame.content())? {
            FromCommand::Started => Told::Message(text(&FromCommand::Started)?),
            FromCommand::Exit { code } => Told::End(End::Exit(code)),
            FromCommand::Error { error, code } => Told::End(End::Error { error, code }),
        },
        Stream::Stdin => return Err(io::Error::new(io::ErrorKind::InvalidData, "standard input from a node")),
    })
}

/// From the client to the command. Ends when the client does, or says what it must not.
async fn input(
    stream: &mut SplitStream<WebSocket>,
    writer: &mut FrameWriter<impl AsyncWrite + Unpin>,
    activity: &Activity,
) -> End {
    let mut open = true;
    while let Some(Ok(message)) = stream.next().await {
        activity.heard();
        match message {
            Message::Binary(bytes) if bytes.len() > PIECE_LIMIT + 1 => {
                let text = format!("a message carries at most {} KiB of standard input", PIECE_LIMIT >> 10);
                return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge, text).into();
            }
            Message::Binary(bytes) => match Frame::new(bytes) {
                Ok(frame) if frame.stream == Stream::Stdin => writer.add(Stream::Stdin, frame.content()),
                _ => return Problem::invalid("a binary message is a zero byte and then standard input").into(),
            },
            Message::Text(said) => match serde_json::from_str::<ToCommand>(&said) {
                Ok(ToCommand::Resize(size)) if !size.is_sane() => {
                    return Problem::invalid("rows and cols are each from 1 to 2000").into();
                }
                Ok(_) => writer.add(Stream::Message, said.as_bytes()),
                Err(error) => {
                    return Problem::invalid(format!("a text message is a `resize` or a `stdin_end`: {error}")).into();
                }
            },
            Message::Close(_) => return End::ClientGone,
            Message::Ping(_) | Message::Pong(_) => continue,
        }
        activity.moved();
        activity.deaf(true);
        // A node that is gone shows in the other direction, with its last words.
        open = open && writer.send().await.is_ok();
        activity.deaf(false);
    }
    End::ClientGone
}

/// Ends when the instance is no longer to run where it does.
async fn withdrawn(app: &App, pending: &Pending, mut changes: Changes) -> End {
    loop {
        match app.store.reading().and_then(|reading| reading.instance(pending.instance)) {
            Ok(Some(record)) if record.desired == Desired::Running && record.assignment.as_ref() == Some(&pending.node) => {
                changes.next().await;
            }
            Ok(Some(record)) if record.is_living() => {
                return Problem::conflict(Code::Stopped, "the instance is being stopped, and with it the command").into();
            }
            Ok(_) => return Problem::not_found("the instance is being deleted, and with it the command").into(),
            Err(error) => return internal(error).into(),
        }
    }
}

fn over(limit: Limit) -> End {
    let text = match limit {
        Limit::Idle => "the command said and heard nothing for as long as is allowed (CRABSHACK_EXEC_IDLE)",
        Limit::Length => "the command ran for as long as is allowed (CRABSHACK_EXEC_LENGTH)",
    };
    Problem::conflict(Code::Conflict, text).into()
}

fn unreached(pending: &Pending, error: &ConnectError) -> End {
    warn!(instance.id = %pending.instance, "a command did not reach its node: {}", Chain(error));
    match error {
        ConnectError::NotHere { .. } => Problem::conflict(Code::NotReady, "the instance is not up on its node: try again"),
        ConnectError::Refused { status, .. } if *status == StatusCode::CONFLICT => {
            Problem::conflict(Code::Stopped, "the instance is not to run on its node")
        }
        ConnectError::Refused { status, .. } if *status == StatusCode::TOO_MANY_REQUESTS => {
            Problem::too_many("as many commands as may run on the instance's node already: end one of them first")
        }
        _ => Problem::unreachable("the instance's node cannot be reached: try again"),
    }
    .into()
}

/// Tells the client how it ended, and waits a little for it to have heard: a connection that is closed
/// while something comes in takes what it sent last with it.
async fn close(mut sink: Sink, mut stream: SplitStream<WebSocket>, end: &End) {
    let (message, code, reason) = match end {
        End::Exit(code) => (FromCommand::Exit { code: *code }, close_code::NORMAL, String::new()),
        End::Error { error, code } => {
            let last = FromCommand::Error {
                error: error.clone(),
                code: *code,
            };
            let number = match code {
                Code::Internal | Code::Unreachable => close_code::ERROR,
                Code::TooLarge => close_code::SIZE,
                _ => close_code::POLICY,
            };
            (last, number, error.clone())
        }
        End::ClientGone => return,
    };
    let mut cut = reason.len().min(REASON);
    while !reason.is_char_boundary(cut) {
        cut -= 1;
    }
    let frame = CloseFrame {
        code,
        reason: reason[..cut].into(),
    };
    let told = timeout(LAST_WORDS, async {
        sink.feed(text(&message).map_err(axum::Error::new)?).await?;
        sink.send(Message::Close(Some(frame))).await
    });
    if matches!(told.await, Ok(Ok(()))) {
        let heard = async { while let Some(Ok(_)) = stream.next().await {} };
        // Whether it closes or not, that was all.
        drop(timeout(LAST_WORDS, heard).await);
    }
}

fn text(message: &FromCommand) -> io::Result<Message> {
    Ok(Message::Text(serde_json::to_string(message)?.into()))
}
