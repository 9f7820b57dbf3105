//! Which system calls containers may make: those that programs like Node.js, npm, compilers and databases live on, and nothing with which
//! holes in kernels have mostly been found or which leads out of the container's own namespaces. The engine's default lets tenants use
//! io_uring, trace processes and, on a virtual machine, speak to its host by vsock, which belongs to no network namespace.
//!
//! Everything else fails with EPERM. Calls of other architectures (32 bits) are not made at all.

use serde_json::{Value, json};

/// Allowed with any arguments.
const CALLS: &[&str] = &[
    // Files.
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat openat2 creat close close_range",
    "stat fstat lstat newfstatat statx statfs fstatfs lseek access faccessat faccessat2 getdents getdents64 getcwd chdir fchdir",
    "rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat readlink readlinkat mknod mknodat",
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes utimensat futimesat truncate ftruncate fallocate",
    "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr",
    "fsync fdatasync sync syncfs sync_file_range fadvise64 readahead sendfile splice tee vmsplice copy_file_range",
    "dup dup2 dup3 fcntl flock ioctl pipe pipe2 memfd_create inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
    // Waiting.
    "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2",
    "signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime nanosleep clock_nanosleep pause alarm getitimer setitimer",
    "timer_create timer_settime timer_gettime timer_getoverrun timer_delete restart_syscall futex futex_waitv",
    // Memory.
    "mmap munmap mprotect mremap madvise brk mincore msync mlock mlock2 munlock mlockall munlockall membarrier",
    "pkey_alloc pkey_free pkey_mprotect shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl",
    // Processes.
    "fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal",
    "getpid getppid gettid getpgid getpgrp setpgid getsid setsid getuid geteuid getgid getegid getresuid getresgid getgroups",
    "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capget capset",
    "prctl arch_prctl set_tid_address set_robust_list get_robust_list rseq seccomp",
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    "sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler",
    "sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_getattr sched_setattr",
    "getpriority setpriority ioprio_get ioprio_set getrlimit setrlimit prlimit64 getrusage times sysinfo uname getcpu",
    "rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn sigaltstack",
    "clock_gettime clock_getres gettimeofday time getrandom",
    // The network, but for making sockets.
    "socketpair connect accept accept4 bind listen getsockname getpeername getsockopt setsockopt shutdown",
    "sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg",
];

/// Families of sockets: unix, IPv4, IPv6.
const FAMILIES: [u64; 3] = [1, 2, 10];
const NETLINK: u64 = 16;
/// With which a program lists its interfaces.
const NETLINK_ROUTE: u64 = 0;
/// Flags of `clone` that make namespaces: mounts, control groups, host name, IPC, users, processes, network.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Values of `personality` that change nothing: Linux, and asking.
const PERSONALITIES: [u64; 2] = [0, 0xffff_ffff];
const ENOSYS: u32 = 38;

/// The profile, as the engine takes it.
pub(crate) fn profile() -> String {
    let names: Vec<&str> = CALLS.iter().flat_map(|line| line.split(' ')).collect();
    let equal = |index: u32, value: u64| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let allow = |name: &str, args: Vec<Value>| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args });
    let mut calls = vec![json!({ "names": names, "action": "SCMP_ACT_ALLOW" })];
    calls.extend(FAMILIES.map(|family| allow("socket", vec![equal(0, family)])));
    calls.push(allow("socket", vec![equal(0, NETLINK), equal(2, NETLINK_ROUTE)]));
    calls.extend(PERSONALITIES.map(|value| allow("personality", vec![equal(0, value)])));
    let masked = json!({ "index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" });
    calls.push(allow("clone", vec![masked]));
    // Its flags lie in memory, out of a filter's sight; programs fall back to `clone` where it does not exist.
    calls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": calls }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_names_each_call_once_and_none_that_leads_out() {
        let profile: Value = serde_json::from_str(&profile()).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let mut names: Vec<&str> = CALLS.iter().flat_map(|line| line.split(' ')).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a call is named twice");
        for refused in [
            "socket",
            "clone",
            "clone3",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "io_uring_setup",
            "io_uring_enter",
            "bpf",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "perf_event_open",
            "mount",
            "umount2",
            "fsopen",
            "move_mount",
            "open_tree",
            "setns",
            "unshare",
            "pivot_root",
            "chroot",
            "open_by_handle_at",
            "name_to_handle_at",
            "kexec_load",
            "init_module",
            "finit_module",
            "syslog",
            "personality",
            "modify_ldt",
            "quotactl",
            "acct",
            "swapon",
            "reboot",
            "kcmp",
            "fanotify_init",
            "mbind",
        ] {
            assert!(!names.contains(&refused), "{refused}");
        }
    }
}
