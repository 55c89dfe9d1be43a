use std::os::unix::fs::PermissionsExt as _;

use crabshack_shared::tls::{Identity, Role};

use super::*;

const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

fn request() -> String {
    let key = KeyPair::generate().unwrap();
    // What a request asks for beside its key must not matter.
    let params = CertificateParams::new(vec![COORDINATOR_NAME.to_owned()]).unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

#[test]
fn ca__should_issue_only_the_name_it_decided() {
    tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::load_or_create(folder.path(), LIFE).unwrap();
    let node = NodeId::random();
    let issued = ca.issue_node(&node, &request()).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
    let identity = Identity::of(&certificate).unwrap();
    assert_eq!(identity.role, Role::Node(node));
    let now = SystemTime::now();
    assert!(!identity.is_expired(now + LIFE - Duration::from_secs(60)));
    assert!(identity.is_expired(now + LIFE + Duration::from_secs(60)));
    assert!(!identity.wants_renewal(now));
    assert!(identity.wants_renewal(now + LIFE / 3));
    assert_eq!(issued.serial.len(), 32);
}

#[test]
fn ca__should_be_the_same_after_a_restart() {
    tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let first = Ca::load_or_create(folder.path(), LIFE).unwrap().authority().clone();
    let again = Ca::load_or_create(folder.path(), LIFE).unwrap();
    assert_eq!(&first, again.authority());
    let mode = fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Only the key was on disk when the power went.
    fs::remove_file(folder.path().join("ca.pem")).unwrap();
    assert!(Ca::load_or_create(folder.path(), LIFE).is_ok());
}

#[test]
fn ca__should_not_want_to_renew_a_short_certificate_at_once() {
    tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let life = Duration::from_secs(30);
    let ca = Ca::load_or_create(folder.path(), life).unwrap();
    let issued = ca.issue_node(&NodeId::random(), &request()).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
    let identity = Identity::of(&certificate).unwrap();
    let now = SystemTime::now();
    assert!(!identity.wants_renewal(now));
    assert!(identity.wants_renewal(now + life / 2));
}

#[test]
fn ca__should_refuse_a_damaged_request() {
    tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::load_or_create(folder.path(), LIFE).unwrap();
    for text in [
        "",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        assert!(matches!(ca.issue_node(&NodeId::random(), text), Err(CaError::Request(_))));
    }
}
