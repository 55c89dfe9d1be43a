//! Upgrades: WebSockets and whatever else two ends agree on. The bytes are not looked at, so there
//! is no limit on frames and none on silence.

use std::time::Duration;

use axum::response::Response;
use crabshack_shared::{
    relay::{self, relay},
    shutdown::Shutdown,
    telemetry::Chain,
};
use http::{
    HeaderMap, HeaderValue, Version,
    header::{CONNECTION, UPGRADE},
    request::Parts,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::frames::Farewell;

/// How long a visitor may take to answer the goodbye.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// The protocols a request wants to change to, if any. HTTP/2 is not among them: behind such an
/// upgrade requests would pass with headers that nobody has checked.
pub(super) fn wanted(parts: &Parts) -> Option<HeaderValue> {
    let asks = parts.version == Version::HTTP_11
        && parts
            .headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|names| names.split(','))
            .any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    let protocols = parts.headers.get(UPGRADE).filter(|_| asks)?;
    let names_http = protocols.to_str().ok()?.split(',').any(|protocol| {
        let protocol = protocol.trim().to_ascii_lowercase();
        protocol == "h2c" || protocol == "h2" || protocol.starts_with("http/")
    });
    (!names_http).then(|| protocols.clone())
}

/// Puts back what stripping the headers of one connection took off.
pub(super) fn announce(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocols);
}

/// What ends a joined connection.
pub(super) struct Ends {
    /// At once, with the token that opened it.
    pub(super) session: CancellationToken,
    /// With a goodbye: this process stops, or the node's agent does.
    pub(super) stop: CancellationToken,
}

/// Joins both ends once each has changed its protocol; a task of the shutdown.
pub(super) fn join(
    visitor: OnUpgrade,
    answer: &mut http::Response<Incoming>,
    protocol: &HeaderValue,
    ends: Ends,
    shutdown: &Shutdown,
) {
    let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    let agent = hyper::upgrade::on(answer);
    let Ends { session, stop } = ends;
    let joined = async move {
        let (visitor, agent) = match tokio::try_join!(visitor, agent) {
            Ok(both) => both,
            Err(error) => return debug!("gateway: an upgrade was not taken up: {}", Chain(&error)),
        };
        let agent = Farewell::new(TokioIo::new(agent), is_websocket, stop.clone());
        let too_long = async {
            stop.cancelled().await;
            tokio::time::sleep(FAREWELL_LIMIT).await;
        };
        tokio::select! {
            ended = relay(TokioIo::new(visitor), agent, relay::LINGER) => if let Err(error) = ended {
                debug!("gateway: an upgraded connection broke: {}", Chain(&error));
            },
            () = too_long => debug!("gateway: an upgraded connection was cut by the stop"),
        }
    };
    shutdown.tasks.spawn(async move {
        if session.run_until_cancelled(joined).await.is_none() {
            debug!("gateway: an upgraded connection was closed with the token that opened it");
        }
    });
}

/// True when the agent agreed to change the protocol.
pub(super) fn agreed<B>(answer: &Response<B>) -> bool {
    answer.status() == http::StatusCode::SWITCHING_PROTOCOLS
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn wants(headers: &[(&str, &str)]) -> bool {
        let mut request = Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        wanted(&request.body(()).unwrap().into_parts().0).is_some()
    }

    #[test]
    fn upgrade__should_be_asked_for_by_both_headers() {
        assert!(wants(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(!wants(&[("upgrade", "websocket")]));
        assert!(!wants(&[("connection", "upgrade")]));
    }

    #[test]
    fn upgrade__should_not_lead_to_unchecked_http() {
        for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0"] {
            assert!(!wants(&[("connection", "upgrade"), ("upgrade", protocol)]), "{protocol}");
        }
    }
}
