//! The gateway's routes.

use std::{
    convert::Infallible,
    fs,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        DefaultBodyLimit, Query, Request, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, StatusCode, header::SET_COOKIE},
    response::{
        AppendHeaders, IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{any, get, post},
};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{configure, disk, flood, hostile, misbehave, probe, report, settings::Settings};

const CHUNK: usize = 64 << 10;

#[derive(Clone)]
struct Stub {
    settings: Arc<Settings>,
    began: Instant,
}

/// Every route.
pub(crate) fn router(settings: &Settings) -> Router {
    let stub = Stub {
        settings: Arc::new(settings.clone()),
        began: Instant::now(),
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/api/health", get(healthz))
        .route(
            "/env",
            get(async |State(stub): State<Stub>| Json(report::all(&stub.settings))),
        )
        .route("/managed", get(managed))
        .route("/headers", any(echo))
        .route("/echo", any(echo))
        .route("/echo/{*rest}", any(echo))
        .route("/sse", get(sse))
        .route("/ws", any(websocket))
        .route("/cookies", get(cookies))
        .route("/big", get(big))
        .route("/sink", post(sink))
        .route("/flood", get(flooded))
        .route("/eat", get(eat))
        .route("/write", post(write))
        .route("/hostile", post(spoil))
        .route(
            "/connect",
            get(async |Query(request): Query<probe::Connect>| Json(probe::connect(request).await)),
        )
        .route(
            "/resolve",
            get(async |Query(request): Query<probe::Resolve>| Json(probe::resolve(request).await)),
        )
        .route("/", get("stub agent\n"))
        .layer(DefaultBodyLimit::disable())
        .with_state(stub)
}

async fn healthz(State(stub): State<Stub>) -> StatusCode {
    let delay = stub.settings.milliseconds("STUB_START_DELAY_MS").unwrap_or_default();
    if stub.began.elapsed() >= delay {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn managed(State(stub): State<Stub>) -> Result<Json<Value>, StatusCode> {
    let bytes = fs::read(configure::path(&stub.settings)).map_err(|_| StatusCode::NOT_FOUND)?;
    serde_json::from_slice(&bytes)
        .map(Json)
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// The request as it arrived: `{method, target, headers: [[name, value]...], body_length}`.
async fn echo(request: Request) -> Json<Value> {
    let (head, body) = request.into_parts();
    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| {
            [
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ]
        })
        .collect();
    let length = count(body).await;
    Json(json!({"method": head.method.as_str(), "target": head.uri.to_string(), "headers": headers, "body_length": length}))
}

async fn sink(headers: HeaderMap, body: Body) -> Json<Value> {
    let announced = headers
        .get("content-length")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    Json(json!({"body_length": count(body).await, "content_length": announced}))
}

async fn count(body: Body) -> usize {
    body.into_data_stream()
        .fold(0, async |sum, chunk| sum + chunk.map_or(0, |chunk| chunk.len()))
        .await
}

#[derive(Deserialize)]
struct Count {
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    ms: Option<u64>,
}

/// `n` events (10), one per `ms` (100), each with its number.
async fn sse(Query(count): Query<Count>) -> Response {
    let pause = Duration::from_millis(count.ms.unwrap_or(100));
    let last = count.n.unwrap_or(10);
    let events = stream::unfold(0, move |number| async move {
        if number == last {
            return None;
        }
        if number > 0 {
            tokio::time::sleep(pause).await;
        }
        Some((Ok::<_, Infallible>(Event::default().data(number.to_string())), number + 1))
    });
    Sse::new(events).into_response()
}

/// Echo without a size limit.
async fn websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .max_message_size(usize::MAX)
        .max_frame_size(usize::MAX)
        .on_upgrade(echo_messages)
}

async fn echo_messages(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let answer = matches!(message, Message::Text(_) | Message::Binary(_));
        if answer && socket.send(message).await.is_err() {
            return;
        }
    }
}

#[derive(Deserialize)]
struct CookieName {
    #[serde(default)]
    name: Option<String>,
}

/// Cookies that claim a whole domain, as a careless agent would set them; one by any `name`.
async fn cookies(Query(asked): Query<CookieName>) -> impl IntoResponse {
    let named = format!("{}=from-agent; Path=/", asked.name.as_deref().unwrap_or("third"));
    AppendHeaders([
        (SET_COOKIE, "first=1; Domain=localhost; Path=/; HttpOnly".to_owned()),
        (SET_COOKIE, "second=2; Path=/; domain=.localhost; SameSite=Lax".to_owned()),
        (SET_COOKIE, named),
    ])
}

#[derive(Deserialize)]
struct Size {
    bytes: usize,
}

/// That many bytes, streamed.
async fn big(Query(size): Query<Size>) -> Body {
    static ZEROS: [u8; CHUNK] = [0; CHUNK];
    let chunks = stream::unfold(size.bytes, |left| async move {
        let length = left.min(CHUNK);
        (length > 0).then(|| (Ok::<_, Infallible>(Bytes::from_static(&ZEROS[..length])), left - length))
    });
    Body::from_stream(chunks)
}

async fn flooded() -> Json<Value> {
    Json(json!({"sent": flood::SENT.load(Ordering::Relaxed), "refused": flood::REFUSED.load(Ordering::Relaxed)}))
}

#[derive(Deserialize)]
struct Appetite {
    mb: u64,
}

/// Uses memory and keeps it until the end of the process.
async fn eat(Query(appetite): Query<Appetite>) -> Json<Value> {
    Json(json!({"eaten": misbehave::eat(appetite.mb).leak().len()}))
}

/// Writes to the disk until it is done or refused.
async fn write(State(stub): State<Stub>, Query(request): Query<disk::Write>) -> Json<Value> {
    let home = stub.settings.home();
    let written = tokio::task::spawn_blocking(move || disk::write(&home, &request)).await;
    Json(written.unwrap_or_else(|error| json!({"error": error.to_string()})))
}

/// Fills the home with what no daemon should trip over.
async fn spoil(State(stub): State<Stub>, Query(request): Query<hostile::Request>) -> Json<Value> {
    let home = stub.settings.home();
    let made = tokio::task::spawn_blocking(move || hostile::make(&home, &request)).await;
    Json(made.unwrap_or_else(|error| json!({"error": error.to_string()})))
}
