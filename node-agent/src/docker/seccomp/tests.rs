use std::collections::BTreeSet;

use super::*;

/// What Docker's documentation names as refused to a container without capabilities.
const REFUSED: [&str; 65] = [
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "_sysctl",
    "sysfs",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
];

/// What a call gets, as libseccomp decides: the first rule that matches, or the default.
fn answer(name: &str, arguments: [u64; 2]) -> Result<(), u64> {
    let profile = profile();
    let number = |value: &Value| value.as_u64().unwrap();
    let matches = |argument: &Value| {
        let given = arguments[usize::try_from(number(&argument["index"])).unwrap()];
        let value = number(&argument["value"]);
        match argument["op"].as_str() {
            Some("SCMP_CMP_EQ") => given == value,
            Some("SCMP_CMP_MASKED_EQ") => given & value == number(&argument["valueTwo"]),
            other => panic!("{other:?}"),
        }
    };
    let rules = profile["syscalls"].as_array().unwrap();
    let rule = rules.iter().find(|rule| {
        let named = rule["names"].as_array().unwrap().iter().any(|known| known == name);
        named && rule["args"].as_array().is_none_or(|all| all.iter().all(matches))
    });
    match rule {
        None => Err(number(&profile["defaultErrnoRet"])),
        Some(rule) if rule["action"] == ALLOW => Ok(()),
        Some(rule) => Err(number(&rule["errnoRet"])),
    }
}

#[test]
fn filter__should_refuse_what_docker_refuses() {
    for name in REFUSED {
        assert_eq!(answer(name, [0, 0]), Err(1), "{name}");
    }
    let mut seen = BTreeSet::new();
    for name in ALLOWED.iter().flat_map(|names| names.iter()).chain(&SINCE_4_8) {
        assert!(seen.insert(name), "{name} is there twice");
        assert_eq!(answer(name, [0, 0]), Ok(()));
    }
}

#[test]
fn filter__should_let_nobody_make_subvolumes_and_everybody_share_blocks() {
    // Subvolume and snapshot made (each in two versions), destroyed (two), and flags of one.
    for command in [
        0x5000_940e,
        0x5000_9418,
        0x5000_9401,
        0x5000_9417,
        0x5000_940f,
        0x5000_943f,
        0x4008_941a,
    ] {
        assert_eq!(answer("ioctl", [3, command]), Err(1), "{command:x}");
        let extended = command | 0xffff_ffff_0000_0000;
        assert_eq!(answer("ioctl", [3, extended]), Err(1), "{extended:x}");
    }
    for clone in CLONES {
        assert_eq!(answer("ioctl", [3, clone]), Ok(()));
        assert_eq!(answer("ioctl", [3, clone | 0xffff_ffff_0000_0000]), Ok(()));
    }
    // Terminals, sockets, `FIONREAD`, file attributes: every letter but that of btrfs.
    for letter in (0..=255).filter(|letter| *letter != BTRFS) {
        assert_eq!(answer("ioctl", [0, 0x4004_0001 | letter << 8]), Ok(()), "{letter:x}");
    }
}

#[test]
fn filter__should_let_nobody_into_other_namespaces() {
    let thread = 0x003d_0f00;
    assert_eq!(answer("clone", [thread, 0]), Ok(()));
    assert_eq!(answer("clone", [17, 0]), Ok(()));
    for bit in [17, 25, 26, 27, 28, 29, 30] {
        assert_eq!(answer("clone", [17 | 1 << bit, 0]), Err(1), "{bit}");
    }
    assert_eq!(answer("clone3", [0, 88]), Err(u64::from(ENOSYS)));
}

#[test]
fn filter__should_allow_the_families_of_sockets_that_programs_use() {
    for family in FAMILIES {
        assert_eq!(answer("socket", [family, 1]), Ok(()));
    }
    // Packets, cryptography of the kernel, TIPC, the hypervisor's.
    for family in [17, 38, 30, 40] {
        assert_eq!(answer("socket", [family, 1]), Err(1), "{family}");
    }
    assert_eq!(answer("socketpair", [UNIX, 1]), Ok(()));
    assert_eq!(answer("personality", [0xffff_ffff, 0]), Ok(()));
    assert_eq!(answer("personality", [0x40_0000, 0]), Err(1));
}
