mod capacity;
mod input;
mod on_its_node;

use axum::http::{Method, Request, StatusCode};
use crabshack_shared::agent_api::v1::{Desired, Phase};
use futures_util::{FutureExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::testing::{TestApp, create_body, instance_report};

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBJ0zzJXjXwRzCmuoBRuPoxGbgLAhE1UZ2u7Q1RbGm0f test";

/// Reads a stream of events as far as it goes without waiting.
async fn frames(body: &mut axum::body::BodyDataStream) -> Vec<String> {
    let mut frames = Vec::new();
    while let Some(Some(chunk)) = body.next().now_or_never() {
        frames.push(String::from_utf8(chunk.unwrap().to_vec()).unwrap());
    }
    frames
}

fn data(frame: &str) -> Value {
    let line = frame.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    serde_json::from_str(line).unwrap()
}

fn nothing_created(test: &TestApp) {
    assert!(test.app.store.reading().unwrap().instances().unwrap().is_empty());
}

#[tokio::test]
async fn create__should_stream_what_happens_in_the_documented_bytes() {
    let test = TestApp::new();
    let node = test.node().await;
    let response = test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let mut body = response.into_body().into_data_stream();
    let first = frames(&mut body).await;
    assert_eq!(
        first,
        [
            "event: created\ndata: {\"event\":\"created\",\"stage\":\"created\",\"message\":\"Created\",\"name\":\"one\"}\n\n",
            "event: pending\ndata: {\"event\":\"pending\",\"stage\":\"pending\",\"message\":\"Waiting for scheduling...\",\"name\":\"one\"}\n\n",
        ]
    );

    test.reconcile().await;
    let record = test.record("one");
    assert_eq!(record.assignment.as_ref(), Some(&node));
    for phase in [Phase::Creating, Phase::Starting, Phase::Starting, Phase::Ready] {
        test.report(&node, vec![instance_report(&record, phase)]).await;
        let now = frames(&mut body).await;
        if phase == Phase::Ready {
            let last = data(now.last().unwrap());
            assert_eq!(
                (&last["stage"], &last["event"], &last["name"]),
                (&json!("ready"), &json!("ready"), &json!("one"))
            );
        }
    }
    assert!(body.next().await.is_none(), "the stream ends after `ready`");

    let (_, details) = test.json(Method::GET, "/instances/one", "").await;
    assert_eq!(details["status"], "running");
    assert_eq!(details["phase"], "ready");
    assert_eq!(details["gateway_address"], "10.201.0.10");
    assert_eq!(details["image"], "docker.io/owner/stub:1");
    assert_eq!(details["mem_limit"], "2g");
    assert_eq!(details["node_id"], node.as_str());
    assert_eq!(details["ssh_command"], "ssh -p 19001 agent@127.0.0.1");
    let token = details["token"].as_str().unwrap();
    assert_eq!(token.len(), 64);
    assert_eq!(details["instance_url"], format!("http://one.localhost:3000/?token={token}"));
}

#[tokio::test]
async fn api__should_need_the_secret_everywhere_but_for_health_and_metrics() {
    let test = TestApp::new();
    for (method, path) in [
        ("GET", "/instances"),
        ("POST", "/instances"),
        ("GET", "/instances/x"),
        ("DELETE", "/instances/x"),
        ("POST", "/instances/x/stop"),
        ("GET", "/instances/x/ssh"),
        ("GET", "/instances/x/logs"),
        ("GET", "/instances/x/logs?follow=true"),
        ("GET", "/instances/x/stats"),
        ("GET", "/instances/x/events"),
        ("GET", "/nodes"),
        ("POST", "/nodes/join-token"),
        ("GET", "/nodes/node-000000000001"),
        ("DELETE", "/nodes/node-000000000001"),
        ("GET", "/gateway/x/y"),
    ] {
        for credential in [None, Some("Bearer wrong"), Some("Basic 0123456789abcdef0123456789abcdef")] {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(credential) = credential {
                request = request.header("authorization", credential);
            }
            let request = request.body(axum::body::Body::empty()).unwrap();
            let response = test.router().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        }
    }
    for path in ["/health", "/metrics"] {
        let request = Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
        let response = test.router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(
            text.contains(r#""status":"ok""#) || text.contains("crabshack_instances"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn api__should_answer_unknown_things_with_problems() {
    let test = TestApp::new();
    for (method, path, status, code) in [
        (Method::GET, "/nothing", StatusCode::NOT_FOUND, "not_found"),
        (
            Method::PUT,
            "/instances",
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
        ),
        (Method::GET, "/instances/none", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/instances/..%2Fetc", StatusCode::NOT_FOUND, "not_found"),
        (Method::DELETE, "/instances/none", StatusCode::NOT_FOUND, "not_found"),
        (Method::POST, "/instances/none/start", StatusCode::NOT_FOUND, "not_found"),
        (Method::DELETE, "/nodes/node-000000000001", StatusCode::NOT_FOUND, "not_found"),
        (
            Method::DELETE,
            "/instances/none?purge=perhaps",
            StatusCode::BAD_REQUEST,
            "invalid_request",
        ),
        (
            Method::GET,
            "/instances/none/logs?tail=0",
            StatusCode::BAD_REQUEST,
            "invalid_request",
        ),
    ] {
        let (answered, problem) = test.json(method, path, "").await;
        assert_eq!(answered, status, "{path}");
        assert_eq!(problem["code"], code, "{path}");
        assert!(problem["error"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn list__should_be_an_object_newest_first_without_secrets() {
    let test = TestApp::new();
    test.node().await;
    assert_eq!(test.json(Method::GET, "/instances", "").await.1, json!({"instances": []}));
    for name in ["first", "second"] {
        test.ask(Method::POST, "/instances", create_body(name).to_string()).await;
    }
    let (_, list) = test.json(Method::GET, "/instances", "").await;
    let names: Vec<_> = list["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["second", "first"]);
    assert_eq!(list["instances"][0]["status"], "creating");
    assert!(list["instances"][0].get("token").is_none());
    let token = test.app.store.secrets(&test.record("first")).unwrap().token;
    assert!(!list.to_string().contains(token.expose()));
}

#[tokio::test]
async fn stop_start_delete__should_follow_the_last_wish() {
    let test = TestApp::new();
    let node = test.node().await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    test.reconcile().await;
    test.report(&node, vec![instance_report(&test.record("one"), Phase::Ready)])
        .await;

    // A start of what runs is ready at once, and writes nothing.
    let before = test.record("one").generation;
    let (mut body, events) = asked(&test, "/instances/one/start").await;
    assert_eq!(events, ["ready"]);
    assert!(body.next().await.is_none());
    assert_eq!(test.record("one").generation, before);

    // A start that arrives while a stop runs wins; the stop does not claim to have stopped.
    let (mut stopping, events) = asked(&test, "/instances/one/stop").await;
    assert_eq!(events, ["pending"]);
    assert_eq!(test.record("one").desired, Desired::Stopped);
    assert_eq!(test.json(Method::GET, "/instances/one", "").await.1["phase"], "stopping");
    let (mut starting, _) = asked(&test, "/instances/one/start").await;
    assert_eq!(stages(&frames(&mut stopping).await), ["superseded"]);
    assert!(stopping.next().await.is_none());
    test.report(&node, vec![instance_report(&test.record("one"), Phase::Ready)])
        .await;
    assert_eq!(stages(&frames(&mut starting).await), ["ready"]);

    let (mut stopping, _) = asked(&test, "/instances/one/stop").await;
    test.report(&node, vec![instance_report(&test.record("one"), Phase::Stopped)])
        .await;
    assert_eq!(stages(&frames(&mut stopping).await), ["stopped"]);
    assert_eq!(test.json(Method::GET, "/instances/one", "").await.1["status"], "stopped");
    assert_eq!(
        test.json(Method::GET, "/instances/one/logs", "").await.1,
        json!({"name": "one", "logs": ""})
    );

    let record = test.record("one");
    let response = test.ask(Method::DELETE, "/instances/one?purge=true", "").await;
    let mut deleting = response.into_body().into_data_stream();
    assert_eq!(stages(&frames(&mut deleting).await), ["pending"]);
    assert_eq!(test.json(Method::GET, "/instances/one", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(test.json(Method::DELETE, "/instances/one", "").await.0, StatusCode::NOT_FOUND);
    let deleted = test.app.store.reading().unwrap().instance(record.id).unwrap().unwrap();
    test.report(&node, vec![instance_report(&deleted, Phase::Deleted)]).await;
    test.reconcile().await;
    let last = frames(&mut deleting).await;
    assert_eq!(
        data(&last[0]),
        json!({"event": "deleted", "stage": "deleted", "message": "Deleted", "name": "one", "purge": true})
    );
    nothing_created(&test);
}

#[tokio::test]
async fn restart__should_count_and_refuse_another_image() {
    let test = TestApp::new();
    test.node().await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    let before = test.record("one");
    let (status, problem) = test
        .json(Method::POST, "/instances/one/restart", r#"{"image": "other:2"}"#)
        .await;
    assert_eq!(
        (status, &problem["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    let (status, _) = test.json(Method::POST, "/instances/one/restart", "{").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(test.record("one").generation, before.generation);
    let same = r#"{"image": "docker.io/owner/stub:1", "user_id": "x"}"#;
    assert_eq!(test.ask(Method::POST, "/instances/one/restart", same).await.status(), 200);
    let record = test.record("one");
    assert_eq!(record.restarts, record.generation.rank());
    assert!(record.generation > before.generation);
}

#[tokio::test(start_paused = true)]
async fn stream__should_give_up_in_time_and_stay_alive_until_then() {
    let test = TestApp::new();
    test.node().await;
    let response = test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.matches(": keepalive\n\n").count() >= 10, "{text}");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("event: error\ndata: {"), "{last}");
    assert!(last.contains("Deploy timed out after 120s"), "{last}");
    // The work goes on.
    assert_eq!(test.record("one").desired, Desired::Running);
}

async fn asked(test: &TestApp, path: &str) -> (axum::body::BodyDataStream, Vec<String>) {
    let response = test.ask(Method::POST, path, "").await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body().into_data_stream();
    let events = stages(&frames(&mut body).await);
    (body, events)
}

fn stages(frames: &[String]) -> Vec<String> {
    frames
        .iter()
        .map(|frame| data(frame)["stage"].as_str().unwrap().to_owned())
        .collect()
}
