//! Stands in front of a registry and fails as asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

/// Pieces in which slow bodies come.
const PIECE: usize = 16 << 10;
const TOKEN: &str = "a-token-of-the-registry";

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every answer begins so late.
    Late(Duration),
    /// Every answer is this one, perhaps with `Retry-After`.
    Status(u16, Option<u32>),
    /// Every body of more bytes ends in its middle.
    Cut(usize),
    /// So many bytes come in a second.
    Slow(usize),
    /// Manifests are other ones than their digest names.
    Lies,
    /// It wants a name and a password.
    Basic(&'static str, &'static str),
    /// It wants a token, for which it wants a name and a password.
    Token(&'static str, &'static str),
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// A node's Docker.
    Docker,
    /// The coordinator, or whoever else is not Docker.
    Coordinator,
}

/// The running one; ends with this value.
#[derive(Debug)]
pub struct Faults {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    behind: String,
    state: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    faults: BTreeMap<Caller, Fault>,
    requests: BTreeMap<Caller, usize>,
    /// How many blobs of each repository are under way to Docker now.
    under_way: BTreeMap<String, usize>,
    /// The most repositories of which some were under way at once.
    most: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Faults {
    pub(super) async fn start(address: &str, behind: &str) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            behind: behind.to_owned(),
            state: Mutex::default(),
        });
        let listener = TcpListener::bind(address).await?;
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // It ends with the suite.
            drop(axum::serve(listener, routes).await);
        });
        Ok(Self { shared, task })
    }

    /// From now on this happens to everybody.
    pub fn set(&self, fault: &Fault) {
        for caller in [Caller::Docker, Caller::Coordinator] {
            self.set_for(caller, fault.clone());
        }
    }

    /// From now on this happens to one.
    pub fn set_for(&self, caller: Caller, fault: Fault) {
        self.shared.lock().faults.insert(caller, fault);
    }

    /// How often one has asked.
    pub fn requests(&self, caller: Caller) -> usize {
        self.shared.lock().requests.get(&caller).copied().unwrap_or_default()
    }

    /// Of how many repositories blobs were under way to Docker at once, at most.
    pub fn most_at_once(&self) -> usize {
        self.shared.lock().most
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let agent = request.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    let caller = if agent.is_some_and(|agent| agent.starts_with("docker/")) {
        Caller::Docker
    } else {
        Caller::Coordinator
    };
    let fault = {
        let mut seen = shared.lock();
        *seen.requests.entry(caller).or_default() += 1;
        seen.faults.get(&caller).cloned().unwrap_or(Fault::None)
    };
    match &fault {
        Fault::Late(delay) => sleep(*delay).await,
        Fault::Status(status, retry_after) => return refusal(*status, *retry_after),
        Fault::Basic(name, password) if !shows(&request, &basic(name, password)) => {
            return challenge("Basic realm=\"tests\"");
        }
        Fault::Token(name, password) if request.uri.path() == "/token" => {
            return if shows(&request, &basic(name, password)) {
                format!("{{\"token\":\"{TOKEN}\"}}").into_response()
            } else {
                challenge("Basic realm=\"tests\"")
            };
        }
        Fault::Token(..) if !shows(&request, &format!("Bearer {TOKEN}")) => {
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"tests\"", super::HOST);
            return challenge(&realm);
        }
        _ => {}
    }
    forward(&shared, caller, &fault, &request)
        .await
        .unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, error.to_string()).into_response())
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

fn shows(request: &Parts, wanted: &str) -> bool {
    let shown = request.headers.get(header::AUTHORIZATION);
    shown.is_some_and(|shown| shown.as_bytes() == wanted.as_bytes())
}

fn challenge(text: &str) -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, text.to_owned())], "").into_response()
}

fn refusal(status: u16, retry_after: Option<u32>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = match status {
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "DENIED",
        StatusCode::NOT_FOUND => "MANIFEST_UNKNOWN",
        StatusCode::TOO_MANY_REQUESTS => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"as asked\"}}]}}");
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

async fn forward(shared: &Arc<Shared>, caller: Caller, fault: &Fault, request: &Parts) -> reqwest::Result<Response> {
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut asked = shared
        .http
        .request(request.method.clone(), format!("http://{}{path}", shared.behind));
    for name in [header::ACCEPT, header::RANGE] {
        for value in request.headers.get_all(&name) {
            asked = asked.header(&name, value);
        }
    }
    let mut upstream = asked.send().await?;
    let mut answer = Response::builder().status(upstream.status());
    let hop_by_hop = BTreeSet::from(["connection", "transfer-encoding", "date"]);
    for (name, value) in upstream.headers() {
        let is_wrong = *fault == Fault::Lies && name == header::CONTENT_LENGTH;
        if !is_wrong && !hop_by_hop.contains(name.as_str()) {
            answer = answer.header(name, value);
        }
    }
    let is_manifest = path.contains("/manifests/");
    let is_head = request.method == axum::http::Method::HEAD;
    let body = match fault {
        _ if is_head => Body::empty(),
        Fault::Lies if is_manifest => {
            let mut bytes = upstream.bytes().await?.to_vec();
            bytes.push(b'\n');
            Body::from(bytes)
        }
        _ => {
            let blobs = path.split_once("/blobs/").filter(|_| caller == Caller::Docker);
            let guard = blobs.map(|(repository, _)| UnderWay::begin(shared, repository));
            let mut bytes = Vec::new();
            let limit = match fault {
                Fault::Cut(limit) => *limit,
                _ => usize::MAX,
            };
            let mut is_cut = false;
            while let Some(chunk) = upstream.chunk().await? {
                bytes.extend_from_slice(&chunk);
            }
            if bytes.len() > limit {
                bytes.truncate(limit);
                is_cut = true;
            }
            let rate = match fault {
                Fault::Slow(rate) => Some(*rate),
                _ => None,
            };
            Body::from_stream(pieces(Bytes::from(bytes), rate, is_cut, guard))
        }
    };
    Ok(answer.body(body).unwrap_or_default())
}

/// A body in pieces, perhaps slowly, perhaps with a broken end.
fn pieces(
    bytes: Bytes,
    rate: Option<usize>,
    is_cut: bool,
    guard: Option<UnderWay>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let parts: Vec<Bytes> = (0..bytes.len().div_ceil(PIECE))
        .map(|index| bytes.slice(index * PIECE..bytes.len().min((index + 1) * PIECE)))
        .collect();
    let end = is_cut.then(|| Err(io::Error::from(io::ErrorKind::ConnectionReset)));
    stream::iter(parts).map(Ok).chain(stream::iter(end)).then(move |part| {
        let (_held, pause) = (&guard, rate.map(|rate| Duration::from_secs_f64(PIECE as f64 / rate as f64)));
        async move {
            if let Some(pause) = pause {
                sleep(pause).await;
            }
            part
        }
    })
}

/// Counts a blob while it is under way.
struct UnderWay {
    shared: Arc<Shared>,
    repository: String,
}

impl UnderWay {
    fn begin(shared: &Arc<Shared>, repository: &str) -> Self {
        let mut seen = shared.lock();
        *seen.under_way.entry(repository.to_owned()).or_default() += 1;
        seen.most = seen.most.max(seen.under_way.len());
        Self {
            shared: Arc::clone(shared),
            repository: repository.to_owned(),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut seen = self.shared.lock();
        if let Some(count) = seen.under_way.get_mut(&self.repository) {
            *count -= 1;
            if *count == 0 {
                seen.under_way.remove(&self.repository);
            }
        }
    }
}
