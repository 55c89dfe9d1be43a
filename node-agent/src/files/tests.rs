use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crabshack_shared::{ids::InstanceId, secret::Secret};
use serde_json::json;

use super::*;

/// A folder, and whoever runs the tests, so that they need not be root.
fn folder() -> (tempfile::TempDir, InstanceFolder, Owner) {
    let data = tempfile::tempdir().unwrap();
    let folder = InstanceFolder::new(data.path(), InstanceId::random());
    fs::create_dir_all(&folder.etc).unwrap();
    let metadata = fs::metadata(data.path()).unwrap();
    let owner = Owner {
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    (data, folder, owner)
}

fn files() -> Files {
    Files {
        managed: json!({ "gateway": { "port": 1 } }),
        environment: [("KEY".to_owned(), Secret::from("a = 'b' # $c \\".to_owned()))].into(),
        authorized_keys: Some("ssh-ed25519 AAAA me\n".to_owned()),
        ssh: true,
    }
}

#[tokio::test]
async fn files__should_be_written_once_and_keep_the_host_key() {
    let (_data, folder, owner) = folder();
    assert!(differs(&folder, &files()));
    assert_eq!(ssh_fingerprint(&folder), None);
    write_as(&folder, &files(), owner).await.unwrap();
    assert!(!differs(&folder, &files()) && !is_told(&folder, &files()));
    configure_done(&folder).unwrap();
    assert!(is_told(&folder, &files()));
    let fingerprint = ssh_fingerprint(&folder).unwrap();
    assert!(fingerprint.starts_with("SHA256:"));
    assert_eq!(fs::read_to_string(folder.etc.join("env")).unwrap(), "KEY=a = 'b' # $c \\\n");
    for (name, mode) in [("env", 0o400), ("ssh_host_ed25519_key", 0o600), ("managed.json", 0o600)] {
        let metadata = fs::metadata(folder.etc.join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }

    let inode = || fs::metadata(folder.etc.join("sshd_config")).unwrap().ino();
    let before = inode();
    write_as(&folder, &files(), owner).await.unwrap();
    assert_eq!(inode(), before);
    assert_eq!(ssh_fingerprint(&folder), Some(fingerprint));

    // Killed between the two halves of the key.
    fs::remove_file(folder.etc.join("ssh_host_ed25519_key.pub")).unwrap();
    assert!(differs(&folder, &files()));
    write_as(&folder, &files(), owner).await.unwrap();
    assert!(!differs(&folder, &files()));
}

#[tokio::test]
async fn files__should_go_when_they_are_no_longer_wanted() {
    let (_data, folder, owner) = folder();
    write_as(&folder, &files(), owner).await.unwrap();
    configure_done(&folder).unwrap();
    let mut without = files();
    without.authorized_keys = None;
    assert!(differs(&folder, &without));
    write_as(&folder, &without, owner).await.unwrap();
    assert!(!folder.etc.join("authorized_keys").exists());
    assert!(folder.etc.join("sshd_config").exists());
    assert!(
        !differs(&folder, &without) && is_told(&folder, &without),
        "a changed key needs no telling"
    );
}

#[tokio::test]
async fn files__should_remember_that_the_instance_was_not_told() {
    let (_data, folder, owner) = folder();
    write_as(&folder, &files(), owner).await.unwrap();
    assert!(configure_pending(&folder));
    configure_done(&folder).unwrap();
    configure_done(&folder).unwrap();

    let mut changed = files();
    changed.environment.clear();
    write_as(&folder, &changed, owner).await.unwrap();
    assert!(!configure_pending(&folder));
    changed.managed = json!({});
    write_as(&folder, &changed, owner).await.unwrap();
    assert!(configure_pending(&folder));
}

#[tokio::test]
async fn files__should_refuse_environment_that_would_forge_a_line() {
    let (_data, folder, owner) = folder();
    for (name, value) in [
        ("KEY", "a\nPATH=/x"),
        ("KEY", "a\0"),
        ("A=B", "x"),
        ("", "x"),
        ("1A", "x"),
        ("A B", "x"),
    ] {
        let mut files = files();
        files.environment = [(name.to_owned(), Secret::from(value.to_owned()))].into();
        let error = write_as(&folder, &files, owner).await.unwrap_err();
        assert!(matches!(error, FilesError::Environment { .. }), "{name}");
        assert!(fs::read_dir(&folder.etc).unwrap().next().is_none());
    }
}

#[tokio::test]
async fn files__should_not_replace_a_damaged_host_key() {
    let (_data, folder, owner) = folder();
    fs::write(folder.etc.join("ssh_host_ed25519_key"), "damaged").unwrap();
    let error = write_as(&folder, &files(), owner).await.unwrap_err();
    assert!(matches!(error, FilesError::HostKey { .. }));
}
