use axum::http::{Method, StatusCode};
use crabshack_shared::agent_api::v1::{OnDisconnect, Phase};
use serde_json::{Value, json};

use crate::testing::{TestApp, create_body, instance_report};

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBJ0zzJXjXwRzCmuoBRuPoxGbgLAhE1UZ2u7Q1RbGm0f test";

/// One instance that is ready on the only node.
async fn ready() -> (TestApp, crabshack_shared::ids::NodeId) {
    let test = TestApp::new();
    let node = test.node().await;
    let mut body = create_body("one");
    body["extra_env"] = json!({"KEPT": "1", "DROPPED": "2"});
    test.ask(Method::POST, "/instances", body.to_string()).await;
    test.reconcile().await;
    observe(&test, &node, false).await;
    (test, node)
}

async fn observe(test: &TestApp, node: &crabshack_shared::ids::NodeId, pending: bool) {
    let mut report = instance_report(&test.record("one"), Phase::Ready);
    report.pending_change = pending;
    test.report(node, vec![report]).await;
}

async fn patch(test: &TestApp, query: &str, body: Value) -> (StatusCode, Value) {
    test.json(Method::PATCH, &format!("/instances/one{query}"), body.to_string())
        .await
}

#[tokio::test]
async fn patch__should_change_what_is_live_without_waiting() {
    let (test, _) = ready().await;
    let before = test.record("one");
    let body = json!({
        "ssh_pubkey": ED25519, "mem_limit": "3g", "cpus": 2, "storage_size": "20g", "protected": true,
        "on_disconnect": {"action": "stop_after", "seconds": 600}, "nearai_api_key": null, "user_id": "ignored"
    });
    let (status, details) = patch(&test, "", body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{details}");
    assert_eq!((&details["mem_limit"], &details["cpus"]), (&json!("3g"), &json!("2")));
    assert_eq!(details["on_disconnect"], json!({"action": "stop_after", "seconds": 600}));
    assert_eq!(
        (&details["protected"], &details["pending_change"]),
        (&json!(true), &json!(false))
    );
    assert!(details["token"].is_string());
    let record = test.record("one");
    assert!(record.generation > before.generation);
    assert_eq!((record.spec_revision, record.restarts), (0, 0));
    assert_eq!(record.on_disconnect, OnDisconnect::StopAfter { seconds: 600 });
    // The same again is no wish, and neither is nothing.
    for same in [body, json!({}), json!({"mem_limit": null})] {
        assert_eq!(patch(&test, "", same).await.0, StatusCode::OK);
    }
    assert_eq!(test.record("one").generation, record.generation);
    // An empty key takes it away.
    assert_eq!(patch(&test, "", json!({"ssh_pubkey": ""})).await.1["ssh_pubkey"], Value::Null);
}

#[tokio::test]
async fn patch__should_let_the_rest_wait_or_apply_it_now() {
    let (test, node) = ready().await;
    let body = json!({"extra_env": {"DROPPED": null, "NEW": "3", "ABSENT": null}, "nearai_api_url": "https://example.com/v2"});
    let (_, details) = patch(&test, "", body).await;
    assert_eq!(details["pending_change"], true, "its node has not seen it");
    let record = test.record("one");
    assert_eq!((record.spec_revision, record.restarts), (record.generation.rank(), 0));
    assert_eq!(record.spec_generation, record.generation);
    let environment = test.app.store.secrets(&record).unwrap().extra_env;
    let names: Vec<_> = environment.keys().map(String::as_str).collect();
    assert_eq!(names, ["KEPT", "NEW"]);

    observe(&test, &node, true).await;
    assert_eq!(test.json(Method::GET, "/instances/one", "").await.1["pending_change"], true);
    // What waits can be applied without another change.
    let (_, details) = patch(&test, "?apply=now", json!({})).await;
    assert_eq!(details["pending_change"], true, "until the node has done it");
    let first = test.record("one");
    assert_eq!(
        (first.spec_revision, first.restarts),
        (record.spec_revision, first.generation.rank())
    );
    observe(&test, &node, false).await;
    assert_eq!(test.json(Method::GET, "/instances/one", "").await.1["pending_change"], false);
    patch(&test, "?apply=now", json!({"nearai_api_key": "sk-other"})).await;
    let record = test.record("one");
    let rank = record.generation.rank();
    assert_eq!((record.spec_revision, record.restarts), (rank, rank));
    // What is live needs no restart.
    observe(&test, &node, false).await;
    patch(&test, "?apply=now", json!({"cpus": "0.5"})).await;
    assert_eq!(test.record("one").restarts, rank);

    let events = test.app.store.reading().unwrap().events(record.id).unwrap();
    let reasons: Vec<_> = events.iter().filter_map(|event| event.reason.as_deref()).collect();
    assert_eq!(
        reasons,
        [
            "nearai_api_url, extra_env",
            "what waited is applied now",
            "nearai_api_key; applied now",
            "cpus"
        ]
    );
}

#[tokio::test]
async fn patch__should_refuse_what_create_refuses_and_change_nothing() {
    let (test, _) = ready().await;
    let before = test.record("one").generation;
    for (query, body, says) in [
        ("", json!({"mem_limit": "1k"}), "mem_limit"),
        ("", json!({"mem_limit": ""}), "mem_limit"),
        ("", json!({"cpus": "-1"}), "cpus"),
        ("", json!({"storage_size": "0"}), "storage_size"),
        ("", json!({"ssh_pubkey": "nonsense"}), "ssh_pubkey"),
        ("", json!({"nearai_api_url": "ftp://x"}), "nearai_api_url"),
        ("", json!({"nearai_api_key": ""}), "nearai_api_key"),
        ("", json!({"extra_env": {"PATH": "/x"}}), "set by the server"),
        ("", json!({"extra_env": {"SECRETS_MASTER_KEY": null}}), "set by the server"),
        ("", json!({"extra_env": {"A": "a\nb"}}), "one line"),
        ("", json!({"extra_env": []}), "does not fit"),
        ("", json!({"protected": "perhaps"}), "does not fit"),
        (
            "",
            json!({"on_disconnect": {"action": "stop_after", "seconds": 1}}),
            "seconds",
        ),
        ("", json!({"on_disconnect": {"action": "perhaps"}}), "does not fit"),
        ("", json!({"image": "other:2"}), "image cannot be changed"),
        ("", json!({"service_type": "ironclaw"}), "service_type cannot be changed"),
        ("?apply=tomorrow", json!({}), "apply"),
    ] {
        let (status, problem) = patch(&test, query, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(problem["error"].as_str().unwrap().contains(says), "{body}: {problem}");
    }
    let same = json!({"image": "docker.io/owner/stub:1", "service_type": "openclaw"});
    assert_eq!(patch(&test, "", same).await.0, StatusCode::OK);
    let many: serde_json::Map<_, _> = (0..255).map(|number| (format!("N{number}"), json!("x"))).collect();
    let (status, problem) = patch(&test, "", json!({"extra_env": many})).await;
    assert_eq!(
        (status, &problem["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    assert_eq!(test.record("one").generation, before);
    assert_eq!(
        test.json(Method::PATCH, "/instances/none", "{}").await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn patch__should_refuse_what_does_not_fit_on_its_node() {
    let (test, _) = ready().await;
    test.ask(Method::POST, "/instances", create_body("two").to_string()).await;
    test.reconcile().await;
    // 8 GiB, of which the other one reserves 2.
    for (body, code) in [
        (json!({"mem_limit": "7g"}), 409),
        (json!({"cpus": "64"}), 409),
        (json!({"mem_limit": "6g"}), 200),
    ] {
        let (status, answer) = patch(&test, "", body.clone()).await;
        assert_eq!(status, code, "{body}: {answer}");
        if code == 409 {
            assert_eq!(answer["code"], "no_capacity");
            assert!(
                answer["error"].as_str().unwrap().contains("its node does not have"),
                "{answer}"
            );
        }
    }
    // Less is always possible.
    assert_eq!(patch(&test, "", json!({"mem_limit": "1g"})).await.0, StatusCode::OK);
}

#[tokio::test]
async fn protected__should_refuse_deletion_and_say_how_to_lift_it() {
    let test = TestApp::new();
    test.node().await;
    let mut body = create_body("one");
    body["protected"] = json!(true);
    test.ask(Method::POST, "/instances", body.to_string()).await;
    for query in ["", "?purge=true"] {
        let (status, problem) = test.json(Method::DELETE, &format!("/instances/one{query}"), "").await;
        assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("conflict")));
        assert!(
            problem["error"].as_str().unwrap().contains("PATCH /instances/one"),
            "{problem}"
        );
    }
    patch(&test, "", json!({"protected": false})).await;
    assert_eq!(test.ask(Method::DELETE, "/instances/one", "").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn rotated_token__should_replace_the_old_one_everywhere() {
    let (test, _) = ready().await;
    let before = test.record("one");
    let old = test.app.store.secrets(&before).unwrap().token;
    let (status, rotated) = test.json(Method::POST, "/instances/one/token/rotate", "").await;
    assert_eq!(status, StatusCode::OK);
    let token = rotated["token"].as_str().unwrap();
    assert!(token.len() == 64 && token != old.expose());
    assert_eq!(rotated["instance_url"], format!("http://one.localhost:3000/?token={token}"));
    assert_eq!(rotated["pending_change"], true);
    let record = test.record("one");
    assert!(record.generation > before.generation && record.spec_revision == record.generation.rank());
    assert_eq!(test.json(Method::GET, "/instances/one", "").await.1["token"], token);
    let target = test.app.gateway_target(&record.name).await.unwrap().unwrap();
    assert_eq!(target.token.expose(), token);
    let events = test.app.store.reading().unwrap().events(record.id).unwrap();
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("token_rotated") && !text.contains(token), "{text}");
    let (status, _) = test.json(Method::POST, "/instances/none/token/rotate", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
