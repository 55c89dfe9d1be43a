//! Questions over TCP: each message behind its length, one after the other.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{admission::Admission, message, upstream::Upstreams};

/// How long a client may take for its next question, or to take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// After an error that concerns no single connection (no descriptors left), so as not to spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers until dropped.
pub(super) async fn serve(listener: TcpListener, upstreams: Upstreams, admission: Arc<Admission>) {
    let mut open = JoinSet::new();
    loop {
        let (stream, source) = tokio::select! {
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a DNS connection");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        // A connection holds its place also while it is idle: it is one of our descriptors.
        let Some(place) = admission.admit(source.ip()) else {
            tracing::debug!(%source, "too many DNS connections at once");
            continue;
        };
        let upstreams = upstreams.clone();
        open.spawn(async move {
            let _place = place;
            if let Err(error) = converse(stream, &upstreams).await {
                tracing::debug!(%source, %error, "a DNS connection ended");
            }
        });
    }
}

async fn converse(mut stream: TcpStream, upstreams: &Upstreams) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, read_message(&mut stream)).await??;
        if !message::is_question(&question) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a question"));
        }
        let answer = upstreams.ask_by_tcp(&question).await;
        timeout(IDLE, write_message(&mut stream, &answer)).await??;
    }
}

/// One message without its length.
pub(super) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// One message behind its length, in one piece.
pub(super) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
