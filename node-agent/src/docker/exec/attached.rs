//! A command with its streams attached. The attachment is spoken with the engine itself and not through
//! bollard, which looks for pieces in a terminal's output too: a tenant could name a length there and
//! have it kept in our memory.

use std::io;

use bollard::{errors::Error, models::ExecConfig};
use bytes::{Bytes, BytesMut};
use crabshack_shared::{
    exec::{Request, Size},
    ids::InstanceId,
};
use http::{
    StatusCode,
    header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt as _,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{Output, refused};
use crate::{
    docker::{Docker, DockerError, NORMAL, docker_name, error::status},
    volume::AGENT,
};

/// As after an SSH login: at home, the user's own shell if the image has it.
const LOGIN_SHELL: [&str; 3] = ["/bin/sh", "-c", r#"cd; exec "$(command -v bash || command -v sh)" -l"#];
/// One read of a command's output.
const BUFFER: usize = 64 << 10;
/// Most of what the engine says when it refuses.
const ANSWER: usize = 64 << 10;
const ATTACH: &str = "attach to the command";
/// What would let a command go on without us, eight times Ctrl-@. Docker wants something, would else
/// take Ctrl-P for itself, and shows it: this is how ours are known again.
const DETACH_KEYS: &str = "ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@";
/// As Docker shows them: the bytes in base64.
const DETACH_KEYS_SHOWN: &str = "AAAAAAAAAAA=";

/// A command that was started, with its streams.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) stdin: OwnedWriteHalf,
    pub(crate) output: AttachedOutput,
}

/// What it prints.
#[derive(Debug)]
pub(crate) struct AttachedOutput {
    from: OwnedReadHalf,
    buffer: BytesMut,
    /// Says what of it is which stream.
    pieces: Output,
}

impl AttachedOutput {
    /// Waits for more; false at the end. May be dropped while it waits.
    pub(crate) async fn more(&mut self) -> io::Result<bool> {
        self.buffer.reserve(BUFFER);
        Ok(self.from.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next piece of what has arrived.
    pub(crate) fn piece(&mut self) -> io::Result<Option<(crabshack_shared::exec::Stream, Bytes)>> {
        self.pieces.take(&mut self.buffer)
    }
}

/// What the engine knows of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecState {
    pub(crate) running: bool,
    /// Once it has ended.
    pub(crate) code: Option<i64>,
    /// As the engine sees processes; none: not started.
    pub(crate) pid: Option<i32>,
    /// Docker's id of the container.
    pub(crate) container: String,
    /// It was made by [`Docker::create_exec`] of an earlier process, so nobody listens to it.
    pub(crate) left_behind: bool,
}

impl Docker {
    /// Makes a command, which does nothing yet. It runs as the instance's own user with what its
    /// container has, and never with more.
    pub(crate) async fn create_exec(&self, instance: InstanceId, request: &Request) -> Result<String, DockerError> {
        let command = if request.command.is_empty() {
            LOGIN_SHELL.map(str::to_owned).to_vec()
        } else {
            request.command.clone()
        };
        let config = ExecConfig {
            cmd: Some(command),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            detach_keys: Some(DETACH_KEYS.to_owned()),
            tty: Some(request.tty),
            env: Some(request.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            privileged: Some(false),
            user: Some(format!("{}:{}", AGENT.uid, AGENT.gid)),
            working_dir: request.workdir.clone(),
            ..ExecConfig::default()
        };
        let made = self.call(NORMAL, |client| async move {
            Ok(client.create_exec(&docker_name(instance), config).await?.id)
        });
        let id = made.await.map_err(|error| refused(instance, error))?;
        self.attached().insert(id.clone());
        Ok(id)
    }

    /// Nobody listens to it from now on.
    pub(crate) fn forget_exec(&self, id: &str) {
        self.attached().remove(id);
    }

    /// Starts it with its streams.
    pub(crate) async fn attach_exec(&self, instance: InstanceId, id: &str, request: &Request) -> Result<Attached, DockerError> {
        match timeout(NORMAL, self.try_attach(id, request)).await {
            Ok(Ok(attached)) => Ok(attached),
            Ok(Err(error)) => Err(refused(instance, error)),
            Err(_elapsed) => Err(DockerError::Timeout { operation: ATTACH }),
        }
    }

    async fn try_attach(&self, id: &str, asked: &Request) -> Result<Attached, Error> {
        let stream = UnixStream::connect(&*self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the upgrade, or when `sender` is dropped.
        tokio::spawn(async move { connection.with_upgrades().await.unwrap_or_default() });
        let mut body = serde_json::json!({"Detach": false, "Tty": asked.tty});
        if let Some(Size { rows, cols }) = asked.size() {
            body["ConsoleSize"] = serde_json::json!([rows, cols]);
        }
        let request = http::Request::post(format!("/exec/{id}/start"))
            .header(HOST, "docker")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "tcp")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let mut answer = sender.send_request(request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status_code = answer.status().as_u16();
            let text = Limited::new(answer.into_body(), ANSWER).collect().await;
            let message = text.map_or_else(
                |_| "it refused".to_owned(),
                |text| String::from_utf8_lossy(&text.to_bytes()).trim().to_owned(),
            );
            return Err(Error::DockerResponseServerError { status_code, message });
        }
        let upgraded = hyper::upgrade::on(&mut answer).await?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| io::Error::other("the upgraded stream is not the one that was dialled"))?;
        let (from, stdin) = parts.io.into_inner().into_split();
        Ok(Attached {
            stdin,
            output: AttachedOutput {
                from,
                buffer: BytesMut::from(&*parts.read_buf),
                pieces: Output::new(asked.tty),
            },
        })
    }

    /// What became of it. None: its container is gone.
    pub(crate) async fn exec_state(&self, id: &str) -> Result<Option<ExecState>, DockerError> {
        let asked = self.call(NORMAL, |client| async move { client.inspect_exec(id).await });
        match asked.await {
            Ok(state) => Ok(Some(ExecState {
                running: state.running.unwrap_or_default(),
                code: state.exit_code,
                pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
                container: state.container_id.unwrap_or_default(),
                left_behind: state.detach_keys.as_deref() == Some(DETACH_KEYS_SHOWN) && !self.attached().contains(id),
            })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(DockerError::of("tell of the command", error)),
        }
    }

    /// The commands that run in an instance, of whomever.
    pub(crate) async fn running_execs(&self, instance: InstanceId) -> Result<Vec<String>, DockerError> {
        let name = docker_name(instance);
        let asked = self.call(NORMAL, |client| async move { client.inspect_container(&name, None).await });
        let container = asked.await.map_err(|error| refused(instance, error))?;
        Ok(container.exec_ids.unwrap_or_default())
    }

    /// Gives its terminal another size.
    pub(crate) async fn resize_exec(&self, id: &str, size: Size) -> Result<(), DockerError> {
        let options = bollard::exec::ResizeExecOptions {
            height: size.rows,
            width: size.cols,
        };
        let asked = self.call(NORMAL, |client| async move { client.resize_exec(id, options).await });
        asked.await.map_err(|error| DockerError::of("resize the terminal", error))
    }
}
