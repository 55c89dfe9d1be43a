use http::Method;
use serde_json::json;

use super::*;
use crate::testing::{LOCAL_IMAGE, TestApp, create_body};

#[tokio::test]
async fn images__should_hold_a_reference_once_whatever_its_spelling_and_type() {
    let app = TestApp::new();
    app.node().await;
    let add = |body: Value| app.json(Method::POST, "/images", body.to_string());
    let entry = json!({
        "ref": LOCAL_IMAGE, "label": "the stub", "service_type": "openclaw",
        "status": "allow-create", "preferred": 0, "note": null, "something": "else",
    });
    let (status, added) = add(entry.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{added}");
    for key in ["ref", "service_type", "status", "created_at", "digest"] {
        assert!(added[key].is_string(), "{key} in {added}");
    }
    let mut same = entry.clone();
    (same["ref"], same["service_type"]) = ("owner/stub:1".into(), "ironclaw".into());
    for body in [entry, same] {
        let (status, refused) = add(body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    }
    let (_, list) = app.json(Method::GET, "/images", "").await;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    let (status, resolved) = app.json(Method::POST, "/images/resolve-digests", "").await;
    assert_eq!(status, StatusCode::OK, "{resolved}");
    assert!(resolved["failed"].as_array().is_some_and(Vec::is_empty), "{resolved}");
    let path = "/images?ref=owner/stub:1";
    assert_eq!(app.json(Method::DELETE, path, "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(app.json(Method::DELETE, path, "").await.0, StatusCode::NOT_FOUND);
    let (_, list) = app.json(Method::GET, "/images", "").await;
    assert_eq!(list, json!([]));
}

#[tokio::test]
async fn images__should_be_the_only_ones_while_there_are_some() {
    let app = TestApp::new();
    app.node().await;
    let create = |name: &'static str| app.json(Method::POST, "/instances", create_body(name).to_string());
    let (status, added) = app
        .json(
            Method::POST,
            "/images",
            json!({"ref": LOCAL_IMAGE, "service_type": "ironclaw"}).to_string(),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{added}");
    let (status, refused) = create("one").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(refused["code"], "image_not_allowed", "{refused}");
    let text = refused["error"].as_str().unwrap_or_default();
    assert!(text.contains("service_type \"openclaw\" not supported by image"), "{text}");
    let (_, nothing) = app.json(Method::GET, "/instances", "").await;
    assert_eq!(nothing["instances"], json!([]));
}

#[test]
fn image__should_be_refused_when_it_is_not_of_the_form() {
    for (body, words) in [
        (json!({}), "ref, service_type"),
        (json!({"ref": "a:1"}), "service_type"),
        (json!({"ref": "a b", "service_type": "x"}), "ref:"),
        (json!({"ref": "a:1", "service_type": "x y"}), "service_type"),
        (json!({"ref": "a:1", "service_type": "x", "status": "\n"}), ""),
        (json!({"ref": "a:1", "service_type": "x", "preferred": "much"}), "preferred"),
    ] {
        let checked = check(serde_json::from_value(body.clone()).unwrap());
        match checked {
            Err(problem) => assert!(problem.to_string().contains(words), "{problem}"),
            Ok(record) => assert_eq!((words, record.status.as_str()), ("", ALLOW_CREATE), "{body}"),
        }
    }
}
