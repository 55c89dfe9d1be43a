//! Writes to the home until the disk says no.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

use serde::Deserialize;
use serde_json::{Value, json};

/// How much to write where.
#[derive(Debug, Deserialize)]
pub(crate) struct Write {
    /// Below the home.
    path: String,
    /// So many MiB are appended.
    mib: u64,
}

/// `{"written": MiB}`, and `code` of the system and `error` when it was refused.
pub(crate) fn write(home: &Path, request: &Write) -> Value {
    let mut written = 0;
    match append(&home.join(&request.path), request.mib, &mut written) {
        Ok(()) => json!({ "written": written }),
        Err(error) => json!({"written": written, "code": error.raw_os_error(), "error": error.to_string()}),
    }
}

fn append(path: &Path, mebibytes: u64, written: &mut u64) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut chunk = vec![0_u8; 1 << 20];
    for number in 0..mebibytes {
        // No two chunks are the same, so that nothing can be saved on them.
        chunk[..8].copy_from_slice(&number.to_le_bytes());
        chunk.iter_mut().step_by(512).for_each(|byte| *byte = byte.wrapping_add(7));
        file.write_all(&chunk)?;
        *written += 1;
    }
    file.sync_all()
}
