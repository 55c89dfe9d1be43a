//! The system calls that need no look at their arguments, by subject, as the kernel's tables for x86-64
//! and aarch64 name them. A name that a machine does not know is passed over.
//!
//! Left out, each with `EPERM`:
//! - what changes the node itself: clocks, modules, swap, quotas, accounting, ports, a new kernel;
//! - mounts and namespaces, in the old way and in the new one, also entering another's;
//! - keys of the kernel, which know no namespaces;
//! - `bpf`, `perf_event_open`, `userfaultfd`, `io_uring_*`: much of the kernel for little use, and often
//!   the way out of a container;
//! - files by handles, which step over every mount; descriptors and memory advice of other processes;
//! - memory policies, which reach beyond the instance's share;
//! - what has no user any more: 16-bit segments, `uselib`, `sysfs`, `ustat`, and numbers without a function.
//!
//! Looked at by their arguments, beside this table: `clone`, `ioctl`, `personality`, `socket`, `socketpair`.

/// Allowed whatever the arguments are.
#[rustfmt::skip]
pub(super) const ALLOWED: [&[&str]; 11] = [
    // Files: open, read, write.
    &[
        "open", "openat", "openat2", "creat", "close", "close_range", "read", "write", "readv", "writev", "pread64", "pwrite64",
        "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "dup", "dup2", "dup3", "fcntl", "flock", "sendfile",
        "copy_file_range", "splice", "tee", "vmsplice", "readahead", "fadvise64", "fallocate", "truncate", "ftruncate",
        "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "cachestat", "memfd_create", "memfd_secret", "pipe", "pipe2",
    ],
    // Files: names, folders, attributes.
    &[
        "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2",
        "getdents", "getdents64", "getcwd", "chdir", "fchdir", "mkdir", "mkdirat", "rmdir", "rename", "renameat", "renameat2",
        "link", "linkat", "unlink", "unlinkat", "symlink", "symlinkat", "readlink", "readlinkat", "mknod", "mknodat",
        "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "umask", "utime", "utimes",
        "futimesat", "utimensat", "getxattr", "lgetxattr", "fgetxattr", "getxattrat", "setxattr", "lsetxattr", "fsetxattr",
        "setxattrat", "listxattr", "llistxattr", "flistxattr", "listxattrat", "removexattr", "lremovexattr", "fremovexattr",
        "removexattrat", "name_to_handle_at", "inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
        "fanotify_mark",
    ],
    // Waiting for many things at once.
    &[
        "select", "pselect6", "poll", "ppoll", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait",
        "epoll_pwait2", "eventfd", "eventfd2", "io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents",
        "io_pgetevents",
    ],
    // Memory.
    &[
        "brk", "mmap", "munmap", "mremap", "mprotect", "msync", "madvise", "mincore", "mlock", "mlock2", "mlockall",
        "munlock", "munlockall", "mseal", "remap_file_pages", "pkey_alloc", "pkey_free", "pkey_mprotect", "membarrier",
        "map_shadow_stack", "process_mrelease",
    ],
    // Processes and threads.
    &[
        "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "getpid", "getppid", "gettid",
        "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "set_tid_address", "set_robust_list", "get_robust_list", "rseq",
        "futex", "futex_waitv", "futex_wait", "futex_wake", "futex_requeue", "pidfd_open", "pidfd_send_signal", "prctl",
        "arch_prctl", "set_thread_area", "get_thread_area", "restart_syscall", "landlock_create_ruleset",
        "landlock_add_rule", "landlock_restrict_self", "seccomp", "uretprobe",
    ],
    // Who one is; without capabilities nobody becomes another.
    &[
        "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid", "setreuid",
        "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capget", "capset",
    ],
    // Signals.
    &[
        "kill", "tkill", "tgkill", "pause", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "rt_sigpending",
        "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "signalfd", "signalfd4",
    ],
    // Time; the clocks can be read, and setting them needs a capability.
    &[
        "time", "gettimeofday", "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "alarm", "getitimer",
        "setitimer", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete", "timerfd_create",
        "timerfd_settime", "timerfd_gettime", "adjtimex", "clock_adjtime", "times",
    ],
    // How much, how soon, on which processor; and what machine this is.
    &[
        "getrlimit", "setrlimit", "prlimit64", "getrusage", "getpriority", "setpriority", "ioprio_get", "ioprio_set",
        "sched_yield", "sched_getparam", "sched_setparam", "sched_getscheduler", "sched_setscheduler", "sched_getattr",
        "sched_setattr", "sched_get_priority_max", "sched_get_priority_min", "sched_rr_get_interval", "sched_getaffinity",
        "sched_setaffinity", "getcpu", "uname", "sysinfo", "getrandom",
    ],
    // Sockets, once they are there.
    &[
        "bind", "listen", "accept", "accept4", "connect", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt",
        "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
    ],
    // Queues, semaphores and memory between processes: the container has its own.
    &[
        "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semtimedop", "semctl", "shmget", "shmat", "shmdt",
        "shmctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr",
    ],
];

/// Looking into processes of one's own. Before Linux 4.8 these step over the filter.
pub(super) const SINCE_4_8: [&str; 3] = ["ptrace", "process_vm_readv", "process_vm_writev"];
