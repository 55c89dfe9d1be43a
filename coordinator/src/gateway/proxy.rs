//! Carries one request to its agent and the answer back, both streamed: what one side does not
//! read, the other is not asked to send. When the visitor hangs up, everything here is dropped, and
//! with it the connection to the agent.

use std::{
    error::Error,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody as _},
    extract::Request,
    response::Response,
};
use crabshack_shared::telemetry::Chain;
use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, SET_COOKIE, TRANSFER_ENCODING, UPGRADE},
    uri::PathAndQuery,
};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Error as ClientError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    Gateway, cookies, headers,
    refusal::Refusal,
    sessions::{EventStream, UntilEnd},
    tunnels::{self, Destination, Way},
    upgrade,
    upstream::Upstream,
};
use crate::{
    agents::connect::{self, ConnectError},
    app::{GatewayTarget, NodeDial},
};

/// How long an agent may stay silent before its answer begins, once the request has stopped moving.
/// Agents hold long polls and think for minutes. An answer that has begun has no limit.
const SILENCE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// A request that changes nothing is sent again when its connection breaks before an answer: a node agent
/// restarts within that. So often, and for so long after it was sent first.
const REPEATS: usize = 2;
const REPEAT_WITHIN: Duration = Duration::from_secs(10);

/// Which way a visitor came, with what its credentials are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// By the instance's host. Cookies belong to the agent, but for ours.
    Host {
        /// `Authorization` holds a credential of ours.
        is_bearer: bool,
    },
    /// By a path of the public API, whose host and credentials are not the agent's.
    Api,
}

/// Who asks for what.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) client: IpAddr,
    pub(super) door: Door,
    /// What is asked of the agent.
    pub(super) path: PathAndQuery,
}

impl Gateway {
    /// Forwards an admitted request to an instance that is ready.
    pub(super) async fn forward(&self, target: &GatewayTarget, visit: Visit, mut request: Request) -> Result<Response, Refusal> {
        let node = target.node.as_ref().ok_or(Refusal::Starting)?;
        // Whoever came through the API showed a credential of the API, which the token does not end.
        let session = match visit.door {
            Door::Host { .. } => self.sessions.enter(target.id, &target.token),
            Door::Api => CancellationToken::new(),
        };
        let visitor = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let protocols = upgrade::wanted(&parts);
        if protocols.is_some() && !body.is_end_stream() {
            return Err(Refusal::Malformed("a request for an upgrade has no body"));
        }
        let upstream = Upstream::of(&target.service_type, target.profile, &target.agent_token);
        let uri = destination(target, node, &upstream).uri(visit.path).map_err(|error| {
            error!(instance = %target.id, "gateway: no URI for the agent: {}", Chain(&error));
            Refusal::Internal
        })?;
        let moved = Arc::new(AtomicU64::new(0));
        let mut onward = Request::new(counted(body, &moved));
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = uri;
        *onward.version_mut() = Version::HTTP_11;
        *onward.headers_mut() = parts.headers;
        prepare(onward.headers_mut(), visit.door);
        headers::introduce(onward.headers_mut(), visit.client, &target.origin, &upstream);
        let is_upgrade = protocols.is_some();
        if let Some(protocols) = protocols {
            upgrade::announce(onward.headers_mut(), protocols);
        }
        frame(&mut onward);

        let (mut answer, way) = session
            .run_until_cancelled(self.ask(node, onward, &moved))
            .await
            .ok_or(Refusal::Unauthorized { had_token: true })?
            .map_err(|failure| failure.refusal(target))?;
        let agreed = answer.headers().get(UPGRADE).cloned();
        if answer.headers().contains_key(TRANSFER_ENCODING) {
            // The length that was not believed here must not be believed further on.
            answer.headers_mut().remove(CONTENT_LENGTH);
        }
        headers::strip_hop_by_hop(answer.headers_mut());
        protect(answer.headers_mut(), visit.door);
        if upgrade::agreed(&answer) {
            let protocol = agreed.filter(|_| is_upgrade).ok_or(Refusal::BrokenOff)?;
            let ends = upgrade::Ends {
                session: session.clone(),
                stop: way.stop.clone(),
            };
            upgrade::join(visitor, &mut answer, &protocol, ends, &self.shutdown);
            upgrade::announce(answer.headers_mut(), protocol);
        }
        let (mut parts, body) = answer.into_parts();
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let events = EventStream::of(&parts.headers, way.stop);
        Ok(Response::from_parts(parts, Body::new(UntilEnd::new(body, session, events))))
    }

    /// Asks, and asks again if that is safe and the connection broke.
    async fn ask(&self, node: &NodeDial, mut request: Request, moved: &AtomicU64) -> Result<(Response<Incoming>, Way), Failure> {
        let began = Instant::now();
        let mut repeats = REPEATS;
        loop {
            let again = if repeats > 0 { copy(&request) } else { None };
            let way = self.tunnels.to(&node.id);
            match (until_it_answers(&way, request, moved).await, again) {
                (Ok(answer), _) => return Ok((answer, way)),
                (Err(failure), Some(again)) if failure.broke() && began.elapsed() < REPEAT_WITHIN => {
                    request = again;
                    repeats -= 1;
                }
                (Err(failure), _) => return Err(failure),
            }
        }
    }
}

/// A request that may be sent twice.
fn copy(request: &Request) -> Option<Request> {
    let changes_nothing = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if !changes_nothing || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn destination(target: &GatewayTarget, node: &NodeDial, upstream: &Upstream) -> Destination {
    Destination {
        instance: target.id,
        port: upstream.port,
        node: node.clone(),
    }
}

/// What of a request's headers is for the agent.
fn prepare(headers: &mut HeaderMap, door: Door) {
    headers::strip_hop_by_hop(headers);
    headers::strip_claims(headers);
    match door {
        Door::Host { is_bearer } => {
            cookies::strip_ours(headers);
            if is_bearer {
                headers.remove(AUTHORIZATION);
            }
        }
        Door::Api => {
            headers.remove(AUTHORIZATION);
            headers.remove(COOKIE);
        }
    }
}

/// What of an answer's headers is for the visitor. On the API's host an agent has no cookies.
fn protect(headers: &mut HeaderMap, door: Door) {
    match door {
        Door::Host { .. } => cookies::confine(headers),
        Door::Api => {
            headers.remove(SET_COOKIE);
        }
    }
}

/// A body whose length nobody said is sent in chunks, whatever the method.
fn frame(onward: &mut http::Request<Body>) {
    if !onward.body().is_end_stream() && !onward.headers().contains_key(CONTENT_LENGTH) {
        onward
            .headers_mut()
            .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// The body, with a count of what has gone through.
fn counted(body: Body, moved: &Arc<AtomicU64>) -> Body {
    if body.is_end_stream() {
        return Body::empty();
    }
    let moved = moved.clone();
    Body::new(body.map_frame(move |frame| {
        moved.fetch_add(1, Ordering::Relaxed);
        frame
    }))
}

enum Failure {
    Silent,
    Client(ClientError),
}

impl Failure {
    /// There was a connection to the agent, and it ended without an answer.
    fn broke(&self) -> bool {
        match self {
            Self::Silent => false,
            Self::Client(error) => connect_error(error).is_none() && connect::broke(error),
        }
    }

    /// Logged here: the visitor only learns the outcome.
    fn refusal(self, target: &GatewayTarget) -> Refusal {
        let error = match self {
            Self::Silent => return Refusal::TooSlow,
            Self::Client(error) => error,
        };
        warn!(instance = %target.id, "gateway: a request was not answered: {}", Chain(&error));
        match connect_error(&error) {
            Some(error) => Refusal::from(error),
            None => Refusal::BrokenOff,
        }
    }
}

/// Waits for the head of the answer, as long as the request still moves.
async fn until_it_answers(way: &Way, request: Request, moved: &AtomicU64) -> Result<Response<Incoming>, Failure> {
    let mut answer = way.send(request);
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(SILENCE_LIMIT, &mut answer).await {
            Ok(answer) => return answer.map_err(Failure::Client),
            Err(_) if moved.load(Ordering::Relaxed) == before => return Err(Failure::Silent),
            Err(_) => {}
        }
    }
}

fn connect_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a ConnectError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tunnels::DialError::Connect(error)) = error.downcast_ref() {
            return Some(error);
        }
        next = error.source();
    }
    None
}
