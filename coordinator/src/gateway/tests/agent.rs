//! A small agent: an HTTP server with the habits that a gateway must not spoil.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// Wakes the writer of events; counts what was written.
type Ticks = Arc<(Notify, AtomicUsize)>;

pub(super) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new()
        .route("/show", any(show))
        .route("/show/{*rest}", any(show))
        .route("/events", get(events))
        .route("/tick", get(tick))
        .route("/echo", get(echo))
        .route("/hello-and-close", get(hello_and_close))
        .route("/count", any(count))
        .route("/give/{size}", get(give))
        .route("/silent", get(std::future::pending::<()>))
        .route("/endless", get(endless))
        .with_state(Ticks::default());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

/// Makes the agent write its next event.
pub(super) async fn next_event(agent: SocketAddr) {
    use tokio::io::AsyncReadExt as _;
    let mut stream = TcpStream::connect(agent).await.unwrap();
    stream
        .write_all(b"GET /tick HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
}

/// The request as it came, one header a line.
async fn show(request: Request) -> Response {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("set-cookie", "own=1; Domain=localhost; Path=/"),
        ("set-cookie", "crabshack_gateway=planted"),
        ("connection", "X-Hop"),
        ("x-hop", "1"),
    ] {
        headers.append(name, value.parse().unwrap());
    }
    (headers, text).into_response()
}

async fn events(State(ticks): State<Ticks>) -> Response {
    let stream = futures_util::stream::unfold(ticks, |ticks| async move {
        ticks.0.notified().await;
        let number = ticks.1.fetch_add(1, Ordering::Relaxed);
        Some((Ok::<_, std::convert::Infallible>(format!("data: {number}\n\n")), ticks))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

async fn tick(State(ticks): State<Ticks>) {
    ticks.0.notify_one();
}

fn switch(request: &Request) -> Response {
    let protocol = request.headers()[header::UPGRADE].clone();
    let headers = [(header::CONNECTION, "Upgrade".parse().unwrap()), (header::UPGRADE, protocol)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn echo(mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        tokio::io::copy(&mut reader, &mut writer).await
    });
    switch(&request)
}

async fn hello_and_close(mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move { TokioIo::new(upgrade.await.unwrap()).write_all(b"hello").await });
    switch(&request)
}

/// How many bytes came, and how they were framed.
async fn count(request: Request) -> String {
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let mut body = request.into_body().into_data_stream();
    let mut size = 0;
    while let Some(Ok(bytes)) = body.next().await {
        size += bytes.len();
    }
    format!("{size} {}", if chunked { "chunked" } else { "length" })
}

async fn give(Path(size): Path<usize>) -> Bytes {
    vec![7; size].into()
}

async fn endless() -> Body {
    let chunk = Bytes::from_static(&[7; 4096]);
    Body::from_stream(futures_util::stream::repeat_with(move || {
        Ok::<_, std::convert::Infallible>(chunk.clone())
    }))
}
