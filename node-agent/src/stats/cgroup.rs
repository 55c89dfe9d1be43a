//! The kernel's own count of disk traffic. Docker's engine reads the files of schedulers that many
//! kernels do not have, and then says nothing.

use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Bytes read from and written to disks by the group of a process of the node.
pub(super) async fn disk(process: u32) -> Option<(u64, u64)> {
    let membership = tokio::fs::read_to_string(format!("/proc/{process}/cgroup")).await.ok()?;
    if let Some(group) = group(&membership, "blkio") {
        let folder = below(&Path::new(ROOT).join("blkio"), group);
        let text = tokio::fs::read_to_string(folder.join("blkio.throttle.io_service_bytes_recursive")).await;
        return Some(disk_v1(&text.ok()?));
    }
    let folder = below(Path::new(ROOT), group(&membership, "")?);
    Some(disk_v2(&tokio::fs::read_to_string(folder.join("io.stat")).await.ok()?))
}

fn below(root: &Path, group: &str) -> PathBuf {
    root.join(group.trim_start_matches('/'))
}

/// The group of a controller in `/proc/PID/cgroup`: `7:blkio:/docker/ab`, or `0::/docker/ab` for
/// cgroup v2, whose controller is the empty one.
fn group<'a>(membership: &'a str, controller: &str) -> Option<&'a str> {
    membership.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(group)
    })
}

/// `8:0 Read 4096`, one line per device and operation.
fn disk_v1(text: &str) -> (u64, u64) {
    let sum = |wanted: &str| {
        let lines = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        lines
            .filter_map(|parts| matches!(parts[..], [_, operation, _] if operation == wanted).then(|| number(parts[2])))
            .sum()
    };
    (sum("Read"), sum("Write"))
}

/// `8:0 rbytes=4096 wbytes=8192 rios=1 wios=2`, one line per device.
fn disk_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let words = text.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        words.filter(|(name, _)| *name == key).map(|(_, value)| number(value)).sum()
    };
    (sum("rbytes"), sum("wbytes"))
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group__should_be_found_in_either_version() {
        let v1 = "9:name=systemd:/docker/ab\n7:blkio:/docker/ab\n2:cpu,cpuacct:/other\n0::/unified\n";
        assert_eq!(group(v1, "blkio"), Some("/docker/ab"));
        assert_eq!(group(v1, "cpuacct"), Some("/other"));
        let v2 = "0::/system.slice/docker-ab.scope\n";
        assert_eq!(group(v2, "blkio"), None);
        assert_eq!(group(v2, ""), Some("/system.slice/docker-ab.scope"));
    }

    #[test]
    fn disk__should_be_summed_over_devices() {
        let v1 =
            "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Async 2\n8:0 Discard 0\n8:0 Total 12288\n8:16 Read 4\nTotal 12292\n";
        assert_eq!(disk_v1(v1), (4100, 8192));
        let v2 = "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=2 rios=3 wios=4\n";
        assert_eq!(disk_v2(v2), (1_459_201, 314_773_506));
        assert_eq!((disk_v1(""), disk_v2("")), ((0, 0), (0, 0)));
    }
}
