//! Which disks take new instances.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use crabshack_shared::{
    agent_api::v1::{NodeFacts, Pressure, Report, StorageFacts, StorageKind},
    generation::Generation,
    ids::NodeId,
    resources::Bytes,
};
use serde_json::json;

use crate::{
    agents::report,
    testing::{TestApp, create_body, facts},
};

async fn tell(test: &TestApp, node: &NodeId, enforced: bool, pressure: Pressure) {
    let storage = StorageFacts {
        kind: if enforced {
            StorageKind::Btrfs
        } else {
            StorageKind::Directory
        },
        total: Bytes::gibibytes(15),
        used: Bytes::gibibytes(1),
        promised: None,
        promised_limit_enforced: enforced,
    };
    let facts = NodeFacts {
        storage: Some(storage),
        pressure,
        ..facts()
    };
    let report = Report {
        highest_generation: Generation::default(),
        facts,
        instances: Vec::new(),
        events: Vec::new(),
        findings: Vec::new(),
    };
    report::take_in(Arc::clone(&test.app), node.clone(), report).await.unwrap();
}

#[tokio::test]
async fn create__should_not_promise_more_disk_than_is_kept_within_its_bounds() {
    let test = TestApp::new();
    let node = test.node().await;
    tell(&test, &node, true, Pressure::None).await;
    let create = async |name: &str| test.json(Method::POST, "/instances", create_body(name).to_string()).await;
    assert_eq!(
        test.ask(Method::POST, "/instances", create_body("one").to_string())
            .await
            .status(),
        200
    );
    let (status, problem) = create("two").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("no_capacity")));
    assert!(problem["error"].as_str().unwrap().contains("storage"), "{problem}");
    test.reconcile().await;
    let (_, shown) = test.json(Method::GET, &format!("/nodes/{node}"), "").await;
    assert_eq!(shown["storage"]["kind"], "btrfs");
    assert_eq!(shown["reserved_storage"], json!(10_u64 << 30));

    // A plain folder keeps no bounds, so there is nothing to promise.
    tell(&test, &node, false, Pressure::None).await;
    assert_eq!(
        test.ask(Method::POST, "/instances", create_body("two").to_string())
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn create__should_leave_a_node_alone_whose_disks_are_nearly_full() {
    let test = TestApp::new();
    let node = test.node().await;
    for pressure in [Pressure::Creates, Pressure::Pulls] {
        tell(&test, &node, false, pressure).await;
        let (status, problem) = test.json(Method::POST, "/instances", create_body("one").to_string()).await;
        assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("no_capacity")));
        assert!(problem["error"].as_str().unwrap().contains("nearly full"), "{problem}");
        let (_, shown) = test.json(Method::GET, &format!("/nodes/{node}"), "").await;
        assert_eq!(shown["pressure"], json!(pressure));
    }
}
