mod moves;

use std::time::{Duration, SystemTime};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use crabshack_shared::{
    agent_api::v1::{Desired, EnrolAnswer, Orders, Phase, RenewAnswer},
    generation::Generation,
    ids::{InstanceId, NodeId},
    secret::Secret,
    serve::PeerCertificates,
    tls::{Identity, JoinToken, Role},
};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::identity::certified;
use crate::{
    router,
    testing::{TestApp, create_body, facts, instance_report},
};

fn request() -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn shown(pem: &str) -> PeerCertificates {
    PeerCertificates([CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()].into())
}

async fn ask(test: &TestApp, method: Method, path: &str, certificate: Option<&str>, body: String) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
    if let Some(pem) = certificate {
        request.extensions_mut().insert(shown(pem));
    }
    let response = router::agents(&test.app).oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn join_secret(test: &TestApp) -> Secret {
    let (_, answer) = test.json(Method::POST, "/nodes/join-token", "").await;
    let token = Secret::from(answer["token"].as_str().unwrap().to_owned());
    JoinToken::decode(&token).unwrap().secret
}

async fn enrol(test: &TestApp) -> EnrolAnswer {
    let body = json!({"join_secret": join_secret(test).await.expose(), "request": request(), "hostname": "machine"});
    let (status, answer) = ask(test, Method::POST, "/v1/enrol", None, body.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_value(answer).unwrap()
}

fn report(highest: Generation, instances: Value) -> String {
    json!({"highest_generation": highest, "facts": facts(), "instances": instances}).to_string()
}

#[tokio::test]
async fn enrol__should_work_once_per_token() {
    let test = TestApp::new();
    let secret = join_secret(&test).await;
    let body = |request: &str| json!({"join_secret": secret.expose(), "request": request, "hostname": "machine"}).to_string();
    // A bad request does not use the token up.
    assert_eq!(
        ask(&test, Method::POST, "/v1/enrol", None, body("nonsense")).await.0,
        StatusCode::BAD_REQUEST
    );
    let (status, answer) = ask(&test, Method::POST, "/v1/enrol", None, body(&request())).await;
    assert_eq!(status, StatusCode::OK);
    let answer: EnrolAnswer = serde_json::from_value(answer).unwrap();
    let certificate = CertificateDer::from_pem_slice(answer.certificate.as_bytes()).unwrap();
    assert_eq!(Identity::of(&certificate).unwrap().role, Role::Node(answer.node.clone()));
    let (status, problem) = ask(&test, Method::POST, "/v1/enrol", None, body(&request())).await;
    assert_eq!((status, &problem["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
    let (_, nodes) = test.json(Method::GET, "/nodes", "").await;
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    assert_eq!(nodes[0]["id"], answer.node.as_str());
}

#[tokio::test]
async fn agents__should_need_a_nodes_certificate() {
    let test = TestApp::new();
    for (method, path) in [
        (Method::GET, "/v1/orders"),
        (Method::POST, "/v1/report"),
        (Method::POST, "/v1/renew"),
    ] {
        assert_eq!(
            ask(&test, method, path, None, String::new()).await.0,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    assert_eq!(
        ask(&test, Method::GET, "/v1/none", None, String::new()).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn expired_certificate__should_be_good_for_renewal_only() {
    let test = TestApp::new();
    let enrolled = enrol(&test).await;
    let info = shown(&enrolled.certificate);
    let late = SystemTime::now() + Duration::from_secs(100 * 24 * 3600);
    let refused = certified(Some(&info), late, false).unwrap_err();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(refused.to_string().contains("renewed"), "{refused}");
    assert_eq!(certified(Some(&info), late, true).unwrap(), enrolled.node);

    let renew = json!({"request": request()}).to_string();
    let (status, answer) = ask(&test, Method::POST, "/v1/renew", Some(&enrolled.certificate), renew).await;
    assert_eq!(status, StatusCode::OK);
    let renewed: RenewAnswer = serde_json::from_value(answer).unwrap();
    let node = certified(Some(&shown(&renewed.certificate)), SystemTime::now(), false).unwrap();
    assert_eq!(node, enrolled.node, "the certificate says who is renewed, not the request");
}

#[tokio::test]
async fn revoked_node__should_be_refused_everywhere() {
    let test = TestApp::new();
    let enrolled = enrol(&test).await;
    let pem = enrolled.certificate.as_str();
    assert_eq!(
        ask(&test, Method::GET, "/v1/orders", Some(pem), String::new()).await.0,
        StatusCode::OK
    );
    let path = format!("/nodes/{}", enrolled.node);
    assert_eq!(test.json(Method::DELETE, &path, "").await.0, StatusCode::NO_CONTENT);
    let renew = json!({"request": request()}).to_string();
    for (method, route, body) in [
        (Method::GET, "/v1/orders", String::new()),
        (Method::POST, "/v1/report", report(Generation::default(), json!([]))),
        (Method::POST, "/v1/renew", renew),
    ] {
        assert_eq!(
            ask(&test, method, route, Some(pem), body).await.0,
            StatusCode::FORBIDDEN,
            "{route}"
        );
    }
    assert_eq!(test.json(Method::GET, "/nodes", "").await.1, json!([]));
}

#[tokio::test]
async fn revoke__should_refuse_while_instances_are_there() {
    let test = TestApp::new();
    let node = test.node().await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    test.reconcile().await;
    let path = format!("/nodes/{node}");
    let (status, problem) = test.json(Method::DELETE, &path, "").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("conflict")));
    assert_eq!(
        test.json(Method::DELETE, &format!("{path}?force=true"), "").await.0,
        StatusCode::NO_CONTENT
    );
    let (_, nodes) = test.json(Method::GET, "/nodes", "").await;
    assert_eq!(nodes[0]["status"], "revoked");
    // What was on it can be let go of without its word.
    test.ask(Method::DELETE, "/instances/one?purge=true", "").await;
    test.reconcile().await;
    assert!(test.app.store.reading().unwrap().instances().unwrap().is_empty());
}

#[tokio::test]
async fn orders__should_hold_only_the_nodes_own_instances() {
    let test = TestApp::new();
    let (mine, other) = (enrol(&test).await, enrol(&test).await);
    for node in [&mine, &other] {
        test.report(&node.node, Vec::new()).await;
    }
    for name in ["one", "two"] {
        test.ask(Method::POST, "/instances", create_body(name).to_string()).await;
    }
    test.reconcile().await;
    let (_, orders) = ask(&test, Method::GET, "/v1/orders", Some(&mine.certificate), String::new()).await;
    let orders: Orders = serde_json::from_value(orders).unwrap();
    assert_eq!(orders.instances.len(), 1);
    let order = &orders.instances[0];
    let record = test.record(order.name.as_str());
    assert_eq!(record.assignment.as_ref(), Some(&mine.node));
    assert_eq!(order.desired, Desired::Running);
    assert_eq!(order.spec.public_origin, format!("http://{}.localhost:3000", order.name));
    assert_eq!(order.secrets.token.expose().len(), 64);

    // The other node cannot say anything about it.
    test.report(&other.node, vec![instance_report(&record, Phase::Stopped)]).await;
    assert_eq!(test.app.store.reading().unwrap().observation(record.id).unwrap(), None);
}

#[tokio::test]
async fn orders__should_wait_for_a_change_and_wake_by_it() {
    let test = TestApp::new();
    let node = enrol(&test).await;
    let poll = async |revision: u64| {
        let path = format!("/v1/orders?revision={revision}");
        ask(&test, Method::GET, &path, Some(&node.certificate), String::new()).await
    };
    let (_, first) = poll(0).await;
    let revision = first["revision"].as_u64().unwrap();
    let mut waiting = Box::pin(poll(revision));
    assert!(waiting.as_mut().now_or_never().is_none());
    test.app.registry.orders_changed(&node.node);
    let (status, second) = waiting.await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(second["revision"].as_u64(), Some(revision + 1));

    let mut waiting = Box::pin(poll(revision + 1));
    assert!(waiting.as_mut().now_or_never().is_none());
    test.app.shutdown.token.cancel();
    assert_eq!(waiting.await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn unknown_node__should_be_taken_in_and_nothing_ordered_of_it() {
    let old = TestApp::new();
    let node = NodeId::random();
    let certificate = old.app.ca.issue_node(&node, &request()).unwrap().pem;
    let stranger = InstanceId::random();
    let seen = Generation { epoch: 3, counter: 9 };
    let body = report(seen, json!([{"id": stranger, "generation": seen, "phase": "ready"}]));
    assert_eq!(
        ask(&old, Method::POST, "/v1/report", Some(&certificate), body.clone())
            .await
            .0,
        StatusCode::OK
    );
    assert_eq!(
        ask(&old, Method::POST, "/v1/report", Some(&certificate), body).await.0,
        StatusCode::OK
    );

    let (_, nodes) = old.json(Method::GET, "/nodes", "").await;
    assert_eq!(nodes[0]["id"], node.as_str());
    assert_eq!(nodes[0]["status"], "active");
    assert_eq!(nodes[0]["unknown_instances"], json!([stranger]));
    let (_, orders) = ask(&old, Method::GET, "/v1/orders", Some(&certificate), String::new()).await;
    assert_eq!(orders["instances"], json!([]));
    // What is wished from now on outranks what the node has seen.
    old.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    assert!(old.record("one").generation > seen);
}

#[tokio::test]
async fn report__should_write_only_what_changed_and_survive_a_restart() {
    let test = TestApp::new();
    let node = test.node().await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    test.reconcile().await;
    let record = test.record("one");
    let ready = instance_report(&record, Phase::Ready);
    test.report(&node, vec![ready.clone()]).await;
    let mut changes = test.app.events.follow(record.id);
    test.report(&node, vec![ready]).await;
    assert!(changes.next().now_or_never().is_none(), "a repeated report changes nothing");
    // A report that leaves it out says nothing about it.
    test.report(&node, Vec::new()).await;

    let test = test.restarted();
    let (_, details) = test.json(Method::GET, "/instances/one", "").await;
    assert_eq!(details["status"], "running");
    let target = test.app.gateway_target(&record.name).await.unwrap().unwrap();
    assert!(target.ready);
    assert_eq!(target.node.unwrap().address, "127.0.0.1:7702");
    assert_eq!(target.origin, "http://one.localhost:3000");
    assert!(test.app.gateway_target(&"none".parse().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn report__should_take_over_what_an_older_dump_had_not_placed() {
    let test = TestApp::new();
    let node = test.node().await;
    test.ask(Method::POST, "/instances", create_body("one").to_string()).await;
    let record = test.record("one");
    assert_eq!(record.assignment, None);
    test.report(&node, vec![instance_report(&record, Phase::Ready)]).await;
    assert_eq!(test.record("one").assignment, Some(node));
}

#[tokio::test]
async fn unknown_instances__should_keep_their_ssh_ports() {
    let test = TestApp::new();
    let node = test.node().await;
    // Given out before the node told who has it.
    test.ask(Method::POST, "/instances", create_body("early").to_string()).await;
    test.reconcile().await;
    let early = test.record("early");
    let mut orphan = instance_report(&early, Phase::Ready);
    (orphan.id, orphan.ssh_port) = (InstanceId::random(), Some(early.ssh_port));
    let revision = *test.app.registry.follow(&node).borrow();
    test.report(&node, vec![orphan.clone()]).await;
    let moved = test.record("early");
    assert_ne!(moved.ssh_port, early.ssh_port);
    assert!(moved.generation > early.generation && moved.wish_generation == early.wish_generation);
    assert_ne!(*test.app.registry.follow(&node).borrow(), revision, "the node hears of it");
    let history = test.app.store.reading().unwrap().events(early.id).unwrap();
    assert!(history.last().unwrap().reason.as_ref().unwrap().contains("another SSH port"));

    // The same again changes nothing; who comes later gets another one at once.
    test.report(&node, vec![orphan]).await;
    assert_eq!(test.record("early").generation, moved.generation);
    test.ask(Method::POST, "/instances", create_body("late").to_string()).await;
    assert!(![early.ssh_port, moved.ssh_port].contains(&test.record("late").ssh_port));
}
