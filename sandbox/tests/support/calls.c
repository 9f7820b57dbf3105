// Asks the kernel for what no tenant may have, and prints one line for each: the call and the error it got, 0 for none.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void said(const char *name, long result) { printf("%s %d\n", name, result < 0 ? errno : 0); }
#define CALL(name, ...) said(name, syscall(__VA_ARGS__))

int main(void) {
    char buffer[256];
    struct { unsigned bytes; int type; char handle[128]; } handle = {.bytes = 128};
    memset(buffer, 0, sizeof buffer);
    CALL("mount", SYS_mount, "none", "/tmp", "tmpfs", 0, 0);
    CALL("umount", SYS_umount2, "/tmp", 2);
    CALL("pivot_root", SYS_pivot_root, "/tmp", "/tmp");
    CALL("chroot", SYS_chroot, "/tmp");
    CALL("unshare_user", SYS_unshare, CLONE_NEWUSER);
    CALL("unshare_mounts", SYS_unshare, CLONE_NEWNS);
    CALL("unshare_net", SYS_unshare, CLONE_NEWNET);
    CALL("setns", SYS_setns, open("/proc/self/ns/net", O_RDONLY), 0);
    CALL("add_key", SYS_add_key, "user", "a", "b", 1, -3);
    CALL("keyctl", SYS_keyctl, 0, -3, 1, 0, 0);
    CALL("request_key", SYS_request_key, "user", "a", 0, 0);
    CALL("bpf", SYS_bpf, 0, buffer, 48);
    CALL("perf_event_open", SYS_perf_event_open, buffer, 0, -1, -1, 0);
    CALL("userfaultfd", SYS_userfaultfd, 0);
    CALL("open_by_handle_at", SYS_open_by_handle_at, AT_FDCWD, &handle, O_RDONLY);
    CALL("io_uring_setup", SYS_io_uring_setup, 4, buffer);
    CALL("init_module", SYS_init_module, buffer, 1, "");
    CALL("kexec_load", SYS_kexec_load, 0, 0, 0, 0);
    CALL("reboot", SYS_reboot, 0xfee1dead, 672274793, 0x1234567, 0);
    CALL("swapon", SYS_swapon, "/tmp/x", 0);
    CALL("syslog", SYS_syslog, 3, buffer, 100);
    CALL("iopl", SYS_iopl, 3);
    CALL("settimeofday", SYS_settimeofday, buffer, 0);
    CALL("sethostname", SYS_sethostname, "x", 1);
    CALL("quotactl", SYS_quotactl, 0x80000100, "/dev/vda", 0, buffer);
    CALL("acct", SYS_acct, "/tmp/x");
    CALL("mknod_disk", SYS_mknodat, AT_FDCWD, "/tmp/disk", 0060600, 0xfe00);
    CALL("setuid_root", SYS_setuid, 0);
    CALL("process_vm_readv", SYS_process_vm_readv, 1, buffer, 0, buffer, 0, 0);
    CALL("ptrace_attach_1", SYS_ptrace, PTRACE_SEIZE, 1, 0, 0);
    CALL("socket_packet", SYS_socket, AF_PACKET, SOCK_RAW, 0);
    CALL("socket_raw", SYS_socket, AF_INET, SOCK_RAW, 255);
    CALL("socket_vsock", SYS_socket, AF_VSOCK, SOCK_STREAM, 0);
    CALL("socket_netlink_audit", SYS_socket, AF_NETLINK, SOCK_RAW, 9);
    CALL("socket_alg", SYS_socket, AF_ALG, SOCK_SEQPACKET, 0);
    return 0;
}
