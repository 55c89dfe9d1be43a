//! What is refused before anything runs.

use crabshack_shared::agent_api::v1::Phase;
use http::Method;
use serde_json::json;

use crate::testing::{TestApp, create_body, instance_report};

/// A coordinator with one instance that is ready on its node.
async fn with_instance() -> TestApp {
    let test = TestApp::new();
    let node = test.node().await;
    drop(test.ask(Method::POST, "/instances", create_body("one").to_string()).await);
    test.reconcile().await;
    let report = instance_report(&test.record("one"), Phase::Ready);
    test.report(&node, vec![report]).await;
    test
}

#[tokio::test]
async fn exec__should_answer_a_ticket_for_a_running_instance_only() {
    let test = with_instance().await;
    let path = "/instances/one/exec";
    let (status, ticket) = test.json(Method::POST, path, "").await;
    assert_eq!(status, 201, "{ticket}");
    let secret = ticket["ticket"].as_str().unwrap();
    assert_eq!(ticket["path"], format!("{path}?ticket={secret}"));
    assert_eq!(ticket["expires_in"], 30);

    let bad = json!({"user": "root"}).to_string();
    let (status, problem) = test.json(Method::POST, path, bad).await;
    assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_request")));
    let (status, _) = test.json(Method::POST, "/instances/nobody/exec", "").await;
    assert_eq!(status, 404);

    drop(test.ask(Method::POST, "/instances/one/stop", "").await);
    let (status, problem) = test.json(Method::POST, path, "").await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("stopped")));
}

#[tokio::test]
async fn exec__should_be_refused_while_nothing_runs() {
    let test = TestApp::new();
    test.node().await;
    drop(test.ask(Method::POST, "/instances", create_body("one").to_string()).await);
    let (status, problem) = test.json(Method::POST, "/instances/one/exec", "").await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("not_ready")), "{problem}");
}

#[tokio::test]
async fn websocket__should_be_the_only_thing_at_its_place() {
    let test = with_instance().await;
    let (status, problem) = test.json(Method::GET, "/instances/one/exec?ticket=x", "").await;
    assert_eq!(status, 400, "{problem}");
    assert!(problem["error"].as_str().unwrap().contains("WebSocket"));
    let (status, _) = test.json(Method::PUT, "/instances/one/exec", "").await;
    assert_eq!(status, 405);
}
