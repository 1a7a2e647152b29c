/* The cffi extension: starts ck-init, and makes the system calls that Python's standard library does not.
 *
 * ck_spawn is the only place where this process has a child that shares its memory. Between clone3 and execveat that
 * child makes raw system calls only: no allocation, no lock, no libc function, no errno, on a stack of its own below
 * which lies a guard page, with every signal blocked and every handler cleared. So it does not matter what the other
 * threads of the host program hold, nor how much memory it has.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define CK_NO_STRING_FUNCTIONS
#include "init/sys.h"

__attribute__((visibility("hidden"))) int last_sysno; /* sys.h records it; only ck-init reads it */

#ifndef __NR_listmount
#define __NR_listmount 458
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#define STACK_SIZE (64 * 1024)
#define GUARD_SIZE 65536 /* a page of the largest size that the supported machines use */

/* ---- start ck-init ---------------------------------------------------------------------------------------------- */

struct spawn { int helper, nfds, error, *fds; };

static const char *const helper_argv[] = {"ck-init", NULL};
static const char *const empty_env[] = {NULL};

/* In the child. Descriptor i of the list becomes number i: those in the way move up first, then each goes to its place,
 * and whatever else the host program left inheritable is closed by exec. */
static void become_helper(void *arg)
{
    struct spawn *s = arg;
    long r = 0;
    int helper = s->helper;
    if (helper < s->nfds)
        helper = (int)(r = SYS3(__NR_fcntl, helper, F_DUPFD_CLOEXEC, s->nfds));
    for (int i = 0; r >= 0 && i < s->nfds; i++)
        if (s->fds[i] < s->nfds)
            s->fds[i] = (int)(r = SYS3(__NR_fcntl, s->fds[i], F_DUPFD_CLOEXEC, s->nfds));
    for (int i = 0; r >= 0 && i < s->nfds; i++)
        r = SYS3(__NR_dup3, s->fds[i], i, 0);
    if (r >= 0)
        r = SYS3(__NR_close_range, s->nfds, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
    if (r >= 0)
        r = SYS5(__NR_execveat, helper, "", helper_argv, empty_env, AT_EMPTY_PATH);
    s->error = (int)r;
    for (;;)
        SYS1(__NR_exit, 127);
}

/* A stack for the child, above a page that no overflow gets across. One is kept for the next start. */
static char *spare_stack;

static char *take_stack(void)
{
    char *stack = __atomic_exchange_n(&spare_stack, NULL, __ATOMIC_ACQUIRE);
    if (stack)
        return stack;
    stack = mmap(NULL, STACK_SIZE + GUARD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return NULL;
    if (mprotect(stack + GUARD_SIZE, STACK_SIZE, PROT_READ | PROT_WRITE) == 0)
        return stack;
    munmap(stack, STACK_SIZE + GUARD_SIZE);
    return NULL;
}

static void give_stack(char *stack)
{
    stack = __atomic_exchange_n(&spare_stack, stack, __ATOMIC_RELEASE);
    if (stack)
        munmap(stack, STACK_SIZE + GUARD_SIZE);
}

/* Start the helper with the descriptors `fds`, numbered from 0. The child's pidfd goes to *pidfd.
 * The array is the child's to change. */
int ck_spawn(int helper, const int *fds, int nfds, int *pidfd)
{
    int list[256];
    uint64_t all = ~0ull, old;
    if (nfds < 3 || nfds > (int)countof(list))
        return -EMFILE;
    memcpy(list, fds, (size_t)nfds * sizeof(int));
    char *stack = take_stack();
    if (!stack)
        return -ENOMEM;
    struct spawn s = {.helper = helper, .nfds = nfds, .fds = list};
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .stack = (uint64_t)(uintptr_t)(stack + GUARD_SIZE),
        .stack_size = STACK_SIZE,
    };
    /* Raw, so that also the signals that libc keeps for itself wait until the child has its own memory. */
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
    long pid = clone_call(&args, CLONE_ARGS_SIZE_VER0, become_helper, &s);
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &old, NULL, 8);
    give_stack(stack);
    if (pid < 0)
        return (int)pid;
    if (s.error == 0)
        return (int)pid;
    int status;
    ck_waitid(*pidfd, WEXITED, &status, NULL);
    close(*pidfd);
    *pidfd = -1;
    return s.error;
}

/* One message with its descriptors (close-on-exec). 0 is the end; -ETIMEDOUT after timeout_ms; -EINTR on a signal. */
int ck_recv(int sock, void *buf, size_t len, int *fds, int *nfds, int timeout_ms)
{
    struct pollfd p = {.fd = sock, .events = POLLIN};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(16 * sizeof(int))];
    } control;
    struct iovec iov = {buf, len};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int room = *nfds;
    *nfds = 0;
    int r = poll(&p, 1, timeout_ms);
    if (r <= 0)
        return r == 0 ? -ETIMEDOUT : -errno;
    ssize_t n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0)
        return errno == ECONNRESET ? 0 : -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int got = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < got; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + (size_t)i * sizeof fd, sizeof fd);
            if (*nfds < room)
                fds[(*nfds)++] = fd;
            else
                close(fd);
        }
    }
    return (int)n;
}

/* waitid(P_PIDFD): *status as wait(2) gives it. 1: ended, 0: not yet (WNOHANG). */
int ck_waitid(int pidfd, int options, int *status, struct ck_usage *usage)
{
    siginfo_t info;
    struct rusage ru;
    info.si_pid = 0;
    long r;
    /* Not the libc function, which has no place for the usage. __WALL: our helper before its exec is a "clone" child. */
    do
        r = syscall(SYS_waitid, P_PIDFD, pidfd, &info, options | __WALL, &ru);
    while (r < 0 && errno == EINTR && options & WNOHANG);
    if (r < 0)
        return -errno;
    if (info.si_pid == 0)
        return 0;
    *status = info.si_code == CLD_EXITED ? (info.si_status & 0xff) << 8
                                         : (info.si_status & 0x7f) | (info.si_code == CLD_DUMPED ? 0x80 : 0);
    if (usage) {
        usage->utime_us = (uint64_t)ru.ru_utime.tv_sec * 1000000u + (uint64_t)ru.ru_utime.tv_usec;
        usage->stime_us = (uint64_t)ru.ru_stime.tv_sec * 1000000u + (uint64_t)ru.ru_stime.tv_usec;
        usage->maxrss_kib = (uint64_t)ru.ru_maxrss;
        usage->minflt = (uint64_t)ru.ru_minflt;
        usage->majflt = (uint64_t)ru.ru_majflt;
        usage->inblock = (uint64_t)ru.ru_inblock;
        usage->oublock = (uint64_t)ru.ru_oublock;
        usage->nvcsw = (uint64_t)ru.ru_nvcsw;
        usage->nivcsw = (uint64_t)ru.ru_nivcsw;
    }
    return 1;
}

int ck_socketpair(int *fds)
{
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0 ? -errno : 0;
}

/* struct pidfd_info, second version (linux/pidfd.h, Linux 6.15) */
struct pidfd_info_k {
    uint64_t mask, cgroupid;
    uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
    int32_t exit_code;
    uint32_t coredump_mask, spare;
};
_Static_assert(sizeof(struct pidfd_info_k) == 72, "struct pidfd_info");

#define PIDFD_GET_INFO_ _IOWR(0xFF, 11, struct pidfd_info_k)
#define PIDFD_INFO_EXIT_ (1u << 3)

/* The process's id as this process sees it (Linux 6.13). */
int ck_pidfd_pid(int pidfd)
{
    struct pidfd_info_k info = {.mask = 1};
    if (ioctl(pidfd, PIDFD_GET_INFO_, &info) < 0)
        return -errno;
    return info.mask & 1 ? (int)info.pid : -ESRCH;
}

/* What the kernel keeps of a process that somebody else has reaped (Linux 6.15). */
int ck_pidfd_exit_status(int pidfd, int *status)
{
    struct pidfd_info_k info = {.mask = PIDFD_INFO_EXIT_};
    if (ioctl(pidfd, PIDFD_GET_INFO_, &info) < 0)
        return -errno;
    if (!(info.mask & PIDFD_INFO_EXIT_))
        return -ENODATA;
    *status = info.exit_code;
    return 0;
}

int ck_pidfd_getfd(int pidfd, int fd)
{
    long r = syscall(438 /* __NR_pidfd_getfd */, pidfd, fd, 0);
    return r < 0 ? -errno : (int)r;
}

/* Bit i of the answer: fds[i] can be read or has ended. Negative numbers are skipped. */
int ck_poll(int *fds, int nfds, int timeout_ms)
{
    struct pollfd p[8];
    int ready = 0;
    if (nfds > (int)countof(p))
        return -EINVAL;
    for (int i = 0; i < nfds; i++)
        p[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    if (poll(p, (nfds_t)nfds, timeout_ms) < 0)
        return -errno;
    for (int i = 0; i < nfds; i++)
        ready |= p[i].revents ? 1 << i : 0;
    return ready;
}

/* ---- mounts ----------------------------------------------------------------------------------------------------- */

static int result(long r)
{
    return r < 0 ? -errno : (int)r;
}

int ck_fsopen(const char *fstype, unsigned int flags)
{
    return result(syscall(__NR_fsopen, fstype, flags));
}

int ck_fsconfig(int fs, unsigned int cmd, const char *key, const char *value, int aux)
{
    return result(syscall(__NR_fsconfig, fs, cmd, key, value, aux));
}

int ck_fsmount(int fs, unsigned int flags, unsigned int attrs)
{
    return result(syscall(__NR_fsmount, fs, flags, attrs));
}

int ck_open_tree(int dirfd, const char *path, unsigned int flags)
{
    return result(syscall(__NR_open_tree, dirfd, path, flags));
}

int ck_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned int flags)
{
    return result(syscall(__NR_move_mount, from, from_path, to, to_path, flags));
}

int ck_mount_setattr(int dirfd, const char *path, unsigned int flags, uint64_t set, uint64_t clear,
                     uint64_t propagation, int userns)
{
    struct mount_attr attr = {.attr_set = set, .attr_clr = clear, .propagation = propagation,
                              .userns_fd = userns >= 0 ? (uint64_t)userns : 0};
    return result(syscall(__NR_mount_setattr, dirfd, path, flags, &attr, sizeof attr));
}

int ck_umount2(const char *target, int flags)
{
    return result(syscall(__NR_umount2, target, flags));
}

int ck_listmount(uint64_t mount_id, uint64_t last, uint64_t *out, size_t count)
{
    struct {
        uint32_t size, spare;
        uint64_t mnt_id, param;
    } req = {.size = sizeof req, .mnt_id = mount_id, .param = last};
    return result(syscall(__NR_listmount, &req, out, count, 0));
}

/* ---- files and descriptors --------------------------------------------------------------------------------------- */

int ck_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    return result(syscall(__NR_openat2, dirfd, path, &how, sizeof how));
}

int ck_mount_id(const char *path, uint64_t *id)
{
    struct statx st;
    int r = result(syscall(SYS_statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_MNT_ID, &st));
    *id = r < 0 ? 0 : st.stx_mnt_id;
    return r;
}

int ck_statfs_type(int fd, uint64_t *type)
{
    struct statfs st;
    if (fstatfs(fd, &st) < 0)
        return -errno;
    *type = (uint64_t)st.f_type;
    return 0;
}

int ck_syncfs(int fd)
{
    return result(syncfs(fd));
}

/* ---- namespaces --------------------------------------------------------------------------------------------------- */

int ck_ioctl(int fd, unsigned long request, uint64_t arg)
{
    return result(ioctl(fd, request, (void *)(uintptr_t)arg));
}

/* ---- security ---------------------------------------------------------------------------------------------------- */

int ck_landlock_abi(void)
{
    return result(syscall(444 /* __NR_landlock_create_ruleset */, NULL, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */));
}

int ck_bpf(int command, void *attr, unsigned int size)
{
    return result(syscall(__NR_bpf, command, attr, size));
}
