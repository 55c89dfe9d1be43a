use axum::http::{Method, StatusCode};
use crabshack_shared::{
    agent_api::v1::{Desired, Phase},
    ids::{InstanceId, NodeId},
};
use serde_json::json;

use crate::testing::{TestApp, create_body, instance_report};

/// An instance that was deleted; its node has let go of it.
async fn retired(test: &TestApp, node: &NodeId, name: &str) -> InstanceId {
    test.ask(Method::POST, "/instances", create_body(name).to_string()).await;
    test.reconcile().await;
    let id = test.record(name).id;
    test.report(node, vec![instance_report(&test.record(name), Phase::Ready)])
        .await;
    test.ask(Method::DELETE, &format!("/instances/{name}"), "").await;
    let deleted = test.app.store.reading().unwrap().instance(id).unwrap().unwrap();
    test.report(node, vec![instance_report(&deleted, Phase::Deleted)]).await;
    test.reconcile().await;
    assert!(test.app.store.reading().unwrap().retired(id).unwrap().is_some());
    id
}

#[tokio::test]
async fn deleted__should_be_listed_with_their_times_and_nothing_secret() {
    let test = TestApp::new();
    let node = test.node().await;
    let id = retired(&test, &node, "one").await;
    assert_eq!(test.json(Method::GET, "/instances", "").await.1, json!({"instances": []}));
    let (_, list) = test.json(Method::GET, "/instances?deleted=true", "").await;
    let one = &list["instances"][0];
    assert_eq!((&one["instance_id"], &one["name"]), (&json!(id), &json!("one")));
    assert_eq!((&one["status"], &one["phase"]), (&json!("stopped"), &json!("deleted")));
    let time = |key: &str| one[key].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert_eq!(time("purge_at") - time("deleted_at"), chrono::TimeDelta::days(7));
    let token = test
        .app
        .store
        .secrets(&test.app.store.reading().unwrap().retired(id).unwrap().unwrap());
    assert!(!list.to_string().contains(token.unwrap().token.expose()));
}

#[tokio::test]
async fn undelete__should_give_the_same_instance_back() {
    let test = TestApp::new();
    let node = test.node().await;
    let id = retired(&test, &node, "one").await;
    let before = test.app.store.reading().unwrap().retired(id).unwrap().unwrap();
    let response = test.ask(Method::POST, &format!("/instances/{id}/undelete"), "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let record = test.record("one");
    assert_eq!((record.id, &record.assignment), (id, &Some(node)));
    assert_eq!((record.desired, record.ssh_port), (Desired::Running, before.ssh_port));
    assert!(record.generation > before.generation);
    assert_eq!(record.sealed, before.sealed);
    assert_eq!(
        test.json(Method::GET, "/instances?deleted=true", "").await.1,
        json!({"instances": []})
    );
    // The reconciler has nothing to do about it.
    test.reconcile().await;
    assert_eq!(test.record("one").desired, Desired::Running);
}

#[tokio::test]
async fn undelete__should_refuse_a_taken_name_what_does_not_fit_and_what_is_not_deleted() {
    let test = TestApp::new();
    let node = test.node().await;
    let id = retired(&test, &node, "one").await;
    let path = format!("/instances/{id}/undelete");
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    let (status, problem) = test.json(Method::POST, &path, "").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("name_taken")));
    for name in ["Bad_Name", "api", &InstanceId::random().to_string()] {
        let (status, _) = test.json(Method::POST, &path, json!({"name": name}).to_string()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
    }
    for name in ["two", "three", "four"] {
        assert_eq!(
            test.ask(Method::POST, "/instances", create_body(name).to_string())
                .await
                .status(),
            200
        );
    }
    test.reconcile().await;
    let (status, problem) = test.json(Method::POST, &path, r#"{"name": "five"}"#).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("no_capacity")));
    test.ask(Method::DELETE, "/instances/four?purge=true", "").await;
    let gone = test.app.store.reading().unwrap().instances().unwrap();
    let gone = gone.iter().find(|record| !record.is_living()).unwrap();
    test.report(&node, vec![instance_report(gone, Phase::Deleted)]).await;
    test.reconcile().await;
    assert_eq!(test.ask(Method::POST, &path, r#"{"name": "five"}"#).await.status(), 200);
    assert_eq!(test.record("five").id, id);

    let (status, problem) = test.json(Method::POST, &path, "").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("conflict")));
    for unknown in [InstanceId::random().to_string(), "five".to_owned()] {
        let (status, _) = test.json(Method::POST, &format!("/instances/{unknown}/undelete"), "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{unknown}");
    }
}

#[tokio::test]
async fn undelete__should_also_stop_a_deletion_that_is_under_way() {
    let test = TestApp::new();
    let node = test.node().await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    test.reconcile().await;
    let id = test.record("one").id;
    test.ask(Method::DELETE, "/instances/one", "").await;
    let deleting = test.app.store.reading().unwrap().instance(id).unwrap().unwrap();
    assert_eq!(
        test.json(Method::GET, "/instances?deleted=true", "").await.1["instances"][0]["phase"],
        "stopping"
    );
    assert_eq!(
        test.ask(Method::POST, &format!("/instances/{id}/undelete"), "")
            .await
            .status(),
        200
    );
    // The node's answer to the deletion comes late.
    test.report(&node, vec![instance_report(&deleting, Phase::Deleted)]).await;
    test.reconcile().await;
    assert_eq!(test.record("one").id, id);
}

#[tokio::test]
async fn purge__should_work_by_id_and_wait_for_the_node() {
    let test = TestApp::new();
    let node = test.node().await;
    let id = retired(&test, &node, "one").await;
    // Without purge it is as good as gone, and nobody else's name leads to it.
    assert_eq!(
        test.json(Method::DELETE, &format!("/instances/{id}"), "").await.0,
        StatusCode::NOT_FOUND
    );
    let response = test.ask(Method::DELETE, &format!("/instances/{id}?purge=true"), "").await;
    assert_eq!(response.status(), StatusCode::OK);
    let purging = test.app.store.reading().unwrap().instance(id).unwrap().unwrap();
    assert_eq!(purging.desired, Desired::Deleted { purge: true });
    let orders = crate::agents::orders::orders_of(&test.app, &node, 1).unwrap().unwrap();
    assert_eq!((orders.instances[0].id, orders.instances[0].desired), (id, purging.desired));
    test.reconcile().await;
    assert!(
        test.app.store.reading().unwrap().instance(id).unwrap().is_some(),
        "its node is away"
    );
    let (status, problem) = test.json(Method::POST, &format!("/instances/{id}/undelete"), "").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("conflict")));
    test.report(&node, vec![instance_report(&purging, Phase::Deleted)]).await;
    test.reconcile().await;
    let reading = test.app.store.reading().unwrap();
    assert!(reading.instance(id).unwrap().is_none() && reading.retired(id).unwrap().is_none());
    assert!(reading.events(id).unwrap().is_empty());
}

#[tokio::test]
async fn reconciler__should_purge_by_itself_when_the_grace_is_over() {
    let test = TestApp::with(&["--delete-grace", "0s"]);
    let node = test.node().await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    test.reconcile().await;
    let id = test.record("one").id;
    test.ask(Method::DELETE, "/instances/one", "").await;
    let deleted = test.app.store.reading().unwrap().instance(id).unwrap().unwrap();
    test.report(&node, vec![instance_report(&deleted, Phase::Deleted)]).await;
    for _ in 0..2 {
        test.reconcile().await;
    }
    let purging = test.app.store.reading().unwrap().instance(id).unwrap().unwrap();
    assert_eq!(purging.desired, Desired::Deleted { purge: true });
    assert!(purging.generation > deleted.generation);
    // It holds no memory any more: 8 GiB are free.
    for name in ["a", "b", "c", "d"] {
        assert_eq!(
            test.ask(Method::POST, "/instances", create_body(name).to_string())
                .await
                .status(),
            200
        );
    }
    test.report(&node, vec![instance_report(&purging, Phase::Deleted)]).await;
    test.reconcile().await;
    assert!(test.app.store.reading().unwrap().instance(id).unwrap().is_none());
}
