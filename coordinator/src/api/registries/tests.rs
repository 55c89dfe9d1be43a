use http::Method;
use serde_json::json;

use super::*;
use crate::{agents::orders, testing::TestApp};

#[tokio::test]
async fn registry__should_reach_the_nodes_and_never_show_its_password() {
    let app = TestApp::new();
    let node = app.node().await;
    let body = json!({"username": "puller", "password": "a-secret-of-theirs", "plain_http": null});
    let (status, shown) = app
        .json(Method::PUT, "/registries/Registry.example:5000", body.to_string())
        .await;
    assert_eq!(status, StatusCode::OK, "{shown}");
    let (_, list) = app.json(Method::GET, "/registries", "").await;
    assert_eq!(list["registries"][0]["host"], "registry.example:5000");
    assert_eq!(list["registries"][0]["username"], "puller");
    assert!(!format!("{shown}{list}").contains("a-secret-of-theirs"));
    let orders = || orders::orders_of(&app.app, &node, 1).unwrap().unwrap().images.unwrap();
    let [login] = &orders().registries[..] else {
        panic!("no login in the orders")
    };
    assert_eq!(login.password.expose(), "a-secret-of-theirs");
    let path = "/registries/registry.example:5000";
    assert_eq!(app.json(Method::DELETE, path, "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(app.json(Method::DELETE, path, "").await.0, StatusCode::NOT_FOUND);
    assert!(orders().registries.is_empty());
}

#[test]
fn registry__should_be_refused_when_it_is_not_of_the_form() {
    for good in ["ghcr.io", "127.0.0.1:5000", "localhost"] {
        assert_eq!(host(good).unwrap(), good);
    }
    assert_eq!(host("index.docker.io").unwrap(), "docker.io");
    for bad in ["", "a b", "x:0", "x:y", "https://x", ":5000"] {
        assert!(host(bad).is_err(), "{bad}");
    }
    let text = |text: &str| Some(LooseText::from(text));
    assert!(login(text("a"), None).is_err() && login(None, text("b")).is_err());
    assert!(login(text("a:b"), text("c")).is_err() && login(text("a"), text("b\nc")).is_err());
    assert!(login(text(""), None).unwrap().is_none());
}
