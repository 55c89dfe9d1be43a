//! What nodes are told and believed when an instance moves, and how their events are kept.

use std::time::Duration;

use axum::http::Method;
use crabshack_shared::{
    agent_api::v1::{Desired, InstanceOrder, NodeEvent, Phase, ReportAnswer},
    ids::{InstanceId, NodeId},
};
use serde_json::json;

use super::{ask, enrol};
use crate::{
    agents::orders,
    store::InstanceRecord,
    testing::{TestApp, create_body, facts, instance_report},
};

/// A lease of a minute and its margin are over.
const LONG: Duration = Duration::from_secs(600);

/// An instance that is ready on its node, and a second node that has just come.
async fn running(on_disconnect: serde_json::Value) -> (TestApp, NodeId, NodeId) {
    let test = TestApp::new();
    let first = test.node().await;
    let mut body = create_body("one");
    body["on_disconnect"] = on_disconnect;
    test.ask(Method::POST, "/instances", body.to_string()).await;
    test.reconcile().await;
    test.report(&first, vec![instance_report(&test.record("one"), Phase::Ready)])
        .await;
    let second = test.node().await;
    (test, first, second)
}

fn order(test: &TestApp, node: &NodeId, id: InstanceId) -> Option<InstanceOrder> {
    let orders = orders::orders_of(&test.app, node, 1).unwrap().unwrap();
    orders.instances.into_iter().find(|order| order.id == id)
}

fn any(test: &TestApp, id: InstanceId) -> Option<InstanceRecord> {
    test.app.store.reading().unwrap().instance(id).unwrap()
}

#[tokio::test]
async fn leased_instance__should_move_when_its_node_is_silent_for_longer() {
    let (test, first, second) = running(json!({"action": "stop_after", "seconds": 60})).await;
    let before = test.record("one");
    test.app.registry.silent_for(&first, Duration::from_secs(100));
    test.reconcile().await;
    assert_eq!(
        test.record("one").assignment.as_ref(),
        Some(&first),
        "it may still be running there"
    );

    test.app.registry.silent_for(&first, LONG);
    test.reconcile().await;
    let moved = test.record("one");
    assert_eq!(moved.assignment.as_ref(), Some(&second));
    assert!(moved.generation > before.generation);
    assert_eq!(order(&test, &second, moved.id).unwrap().desired, Desired::Running);

    // The first one comes back: it must let go of its copy, and is not believed any more.
    let elsewhere = order(&test, &first, moved.id).unwrap();
    assert_eq!(
        (elsewhere.desired, elsewhere.generation),
        (Desired::Elsewhere, moved.generation)
    );
    test.report(&first, vec![instance_report(&before, Phase::Ready)]).await;
    assert_eq!(test.app.store.reading().unwrap().observation(moved.id).unwrap(), None);
    test.report(&second, vec![instance_report(&moved, Phase::Ready)]).await;
    test.report(&first, vec![instance_report(&moved, Phase::Deleted)]).await;
    let (_, details) = test.json(Method::GET, "/instances/one", "").await;
    assert_eq!((&details["status"], &details["node_id"]), (&json!("running"), &json!(second)));
    let (_, events) = test.json(Method::GET, "/instances/one/events", "").await;
    let last = events["events"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["event"], &last["origin"]), (&json!("moved"), &json!("coordinator")));
    assert!(last["reason"].as_str().unwrap().contains(first.as_str()));
}

#[tokio::test]
async fn kept_instance__should_never_move_by_itself() {
    for on_disconnect in [json!(null), json!({"action": "keep"})] {
        let (test, first, _) = running(on_disconnect).await;
        test.app.registry.silent_for(&first, Duration::from_secs(7 * 24 * 3600));
        test.reconcile().await;
        assert_eq!(test.record("one").assignment.as_ref(), Some(&first));
    }
}

#[tokio::test]
async fn changed_lease__should_count_only_when_its_node_has_seen_it() {
    let (test, first, second) = running(json!(null)).await;
    test.app.registry.silent_for(&first, LONG);
    let change = json!({"on_disconnect": {"action": "stop_after", "seconds": 60}});
    let (status, details) = test.json(Method::PATCH, "/instances/one", change.to_string()).await;
    assert_eq!(
        (status, &details["on_disconnect"]),
        (200.try_into().unwrap(), &change["on_disconnect"])
    );
    test.reconcile().await;
    assert_eq!(
        test.record("one").assignment.as_ref(),
        Some(&first),
        "it lives by its old lease"
    );

    test.report(&first, vec![instance_report(&test.record("one"), Phase::Ready)])
        .await;
    test.app.registry.silent_for(&first, LONG);
    test.reconcile().await;
    assert_eq!(test.record("one").assignment.as_ref(), Some(&second));
}

#[tokio::test]
async fn moved_instance__should_be_purged_wherever_it_was() {
    let (test, first, second) = running(json!({"action": "stop_after", "seconds": 60})).await;
    test.app.registry.silent_for(&first, LONG);
    test.reconcile().await;
    test.ask(Method::DELETE, "/instances/one?purge=true", "").await;
    let id = test.app.store.reading().unwrap().instances().unwrap()[0].id;
    let purge = Desired::Deleted { purge: true };
    assert_eq!(order(&test, &first, id).unwrap().desired, purge);
    assert_eq!(order(&test, &second, id).unwrap().desired, purge);

    let record = any(&test, id).unwrap();
    test.report(&second, vec![instance_report(&record, Phase::Deleted)]).await;
    test.reconcile().await;
    assert!(any(&test, id).is_some(), "the first one still has a disk of it");
    test.report(&first, vec![instance_report(&record, Phase::Deleted)]).await;
    test.reconcile().await;
    assert!(any(&test, id).is_none());
}

#[tokio::test]
async fn moved_and_deleted_instance__should_not_go_on_where_it_was() {
    let (test, first, second) = running(json!({"action": "stop_after", "seconds": 60})).await;
    test.app.registry.silent_for(&first, LONG);
    test.reconcile().await;
    test.ask(Method::DELETE, "/instances/one", "").await;
    let id = test.app.store.reading().unwrap().instances().unwrap()[0].id;
    let record = any(&test, id).unwrap();
    test.report(&second, vec![instance_report(&record, Phase::Deleted)]).await;
    test.reconcile().await;
    assert!(any(&test, id).is_none(), "only its disk is left");
    assert_eq!(order(&test, &second, id), None);
    assert_eq!(order(&test, &first, id).unwrap().desired, Desired::Elsewhere);
}

#[tokio::test]
async fn report__should_acknowledge_events_and_tell_findings() {
    let test = TestApp::new();
    let node = enrol(&test).await;
    test.report(&node.node, Vec::new()).await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    test.reconcile().await;
    let id = test.record("one").id;
    let event = |sequence, phase| NodeEvent {
        sequence,
        at: "2026-01-02T03:04:05Z".parse().unwrap(),
        instance: id,
        phase,
        reason: Some("because".to_owned()),
    };
    let report = |events: Vec<NodeEvent>| {
        let finding = json!({"subject": "egress ruleset", "instance": null, "text": "a rule was missing", "repaired": true});
        json!({
            "highest_generation": {"epoch": 0, "counter": 0}, "facts": facts(), "instances": [],
            "events": events, "findings": [finding]
        })
        .to_string()
    };
    let kept = async |events| {
        let (_, answer) = ask(&test, Method::POST, "/v1/report", Some(&node.certificate), report(events)).await;
        serde_json::from_value::<ReportAnswer>(answer).unwrap().events_kept
    };
    assert_eq!(kept(Vec::new()).await, 0);
    assert_eq!(kept(vec![event(1, Phase::Creating), event(2, Phase::Ready)]).await, 2);
    assert_eq!(kept(vec![event(1, Phase::Creating), event(2, Phase::Ready)]).await, 2);
    assert_eq!(kept(Vec::new()).await, 2);

    let (_, answer) = test.json(Method::GET, "/instances/one/events", "").await;
    let events = answer["events"].as_array().unwrap();
    assert_eq!(events.len(), 3);
    assert_eq!(
        (&events[0]["event"], &events[0]["origin"]),
        (&json!("created"), &json!("api"))
    );
    assert_eq!(events[0]["generation"], json!(test.record("one").generation.to_string()));
    assert_eq!(
        events[2],
        json!({"at": "2026-01-02T03:04:05Z", "phase": "ready", "reason": "because", "origin": "node"})
    );

    let (status, details) = test.json(Method::GET, &format!("/nodes/{}", node.node), "").await;
    assert_eq!(status, 200);
    assert_eq!(details["id"], json!(node.node));
    assert_eq!(details["status"], "active");
    assert_eq!(details["findings"][0]["subject"], "egress ruleset");
    assert_eq!(
        details["instances"],
        json!([{"id": id, "name": "one", "phase": "creating", "pending_change": false}])
    );
    assert_eq!(details["reserved_storage"], json!(10_u64 << 30));
    assert_eq!((&details["pressure"], &details["storage"]), (&json!("none"), &json!(null)));
    for path in ["/nodes/node-00000000000f", "/nodes/nonsense"] {
        assert_eq!(test.json(Method::GET, path, "").await.0, 404, "{path}");
    }
}
