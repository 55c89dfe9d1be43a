use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
};

use super::*;

const SIZE: Bytes = Bytes::gibibytes(1);

async fn volumes(data: &Path) -> Volumes {
    let metadata = fs::metadata(data).unwrap();
    // Whoever runs the tests, so that they need not be root.
    let owner = Owner {
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    // Without btrfs, whatever the temporary folder is on.
    let volumes = Volumes::open(data.join("instances")).await.unwrap();
    Volumes {
        owner,
        btrfs: None,
        ..volumes
    }
}

#[tokio::test]
async fn volume__should_be_made_and_removed_any_number_of_times() {
    let data = tempfile::tempdir().unwrap();
    let volumes = volumes(data.path()).await;
    let id = InstanceId::random();
    assert!(volumes.list().await.unwrap().is_empty());
    volumes.remove(id).await.unwrap();

    volumes.ensure(id, SIZE).await.unwrap();
    let folder = volumes.folder(id);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(
        (mode(&folder.root), mode(&folder.home), mode(&folder.etc)),
        (0o700, 0o750, 0o755)
    );
    fs::write(folder.home.join("kept"), "").unwrap();
    fs::create_dir(data.path().join("instances/lost+found")).unwrap();
    volumes.ensure(id, SIZE).await.unwrap();
    volumes.limit(id, Bytes::new(1)).await.unwrap();
    assert!(folder.home.join("kept").exists());
    assert_eq!(volumes.list().await.unwrap(), BTreeMap::from([(id, Volume::Plain)]));

    volumes.remove(id).await.unwrap();
    assert!(volumes.list().await.unwrap().is_empty() && !folder.root.exists());
    volumes.remove(id).await.unwrap();
}

#[tokio::test]
async fn volume__should_be_completed_after_a_kill_at_any_moment() {
    let data = tempfile::tempdir().unwrap();
    let volumes = volumes(data.path()).await;
    let id = InstanceId::random();
    let folder = volumes.folder(id);
    // Killed before the home had its name, with something half-made in it.
    fs::create_dir_all(folder.unfinished.join("half")).unwrap();
    assert_eq!(volumes.list().await.unwrap(), BTreeMap::from([(id, Volume::Unfinished)]));
    volumes.ensure(id, SIZE).await.unwrap();
    assert_eq!(volumes.list().await.unwrap(), BTreeMap::from([(id, Volume::Plain)]));
    assert_eq!(fs::read_dir(&folder.home).unwrap().count(), 0);
    // Killed in the middle of the removal.
    fs::remove_dir(&folder.home).unwrap();
    volumes.refresh().await.unwrap();
    assert_eq!(volumes.list().await.unwrap(), BTreeMap::from([(id, Volume::Unfinished)]));
    volumes.remove(id).await.unwrap();
    assert!(!folder.root.exists());
}

#[tokio::test]
async fn volume__should_be_removed_without_following_links_or_breaking_on_depth() {
    let data = tempfile::tempdir().unwrap();
    let outside = data.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    let volumes = volumes(data.path()).await;
    let id = InstanceId::random();
    volumes.ensure(id, SIZE).await.unwrap();
    let folder = volumes.folder(id);
    symlink(&outside, folder.home.join("link")).unwrap();
    // One path may not be longer than 4096 bytes, so nest by moving the old tree into a new folder.
    for _ in 0..5000 {
        let (tree, outer) = (folder.home.join("tree"), folder.home.join("outer"));
        fs::create_dir(&outer).unwrap();
        if tree.exists() {
            fs::rename(&tree, outer.join("d")).unwrap();
        }
        fs::rename(&outer, &tree).unwrap();
    }
    volumes.remove(id).await.unwrap();
    assert!(!folder.root.exists());
    assert!(outside.join("kept").exists());
}

#[tokio::test]
async fn volume__should_refuse_a_link_in_its_place() {
    let data = tempfile::tempdir().unwrap();
    let volumes = volumes(data.path()).await;
    let id = InstanceId::random();
    let folder = volumes.folder(id);
    fs::create_dir_all(&folder.root).unwrap();
    symlink("/", &folder.home).unwrap();
    assert!(matches!(volumes.ensure(id, SIZE).await, Err(VolumeError::NotAFolder { .. })));
}
