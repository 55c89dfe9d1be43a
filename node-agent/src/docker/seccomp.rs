//! Which system calls an instance may make. Docker's own filter lets any user of a container make
//! subvolumes on btrfs, which classic quotas count to nobody; this one does not, and is otherwise at
//! least as strict as Docker's is for a container without capabilities.
//!
//! What is in no rule fails with `EPERM`; what is newer than every name in a rule fails with `ENOSYS`
//! (runc sees to that), so that a C library takes its older way.

mod table;

use std::sync::LazyLock;

use serde_json::{Value, json};

use self::table::{ALLOWED, SINCE_4_8};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const REFUSE: &str = "SCMP_ACT_ERRNO";
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Families of sockets: unix, IPv4, IPv6, netlink. The rest are raw packets, the hypervisor's line to the
/// node, and modules of the kernel that a mere socket would load.
const FAMILIES: [u64; 4] = [1, 2, 10, 16];
const UNIX: u64 = 1;

/// Linux itself, with what `uname` and `uname -m` say of an older or a 32-bit one, and the question.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `CLONE_NEW*`: mount, cgroup, uts, ipc, user, pid, net. Who has a user namespace has all capabilities in it.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// A command of `ioctl` carries its driver's letter in bits 8 to 15; this is that of btrfs.
const BTRFS: u64 = 0x94;
/// `FICLONE`, `FICLONERANGE`, `FIDEDUPERANGE`: every filesystem that shares blocks answers to them.
const CLONES: [u64; 3] = [0x4004_9409, 0x4020_940d, 0xc018_9436];

/// The option that gives a container this filter.
static OPTION: LazyLock<String> = LazyLock::new(|| format!("seccomp={}", profile()));

/// As Docker takes it, and shows it afterwards.
pub(super) fn option() -> &'static str {
    &OPTION
}

fn profile() -> Value {
    let names: Vec<&str> = ALLOWED.iter().flat_map(|names| names.iter().copied()).collect();
    let mut rules = vec![
        json!({"names": names, "action": ALLOW}),
        json!({"names": SINCE_4_8, "action": ALLOW, "includes": {"minKernel": "4.8"}}),
        // Its flags are in memory, where no filter sees them; told that there is none, libraries take `clone`.
        json!({"names": ["clone3"], "action": REFUSE, "errnoRet": ENOSYS}),
        when("clone", &masked(NEW_NAMESPACES, 0)),
        when("socketpair", &equal(UNIX)),
    ];
    rules.extend(FAMILIES.map(|family| when("socket", &equal(family))));
    rules.extend(PERSONALITIES.map(|personality| when("personality", &equal(personality))));
    // Any other driver's command differs from btrfs' in at least one bit of the letter.
    rules.extend((8..16).map(|bit| when("ioctl", &command(1 << bit, !(BTRFS << 8)))));
    rules.extend(CLONES.map(|clone| when("ioctl", &command(0xffff_ffff, clone))));
    json!({
        "defaultAction": REFUSE,
        "defaultErrnoRet": EPERM,
        // Programs of the machine's own kind only: each further one has its own entries into the kernel.
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    })
}

/// Allowed when its argument is so.
fn when(name: &str, argument: &Value) -> Value {
    json!({"names": [name], "action": ALLOW, "args": [argument]})
}

/// The first argument, whole.
fn equal(value: u64) -> Value {
    json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"})
}

/// These bits of the first argument.
fn masked(mask: u64, bits: u64) -> Value {
    json!({"index": 0, "value": mask, "valueTwo": bits & mask, "op": "SCMP_CMP_MASKED_EQ"})
}

/// These bits of `ioctl`'s command. The kernel looks at the lower 32 only, so this must too: some
/// libraries extend a sign into the upper ones.
fn command(mask: u64, bits: u64) -> Value {
    json!({"index": 1, "value": mask, "valueTwo": bits & mask, "op": "SCMP_CMP_MASKED_EQ"})
}

#[cfg(test)]
mod tests;
