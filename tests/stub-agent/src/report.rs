//! What the workload sees of itself: environment, identity, capabilities, files.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use serde_json::{Value, json};

use crate::settings::{CONTRACT_FOLDER, Settings};

/// Everything as one JSON object.
pub(crate) fn all(settings: &Settings) -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    json!({
        "environment": settings.variables,
        "uid": field("Uid"),
        "gid": field("Gid"),
        "capabilities": field("CapEff"),
        "bounding_capabilities": field("CapBnd"),
        "no_new_privileges": field("NoNewPrivs"),
        "seccomp": field("Seccomp"),
        "init": fs::read_to_string("/proc/1/comm").unwrap_or_default().trim(),
        "files": files(Path::new(CONTRACT_FOLDER)),
        "root_writable": writable(Path::new("/probe")),
        "contract_writable": writable(&Path::new(CONTRACT_FOLDER).join("probe")),
        "home_writable": writable(&settings.home().join(".stub/probe")),
        "tmp_writable": writable(Path::new("/tmp/probe")),
        "resolvers": crate::probe::resolvers(),
    })
}

fn files(folder: &Path) -> Vec<Value> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name, format!("{:04o}", metadata.mode() & 0o7777), metadata.uid()))
        })
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|(name, mode, uid)| json!({"name": name, "mode": mode, "uid": uid}))
        .collect()
}

fn writable(probe: &Path) -> bool {
    let written: io::Result<()> = fs::write(probe, b"x").and_then(|()| fs::remove_file(probe));
    written.is_ok()
}
