use axum::Router;
use axum_server::tls_rustls::RustlsConfig;
use http::header::CONTENT_TYPE;
use serde_json::json;

use super::*;
use crate::testing::TestApp;

/// A registry with one image, behind TLS of an authority that nobody knows. Returns its host and the
/// certificate.
async fn registry() -> (String, String) {
    crabshack_shared::tls::install_provider();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let tls = RustlsConfig::from_pem(certificate.clone().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let configuration = json!({"os": "linux", "architecture": "amd64"}).to_string();
    let manifest = json!({"schemaVersion": 2, "config": {"digest": manifest::digest(configuration.as_bytes())}}).to_string();
    let answer = async move |request: axum::extract::Request| {
        let body = if request.uri().path().contains("/blobs/") {
            configuration
        } else {
            manifest
        };
        ([(CONTENT_TYPE, "application/json")], body)
    };
    let server = axum_server::from_tcp_rustls(listener, tls.await.unwrap()).unwrap();
    tokio::spawn(server.serve(Router::new().fallback(answer).into_make_service()));
    (host, certificate)
}

#[tokio::test]
async fn registry__should_be_believed_when_its_authority_is_in_the_bundle() {
    let (host, certificate) = registry().await;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("authorities.pem");
    std::fs::write(&bundle, certificate).unwrap();
    let image: ImageReference = format!("{host}/owner/name:1").parse().unwrap();
    let access = || registry::Access {
        plain_http: false,
        login: None,
    };
    let trusting = TestApp::with(&["--ca-bundle", bundle.to_str().unwrap()]);
    let found = trusting.app.images.look_up(&image, access()).await.unwrap();
    assert_eq!(found.architectures, BTreeSet::from(["amd64".to_owned()]));
    let stranger = TestApp::new().app.images.look_up(&image, access()).await;
    assert!(matches!(stranger, Err(RegistryError::Unreachable(_))), "{stranger:?}");
}
