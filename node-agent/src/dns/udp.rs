//! Questions in datagrams.

use std::{sync::Arc, time::Duration};

use tokio::{net::UdpSocket, task::JoinSet, time::sleep};

use super::{admission::Admission, message, upstream::Upstreams};

/// Larger than any question; what is longer is cut off and fails upstream.
const LARGEST_QUESTION: usize = 4096;
/// After an error that concerns no single question, so as not to spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers until dropped.
pub(super) async fn serve(socket: UdpSocket, upstreams: Upstreams, admission: Arc<Admission>) {
    let socket = Arc::new(socket);
    let mut open = JoinSet::new();
    let mut buffer = vec![0; LARGEST_QUESTION];
    loop {
        let (length, source) = tokio::select! {
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    // Also the ICMP error of a client that went away.
                    tracing::debug!(%error, "cannot receive a DNS question");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let question = &buffer[..length];
        if !message::is_question(question) {
            continue;
        }
        let Some(place) = admission.admit(source.ip()) else {
            tracing::debug!(%source, "too many DNS questions at once");
            continue;
        };
        let (socket, upstreams, question) = (Arc::clone(&socket), upstreams.clone(), question.to_vec());
        open.spawn(async move {
            let _place = place;
            let answer = upstreams.ask_by_udp(&question).await;
            if let Err(error) = socket.send_to(&answer, source).await {
                tracing::debug!(%source, %error, "cannot send a DNS answer");
            }
        });
    }
}
