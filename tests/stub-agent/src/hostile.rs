//! Trees that no daemon should trip over: links that lead out, names that look like options, pipes
//! that never answer, folders deeper than a path is long. The same seed gives the same trees.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    io,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat};
use serde::Deserialize;
use serde_json::{Value, json};

/// What to make.
#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    seed: u64,
    /// So many trees.
    shapes: u64,
    /// A folder of the node that must not be touched.
    target: String,
}

/// Makes the trees; `{"made": number}` or `error`.
pub(crate) fn make(home: &Path, request: &Request) -> Value {
    let mut random = Random(request.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for number in 0..request.shapes {
        let top = home.join(format!("tree-{number}"));
        let made = fs::create_dir(&top).and_then(|()| shape(&top, &mut random, &request.target, 0));
        if let Err(error) = made {
            return json!({"made": number, "error": error.to_string()});
        }
    }
    json!({ "made": request.shapes })
}

/// Splitmix.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn shape(folder: &Path, random: &mut Random, target: &str, level: u32) -> io::Result<()> {
    for _ in 0..=random.below(4) {
        match random.below(9) {
            0 => links(folder, random, target)?,
            1 => specials(folder, random)?,
            2 => hard_links(folder, random)?,
            3 => deep(folder, 50 + random.below(400))?,
            4 => names(folder, random)?,
            5 => wide(folder, 1 + random.below(200))?,
            6 => File::create(folder.join("sparse"))?.set_len(1 << (20 + random.below(20)))?,
            7 => bits(folder)?,
            _ if level < 4 => {
                let inner = folder.join(format!("inner-{}", random.below(u64::MAX)));
                fs::create_dir_all(&inner)?;
                shape(&inner, random, target, level + 1)?;
            }
            _ => {}
        }
    }
    if random.below(5) == 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o000))?;
    }
    Ok(())
}

fn links(folder: &Path, random: &mut Random, target: &str) -> io::Result<()> {
    let upwards = "../".repeat(usize::try_from(1 + random.below(40)).unwrap_or(1));
    let aims = [
        target,
        "/",
        "..",
        ".",
        "loop",
        "missing",
        "/proc/1/root",
        &format!("{upwards}{target}"),
        &upwards,
        "../etc",
        "../../etc/managed.json",
    ];
    for (number, aim) in aims.iter().enumerate() {
        ignore_existing(symlink(aim, folder.join(format!("link-{number}"))))?;
    }
    ignore_existing(symlink("loop", folder.join("loop")))?;
    // A link in the place of a folder that somebody may just be walking through.
    let swapped = folder.join("swapped");
    ignore_existing(fs::create_dir(&swapped))?;
    if fs::symlink_metadata(&swapped)?.is_dir() {
        fs::remove_dir_all(&swapped)?;
        symlink(target, &swapped)?;
    }
    Ok(())
}

fn specials(folder: &Path, random: &mut Random) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    for name in ["pipe", "authorized_keys", "managed.json"] {
        ignore_existing(mknodat(CWD, folder.join(name), FileType::Fifo, mode, 0).map_err(io::Error::from))?;
    }
    let socket = folder.join(format!("socket-{}", random.below(1000)));
    // The path may be too long for a socket, and the one device that users may make may be forbidden.
    drop(UnixListener::bind(socket));
    let made = mknodat(CWD, folder.join("device"), FileType::CharacterDevice, mode, makedev(0, 0));
    drop(made.map_err(io::Error::from));
    Ok(())
}

fn hard_links(folder: &Path, random: &mut Random) -> io::Result<()> {
    let first = folder.join("first");
    fs::write(&first, b"linked")?;
    for number in 0..random.below(50) {
        ignore_existing(fs::hard_link(&first, folder.join(format!("hard-{number}"))))?;
    }
    Ok(())
}

/// By open folders, since no path is that long.
fn deep(folder: &Path, depth: u64) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = OsStr::new("a-name-that-is-long-enough-to-make-a-path-too-long");
    let mut at = openat(CWD, folder, flags, Mode::empty())?;
    for _ in 0..depth {
        ignore_existing(mkdirat(&at, name, Mode::from_raw_mode(0o755)).map_err(io::Error::from))?;
        at = openat(&at, name, flags, Mode::empty())?;
    }
    Ok(())
}

fn names(folder: &Path, random: &mut Random) -> io::Result<()> {
    let plain = [
        "-rf",
        "--",
        "--no-preserve-root",
        "*",
        "~",
        " ",
        "\n",
        "a\nb",
        "'\"",
        "$(reboot)",
        "`id`",
        "home",
        "etc",
        "...",
    ];
    let mut names: Vec<OsString> = plain.iter().map(OsString::from).collect();
    names.push(OsString::from("n".repeat(255)));
    names.push(OsString::from_vec((1..=255).filter(|byte| *byte != b'/').collect()));
    names.push(OsString::from_vec(vec![0xff, 0xfe, 0x80]));
    for name in names {
        let path: PathBuf = folder.join(name);
        if random.below(2) == 0 {
            ignore_existing(fs::create_dir(path))?;
        } else if !path.exists() {
            ignore_existing(fs::write(path, b"odd"))?;
        }
    }
    Ok(())
}

fn wide(folder: &Path, count: u64) -> io::Result<()> {
    let inner = folder.join("wide");
    fs::create_dir_all(&inner)?;
    (0..count).try_for_each(|number| fs::write(inner.join(number.to_string()), b""))
}

/// Set-user-id and sticky bits, and files that nobody may read.
fn bits(folder: &Path) -> io::Result<()> {
    for (name, mode) in [("setuid", 0o6777), ("sticky", 0o1777), ("secret", 0o000)] {
        let path = folder.join(name);
        if !path.exists() {
            fs::write(&path, b"bits")?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// Two shapes may want the same name.
fn ignore_existing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // The name of everything is a byte too long where names must be text.
        Err(error) if error.raw_os_error() == Some(36) => Ok(()),
        other => other,
    }
}
