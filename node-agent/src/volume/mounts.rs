//! Which filesystem holds a folder, from the kernel's table of mounts.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// One mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where.
    pub(crate) point: PathBuf,
    /// Its type, like `btrfs`.
    pub(crate) kind: String,
    /// Its device.
    pub(crate) source: PathBuf,
}

/// The filesystem that holds a path.
pub(crate) fn mount_of(path: &Path) -> io::Result<Option<Mount>> {
    let path = fs::canonicalize(path)?;
    Ok(holding(&fs::read("/proc/self/mountinfo")?, &path))
}

/// The last of the deepest ones: it hides the others.
fn holding(table: &[u8], path: &Path) -> Option<Mount> {
    let mounts = table.split(|byte| *byte == b'\n').filter_map(read);
    mounts
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// `24 1 254:0 / /mount/point rw,relatime shared:1 - ext4 /dev/vda rw`
fn read(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = unescape(fields.nth(4)?);
    let mut described = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(described.next()?).into_owned();
    Some(Mount {
        point,
        kind,
        source: unescape(described.next()?),
    })
}

/// Spaces and the like are written as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, others)) = rest.split_first() {
        let escaped = others
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &others[3..];
        } else {
            bytes.push(first);
            rest = others;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount__should_be_the_deepest_and_last_one_over_a_path() {
        let table = b"24 1 254:0 / / rw - ext4 /dev/vda rw\n\
            74 24 0:41 / /data/my\\040pool rw,noatime shared:3 - btrfs /dev/loop0 rw,subvolid=5\n\
            75 24 0:42 / /data/my\\040pool rw - tmpfs none rw\n\
            76 24 0:43 / /database rw - xfs /dev/vdb rw\n";
        let of = |path: &str| holding(table, Path::new(path)).unwrap().kind;
        assert_eq!(of("/data/other"), "ext4");
        assert_eq!(of("/data/my pool/instances"), "tmpfs");
        assert_eq!(of("/database"), "xfs");
        assert_eq!(
            holding(table, Path::new("/data/my pool")).unwrap().point,
            Path::new("/data/my pool")
        );
    }
}
