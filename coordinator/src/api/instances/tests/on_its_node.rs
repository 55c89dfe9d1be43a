//! What is fetched from the node of an instance: statistics and logs, over a real data plane.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::{Method, StatusCode},
    routing::get,
};
use bytes::Bytes;
use crabshack_shared::{
    agent_api::v1::{Logs, NodeFacts, Phase, Report, Stats},
    generation::Generation,
    ids::NodeId,
    serve::{HeadLimits, Refusals, Server, ServerTls},
    tls,
};
use futures_util::{StreamExt as _, stream};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::data;
use crate::{
    agents::report,
    testing::{TestApp, create_body, facts, instance_report},
};

const SOON: Duration = Duration::from_secs(5);

/// A node's data plane: it tells fixed statistics, and as log what the test sends.
#[derive(Clone)]
struct Plane {
    log: Arc<Mutex<Option<mpsc::Receiver<&'static str>>>>,
}

async fn logs(State(plane): State<Plane>, Query(query): Query<Vec<(String, String)>>) -> axum::response::Response {
    use axum::response::IntoResponse as _;
    if !query.iter().any(|(key, value)| key == "follow" && value == "true") {
        let logs = format!("{query:?}");
        return Json(Logs { logs }).into_response();
    }
    let log = plane.log.lock().unwrap().take().unwrap();
    let text = stream::unfold(log, |mut log| async {
        let part = log.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(part)), log))
    });
    Body::from_stream(text).into_response()
}

async fn stats() -> Json<Stats> {
    Json(Stats {
        cpu_percent: 50.0,
        memory_used: 1 << 30,
        memory_limit: 2 << 30,
        pids: 7,
        ..Stats::default()
    })
}

/// A coordinator with an instance that is ready on such a node, and the writer of the node's log.
async fn started() -> (TestApp, NodeId, mpsc::Sender<&'static str>) {
    let test = TestApp::new();
    let node = test.node().await;
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let issued = test.app.ca.issue_node(&node, &request.pem().unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = tls::server_requiring_clients(test.app.ca.authority(), chain, key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let data_plane = listener.local_addr().unwrap().to_string();
    let (writer, log) = mpsc::channel(1);
    let plane = Plane {
        log: Arc::new(Mutex::new(Some(log))),
    };
    let routes = Router::new()
        .route("/v1/instances/{id}/logs", get(logs))
        .route("/v1/instances/{id}/stats", get(stats))
        .with_state(plane);
    let limits = HeadLimits {
        first: Duration::from_secs(10),
        next: Duration::from_secs(10),
    };
    let server = Server::new(listener.into(), limits, Arc::new(Refusals::new("node"))).with_tls(ServerTls::new(Arc::new(config)));
    tokio::spawn(server.serve(routes, CancellationToken::new()));

    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    test.reconcile().await;
    let report = Report {
        highest_generation: Generation::default(),
        facts: NodeFacts { data_plane, ..facts() },
        instances: vec![instance_report(&test.record("one"), Phase::Ready)],
        events: Vec::new(),
        findings: Vec::new(),
    };
    report::take_in(Arc::clone(&test.app), node.clone(), report).await.unwrap();
    (test, node, writer)
}

#[tokio::test]
async fn stats__should_come_from_the_node_while_it_runs() {
    let (test, node, _) = started().await;
    let (status, answer) = test.json(Method::GET, "/instances/one/stats", "").await;
    assert_eq!((status, &answer["name"]), (StatusCode::OK, &json!("one")));
    assert_eq!(answer["stats"]["CPUPerc"], "50.00%");
    assert_eq!(answer["stats"]["MemUsage"], "1GiB / 2GiB");
    assert_eq!(answer["stats"]["pids"], 7);

    test.ask(Method::POST, "/instances/one/stop", "").await;
    test.report(&node, vec![instance_report(&test.record("one"), Phase::Stopped)])
        .await;
    let (_, answer) = test.json(Method::GET, "/instances/one/stats", "").await;
    assert_eq!(answer, json!({"name": "one", "stats": {}}));
    for path in ["stats", "events", "logs?follow=true"] {
        let (status, _) = test.json(Method::GET, &format!("/instances/none/{path}"), "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn followed_logs__should_be_an_event_per_line_and_hang_up_with_the_reader() {
    let (test, _, writer) = started().await;
    let response = test.ask(Method::GET, "/instances/one/logs?tail=3&follow=true", "").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body().into_data_stream();
    writer.send("one\ntwo\nthr").await.unwrap();
    writer.send("ee\n").await.unwrap();
    for line in ["one", "two", "three"] {
        let event = timeout(SOON, body.next()).await.unwrap().unwrap().unwrap();
        let event = String::from_utf8(event.to_vec()).unwrap();
        assert!(event.starts_with("event: log\n"), "{event}");
        assert_eq!(data(&event), json!({"line": line}));
    }
    drop(body);
    timeout(SOON, writer.closed())
        .await
        .expect("the node sees that nobody reads any more");
}

#[tokio::test]
async fn followed_logs__should_end_when_the_instance_is_deleted() {
    let (test, _, writer) = started().await;
    let response = test.ask(Method::GET, "/instances/one/logs?follow=true", "").await;
    let mut body = response.into_body().into_data_stream();
    writer.send("last words").await.unwrap();
    test.ask(Method::DELETE, "/instances/one", "").await;
    let event = timeout(SOON, body.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(data(std::str::from_utf8(&event).unwrap()), json!({"line": "last words"}));
    assert!(timeout(SOON, body.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn logs__should_be_one_answer_without_follow() {
    let (test, _, _writer) = started().await;
    let (_, answer) = test.json(Method::GET, "/instances/one/logs?tail=3", "").await;
    assert_eq!(answer["name"], "one");
    assert!(answer["logs"].as_str().unwrap().contains("\"3\""), "{answer}");
}
