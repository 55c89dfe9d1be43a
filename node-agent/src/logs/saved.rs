//! The logs of containers that are gone: one file each in the instance's folder, root's alone, the
//! newest few of bounded size.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;

use crate::{docker::LogSource, volume::InstanceFolder};

/// So many containers' logs are kept ...
const FILES: usize = 2;
/// ... and so much of each.
const FILE_BYTES: usize = 1 << 20;
const FOLDER: &str = "log";
const ENDING: &str = ".log";

/// Writes the log of a container, and lets go of those that are too many. The same container again
/// replaces its file, so this may be repeated. Without the instance's folder nothing is written.
pub(super) async fn write(folder: &InstanceFolder, source: &LogSource, text: String) -> io::Result<()> {
    let root = folder.root.clone();
    let name = name(source);
    spawn_blocking(move || write_in(&root, &name, &text))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// All saved text, oldest first, but not that of this container.
pub(super) async fn read(folder: &InstanceFolder, except: Option<String>) -> String {
    let folder = folder.root.join(FOLDER);
    let text = spawn_blocking(move || {
        let mut text = String::new();
        for path in files(&folder).unwrap_or_default() {
            let of = except
                .as_deref()
                .is_some_and(|docker_id| path.to_string_lossy().ends_with(&format!("{}{ENDING}", short(docker_id))));
            if !of && let Ok(saved) = read_file(&path) {
                text.push_str(&saved);
            }
        }
        text
    });
    text.await.unwrap_or_default()
}

/// Sorts by the time the container was made.
fn name(source: &LogSource) -> String {
    format!(
        "{:015}-{}{ENDING}",
        source.created.timestamp_millis().max(0),
        short(&source.docker_id)
    )
}

fn short(docker_id: &str) -> &str {
    docker_id.get(..12).unwrap_or(docker_id)
}

fn write_in(root: &Path, name: &str, text: &str) -> io::Result<()> {
    let folder = root.join(FOLDER);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        // A file in its place shows in the next step.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // Nothing is left of the instance: its log would be the only thing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let new = folder.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(end(text).as_bytes())?;
    fs::rename(&new, folder.join(name))?;
    let kept = files(&folder)?;
    for old in &kept[..kept.len().saturating_sub(FILES)] {
        fs::remove_file(old)?;
    }
    Ok(())
}

fn end(text: &str) -> &str {
    let mut start = text.len().saturating_sub(FILE_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES as u64).read_to_end(&mut bytes)?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ENDING) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use crabshack_shared::ids::InstanceId;

    use super::*;

    fn source(number: u32) -> LogSource {
        LogSource {
            docker_id: format!("{number:064x}").chars().rev().collect(),
            created: chrono::DateTime::from_timestamp(1_000_000_000 + i64::from(number), 0).unwrap(),
            up: false,
            finished: None,
        }
    }

    #[tokio::test]
    async fn saved_logs__should_be_the_newest_few_and_bounded() {
        let data = tempfile::tempdir().unwrap();
        let folder = InstanceFolder::new(data.path(), InstanceId::random());
        write(&folder, &source(1), "lost\n".to_owned()).await.unwrap();
        assert!(!folder.root.exists(), "a folder was made for the log alone");

        fs::create_dir_all(&folder.root).unwrap();
        assert_eq!(read(&folder, None).await, "");
        for number in [1, 2, 2, 3] {
            write(&folder, &source(number), format!("of {number}")).await.unwrap();
        }
        assert_eq!(read(&folder, None).await, "of 2\nof 3\n");
        assert_eq!(read(&folder, Some(source(3).docker_id)).await, "of 2\n");

        write(&folder, &source(4), "ä".repeat(FILE_BYTES)).await.unwrap();
        let size = fs::metadata(folder.root.join(FOLDER).join(name(&source(4)))).unwrap().len();
        assert!(size <= FILE_BYTES as u64);
    }
}
