use std::{net::TcpListener, sync::Arc};

use axum::Router;
use crabshack_shared::serve::{HeadLimits, Refusals, Server, ServerTls};
use http::header::CONTENT_TYPE;
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::TestApp;

/// A registry with one image, behind TLS of an authority that nobody knows. Returns its host and the
/// certificate.
async fn registry() -> (String, String) {
    crabshack_shared::tls::install_provider();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
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
    let limits = HeadLimits {
        first: PATIENCE,
        next: PATIENCE,
    };
    let server =
        Server::new(listener.into(), limits, Arc::new(Refusals::new("registry"))).with_tls(ServerTls::new(Arc::new(tls)));
    tokio::spawn(server.serve(Router::new().fallback(answer), CancellationToken::new()));
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
