//! One command from its request to its exit code. Each direction waits for whoever takes its bytes, so
//! that nothing is kept here but one read's worth.

use std::{io, time::Duration};

use crabshack_shared::{
    exec::{FrameReader, FrameWriter, FromCommand, Request, Size, Stream, ToCommand},
    ids::InstanceId,
    problem::{Code, Problem},
    telemetry::Chain,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::unix::OwnedWriteHalf,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::ending;
use crate::docker::{Attached, AttachedOutput, Docker, DockerError};

/// How long the request may take to come.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// An empty frame tells, by being refused, that the coordinator has gone while it may not say so:
/// standard input that the command does not read is not read from the coordinator either.
const ALIVE_PERIOD: Duration = Duration::from_secs(10);
/// How long the last message may take.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Between two looks whether a command that closed its output has ended: at first, and at most.
const EXIT_PERIOD: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(1));
/// A terminal can be resized once its command runs.
const RESIZE_LIMIT: Duration = Duration::from_secs(10);
const RESIZE_PERIOD: Duration = Duration::from_millis(50);
/// The engine's code for every command that it cannot start, and a shell's for one that is not there.
const CANNOT_START: i64 = 126;
const NOT_FOUND: i64 = 127;
/// Long enough for the engine to say why.
const BEGINNING: usize = 1024;
/// Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

type Reader = FrameReader<ReadHalf<TokioIo<Upgraded>>>;
type Writer = FrameWriter<WriteHalf<TokioIo<Upgraded>>>;

/// Where a command is to run.
pub(super) struct Session {
    pub(super) docker: Docker,
    pub(super) instance: InstanceId,
    pub(super) stop: CancellationToken,
}

/// Why a conversation is over.
enum End {
    /// There is something left to say.
    Say(FromCommand),
    /// The other side is gone.
    Gone,
}

impl From<Problem> for End {
    fn from(problem: Problem) -> Self {
        Self::Say(FromCommand::from(&problem))
    }
}

impl Session {
    /// Runs what the stream asks for; ends it when the stream ends or the node agent is to stop.
    pub(super) async fn run(self, stream: TokioIo<Upgraded>) {
        let (reader, writer) = split(stream);
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        let end = match self.request(&mut reader).await {
            Ok(request) => self
                .command(&request, &mut reader, &mut writer)
                .await
                .unwrap_or_else(|end| end),
            Err(end) => end,
        };
        if let End::Say(message) = end {
            let said = timeout(LAST_WORDS, async {
                writer.message(&message).await?;
                writer.end().await
            });
            if !matches!(said.await, Ok(Ok(()))) {
                debug!(instance = %self.instance, "nobody heard how a command ended");
            }
        }
    }

    async fn request(&self, reader: &mut Reader) -> Result<Request, End> {
        let first = match timeout(REQUEST_LIMIT, reader.next()).await {
            Ok(Ok(Some(first))) => first,
            Ok(_) => return Err(End::Gone),
            Err(_elapsed) => return Err(Problem::invalid("no request came").into()),
        };
        let request = match first.stream {
            Stream::Message => serde_json::from_slice::<Request>(first.content()).ok(),
            _ => None,
        };
        let request = request.ok_or_else(|| Problem::invalid("the first frame must be the request"))?;
        request.check()?;
        Ok(request)
    }

    async fn command(&self, request: &Request, reader: &mut Reader, writer: &mut Writer) -> Result<End, End> {
        let refused = |error: DockerError| self.refused(&error);
        let id = self.docker.create_exec(self.instance, request).await.map_err(refused)?;
        let end = self.attached(&id, request, reader, writer).await;
        self.docker.forget_exec(&id);
        end
    }

    async fn attached(&self, id: &str, request: &Request, reader: &mut Reader, writer: &mut Writer) -> Result<End, End> {
        let attached = self.docker.attach_exec(self.instance, id, request).await;
        let Attached { stdin, mut output } = attached.map_err(|error| self.refused(&error))?;
        let (sizes, wanted) = watch::channel(request.size());
        let talk = async {
            if let Err(error) = writer.message(&FromCommand::Started).await {
                return gone(&error);
            }
            tokio::select! {
                end = self.output(id, &mut output, writer) => end,
                end = input(reader, stdin, &sizes, request.tty) => end,
                end = self.resize(id, wanted) => end,
            }
        };
        let end = match self.stop.run_until_cancelled(talk).await {
            Some(End::Say(message @ FromCommand::Exit { .. })) => return Ok(End::Say(message)),
            Some(end) => end,
            None => Problem::unreachable("the node agent is being stopped, and with it this command").into(),
        };
        // The engine notices nothing of this by itself.
        drop(output);
        ending::end(&self.docker, id).await;
        Ok(end)
    }

    /// Carries what the command prints, then waits for its exit code.
    async fn output(&self, id: &str, output: &mut AttachedOutput, writer: &mut Writer) -> End {
        // What the engine prints in the place of a command that it cannot start.
        let mut beginning = Vec::new();
        let mut alive = interval(ALIVE_PERIOD);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let more = tokio::select! {
                more = output.more() => more,
                _ = alive.tick() => {
                    writer.add(Stream::Stdout, b"");
                    match writer.send().await {
                        Ok(()) => continue,
                        Err(error) => return gone(&error),
                    }
                }
            };
            let pieces = more.and_then(|more| {
                while let Some((stream, piece)) = output.piece()? {
                    beginning.extend(piece.iter().take(BEGINNING - beginning.len()));
                    writer.add(stream, &piece);
                }
                Ok(more)
            });
            match pieces {
                Ok(true) => {}
                Ok(false) => return self.exit(id, &beginning).await,
                Err(error) => {
                    debug!(instance = %self.instance, "the output of a command broke off: {}", Chain(&error));
                    return self.exit(id, &beginning).await;
                }
            }
            if let Err(error) = writer.send().await {
                return gone(&error);
            }
        }
    }

    async fn exit(&self, id: &str, beginning: &[u8]) -> End {
        let (mut pause, longest) = EXIT_PERIOD;
        loop {
            match self.docker.exec_state(id).await {
                Ok(Some(state)) => match state.code {
                    Some(CANNOT_START) if state.pid.is_none() && is_missing(beginning) => {
                        return End::Say(FromCommand::Exit { code: NOT_FOUND });
                    }
                    Some(code) if !state.running => return End::Say(FromCommand::Exit { code }),
                    _ => {}
                },
                Ok(None) => return Problem::conflict(Code::Stopped, "the instance's container was removed meanwhile").into(),
                Err(error) => return self.refused(&error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Gives the terminal its size, and again whenever another one is wanted. Never ends.
    async fn resize(&self, id: &str, mut wanted: watch::Receiver<Option<Size>>) -> End {
        loop {
            let size = *wanted.borrow_and_update();
            if let Some(size) = size {
                let began = Instant::now();
                while let Err(error) = self.docker.resize_exec(id, size).await {
                    if began.elapsed() > RESIZE_LIMIT {
                        debug!(instance = %self.instance, "a terminal keeps its size: {}", Chain(&error));
                        break;
                    }
                    sleep(RESIZE_PERIOD).await;
                }
            }
            if wanted.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn refused(&self, error: &DockerError) -> End {
        let problem = match error {
            DockerError::NoSuchContainer { .. } | DockerError::NotRunning { .. } => {
                Problem::conflict(Code::Stopped, "the instance's container does not run now")
            }
            DockerError::Engine { message, .. } => Problem::unreachable(format!("Docker does not run the command: {message}")),
            _ => Problem::unreachable("Docker on the instance's node does not answer"),
        };
        warn!(instance = %self.instance, "a command is not run: {}", Chain(error));
        problem.into()
    }
}

/// Carries what the client says. Ends when it is gone.
async fn input(reader: &mut Reader, stdin: OwnedWriteHalf, sizes: &watch::Sender<Option<Size>>, tty: bool) -> End {
    let mut stdin = Some(stdin);
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return End::Gone,
            Err(error) => return gone(&error),
        };
        let typed = match frame.stream {
            Stream::Stdin => frame.content(),
            Stream::Message => match serde_json::from_slice(frame.content()) {
                Ok(ToCommand::Resize(size)) if tty && size.is_sane() => {
                    sizes.send_replace(Some(size));
                    continue;
                }
                Ok(ToCommand::StdinEnd) if tty => &[END_OF_TRANSMISSION],
                Ok(ToCommand::StdinEnd) => {
                    // Dropping it ends it.
                    stdin = None;
                    continue;
                }
                _ => continue,
            },
            Stream::Stdout | Stream::Stderr => continue,
        };
        // A command may close its input, or end, before everything is said.
        if let Some(open) = &mut stdin
            && open.write_all(typed).await.is_err()
        {
            stdin = None;
        }
    }
}

fn is_missing(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    ["executable file not found", "no such file or directory"]
        .iter()
        .any(|words| said.contains(words))
}

fn gone(error: &io::Error) -> End {
    debug!("the coordinator let go of a command: {}", Chain(error));
    End::Gone
}
