/* The floor that containerkit's start time is measured against.
 *
 *   reference N PARALLEL ROOTFS CMD...
 *
 * runs CMD N times, PARALLEL at a time, each in a new container over ROOTFS, and prints one line of JSON:
 *   {"runs_us": [...], "wall_us": ...}     each run from before its first system call until it is completely reaped.
 *
 * It makes the kernel do what `containerkit.run(CMD, rootfs=ROOTFS)` makes it do as root with all defaults, in the same
 * order (but one thing after the other: containerkit makes the network namespace beside the mounts, on another
 * processor), and nothing else: no interpreter, no plan, no helper program, no checks. What a start costs here is what the
 * kernel wants for it; what the library costs above it is ours. Keep it in step with `containerkit.explain`: there is
 * one function per step, and the tables `outside`, `early`, `inside` and `program` near the end say who takes which
 * step and in which order.
 *
 *   the starter   pipes for stdout and stderr, a socketpair, clone3(user mnt pid net ipc uts, pidfd); then `outside`:
 *                 uid_map and gid_map, an idmapped detached clone of ROOTFS, sent to the first process ("go");
 *                 then reads both pipes to their end, waits on the pidfd, reaps.
 *   first process stdin, stdout and stderr; `early`, at the same time as `outside`: unshare(cgroup time), private
 *                 propagation, lo up; waits for "go"; `inside`: becomes id 0, not dumpable, no user namespaces, a tmpfs as
 *                 workbench, the overlay, /proc with read-only parts and masks, /sys, /dev, /tmp, pivot_root, host name,
 *                 drops every privilege; then vforks the program, reaps, kills what is left, exits with the program's
 *                 status.
 *   the program   `program`: setsid, umask, descriptors, Landlock, rlimits, signal mask, the filter of system calls that
 *                 the file REFERENCE_FILTER holds; execve.
 *
 * Linux 6.8 (lowerdir+), glibc 2.36 (the mount calls), root.  cc -O2 -std=gnu17 -Wall -Wextra -Werror reference.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ID_MAP "0 200000 65536"
#define SCRATCH_SIZE "64m"
#define SCRATCH_INODES "65536"
#define HOSTNAME "sandbox"
#define LAST_CAP 40
#define SETUP_FAILED 71
#define PRIVATE_DATA ((uint64_t)(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC))
#define LOCKED_BITS                                                                              \
    (SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | \
     SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED)

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define TRY(call)          \
    do {                   \
        if ((call) < 0)    \
            return -1;     \
    } while (0)

/* Names below /proc. A zero ends each list; `main` keeps what needs a cover. */
static const char *masked[] = {
    "acpi", "asound", "bootconfig", "buddyinfo", "bus/pci", "cmdline", "config.gz", "diskstats", "driver",
    "dynamic_debug", "interrupts", "iomem", "ioports", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup",
    "kpagecount", "kpageflags", "latency_stats", "modules", "mtrr", "pagetypeinfo", "partitions", "sched_debug", "scsi",
    "slabinfo", "swaps", "timer_list", "timer_stats", "version_signature", "vmallocinfo", "zoneinfo", NULL,
};
static const char *masked_kind[COUNT(masked)]; /* which cover each needs */
static const char *read_only[] = {"bus", "fs", "irq", "sys", "sysrq-trigger", NULL};
static const char *sys_parts[] = {"devices/system/cpu", "devices/system/node", NULL};
static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
static const struct {
    const char *name, *target;
} dev_links[] = {
    {"fd", "/proc/self/fd"},       {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
    {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
};
static const struct {
    int resource;
    rlim_t limit;
} rlimits[] = {{RLIMIT_CORE, 1}, {RLIMIT_NPROC, 512}, {RLIMIT_NOFILE, 1024}};

struct start {
    const char *rootfs;
    char **argv;
    int out[2], err[2], go[2]; /* ours, theirs */
    int pidfd;
    pid_t pid;
    int lower, scratch, root, covers, proc, sys, dev; /* mounts */
};

struct step {
    const char *name;
    int (*take)(struct start *);
};

/* ---- what several steps need ---------------------------------------------------------------------------------- */

static int set_attr(int mount, uint64_t set, int recursive)
{
    struct mount_attr attr = {.attr_set = set};
    return mount_setattr(mount, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof attr);
}

static int new_mount(const char *type, const char *const (*options)[2], uint64_t attributes)
{
    int fs, mount;
    TRY(fs = fsopen(type, FSOPEN_CLOEXEC));
    for (; options && (*options)[0]; options++)
        TRY(fsconfig(fs, (*options)[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, (*options)[0], (*options)[1], 0));
    TRY(fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    TRY(mount = fsmount(fs, FSMOUNT_CLOEXEC, attributes));
    close(fs);
    return mount;
}

static int open_in(int root, const char *path)
{
    struct open_how how = {
        .flags = O_PATH | O_CLOEXEC,
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    };
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

/* The mount goes onto the descriptor that came out of the resolution below `base`. */
static int attach(int mount, int base, const char *path)
{
    int at, moved;
    TRY(mount);
    TRY(at = open_in(base, path));
    moved = move_mount(mount, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    close(at);
    return moved;
}

static int attach_and_close(int mount, int base, const char *path)
{
    TRY(attach(mount, base, path));
    return close(mount);
}

static int clone_below(int base, const char *path, uint64_t attributes, int recursive)
{
    int at, tree;
    TRY(at = open_in(base, path));
    TRY(tree = open_tree(at, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0)));
    close(at);
    if (attributes)
        TRY(set_attr(tree, attributes, recursive));
    return tree;
}

static int write_once(const char *path, const char *text)
{
    int fd;
    TRY(fd = open(path, O_WRONLY | O_CLOEXEC));
    ssize_t n = write(fd, text, strlen(text));
    close(fd);
    return n < 0 ? -1 : 0;
}

/* ---- outside: the starter ------------------------------------------------------------------------------------- */

static int id_maps(struct start *s)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/gid_map", s->pid);
    TRY(write_once(path, ID_MAP));
    snprintf(path, sizeof path, "/proc/%d/uid_map", s->pid);
    return write_once(path, ID_MAP);
}

static int lower_tree(struct start *s)
{
    char path[64];
    int userns;
    snprintf(path, sizeof path, "/proc/%d/ns/user", s->pid);
    TRY(userns = open(path, O_RDONLY | O_CLOEXEC));
    TRY(s->lower = open_tree(AT_FDCWD, s->rootfs, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
    struct mount_attr attr = {
        .attr_set = MOUNT_ATTR_IDMAP | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        .propagation = MS_PRIVATE,
        .userns_fd = (uint64_t)userns,
    };
    TRY(mount_setattr(s->lower, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr));
    return close(userns);
}

union fd_message {
    char room[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static int say_go(struct start *s)
{
    union fd_message control = {0};
    char byte = 0;
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(c), &s->lower, sizeof(int));
    TRY(sendmsg(s->go[0], &m, MSG_NOSIGNAL));
    return close(s->lower);
}

/* ---- early: the first process, before it has ids ---------------------------------------------------------------- */

static int standard_streams(struct start *s)
{
    int null;
    TRY(dup2(s->err[1], STDERR_FILENO));
    TRY(dup2(s->out[1], STDOUT_FILENO));
    TRY(null = open("/dev/null", O_RDONLY | O_CLOEXEC));
    return dup2(null, STDIN_FILENO);
}

static int late_namespaces(struct start *s)
{
    int fd;
    (void)s;
    TRY(unshare(CLONE_NEWCGROUP | CLONE_NEWTIME));
    TRY(fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC));
    TRY(setns(fd, CLONE_NEWTIME));
    return close(fd);
}

static int private_propagation(struct start *s)
{
    (void)s;
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

static int loopback(struct start *s)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int sock;
    (void)s;
    TRY(sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    TRY(ioctl(sock, SIOCSIFFLAGS, &request));
    return close(sock);
}

static int wait_for_go(struct start *s)
{
    union fd_message control = {0};
    char byte;
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    close(s->go[0]);
    TRY(recvmsg(s->go[1], &m, MSG_CMSG_CLOEXEC));
    if (!CMSG_FIRSTHDR(&m))
        return errno = EPIPE, -1;
    memcpy(&s->lower, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
    return close(s->go[1]);
}

/* ---- inside: the first process builds the container -------------------------------------------------------------- */

/* The raw calls: glibc's own would look for other threads to change too. */
static int become_root(struct start *s)
{
    (void)s;
    TRY(syscall(SYS_setgroups, 0, NULL));
    TRY(syscall(SYS_setresgid, 0, 0, 0));
    TRY(syscall(SYS_setresuid, 0, 0, 0));
    return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static int no_user_namespaces(struct start *s)
{
    char back[8];
    int fd;
    (void)s;
    TRY(fd = open("/proc/sys/user/max_user_namespaces", O_RDWR | O_CLOEXEC));
    TRY(write(fd, "0", 1));
    TRY(pread(fd, back, sizeof back, 0));
    return close(fd);
}

static int scratch(struct start *s)
{
    static const char *const options[][2] = {
        {"size", SCRATCH_SIZE}, {"nr_inodes", SCRATCH_INODES}, {"mode", "755"}, {NULL, NULL}};
    TRY(s->scratch = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV));
    TRY(move_mount(s->scratch, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    return fchdir(s->scratch);
}

static int attach_lower(struct start *s)
{
    TRY(mkdir("l0", 0755));
    return attach_and_close(s->lower, s->scratch, "l0");
}

static int overlay(struct start *s)
{
    static const char *const options[][2] = {{"lowerdir+", "l0"}, {"upperdir", "u"},  {"workdir", "w"},
                                             {"userxattr", NULL}, {"volatile", NULL}, {NULL, NULL}};
    TRY(mkdir("u", 0755));
    TRY(mkdir("w", 0755));
    TRY(s->root = new_mount("overlay", options, MOUNT_ATTR_NODEV));
    TRY(mkdir("root", 0755));
    return attach(s->root, s->scratch, "root");
}

static int covers(struct start *s)
{
    static const char *const options[][2] = {{"size", "64k"}, {"nr_inodes", "8"}, {NULL, NULL}};
    TRY(mkdir("m", 0755));
    TRY(s->covers = new_mount("tmpfs", options, PRIVATE_DATA));
    TRY(attach(s->covers, s->scratch, "m"));
    TRY(mkdirat(s->covers, "dir", 0555));
    TRY(mknodat(s->covers, "file", S_IFREG | 0444, 0));
    return set_attr(s->covers, MOUNT_ATTR_RDONLY, 0);
}

static int proc(struct start *s)
{
    return attach(s->proc = new_mount("proc", NULL, PRIVATE_DATA), s->root, "proc");
}

static int read_only_paths(struct start *s)
{
    for (const char **name = read_only; *name; name++) {
        int tree;
        TRY(tree = open_tree(s->proc, *name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
        TRY(set_attr(tree, MOUNT_ATTR_RDONLY | PRIVATE_DATA, 1));
        TRY(move_mount(tree, "", s->proc, *name, MOVE_MOUNT_F_EMPTY_PATH));
        close(tree);
    }
    return 0;
}

static int masks(struct start *s)
{
    for (size_t i = 0; masked[i]; i++) {
        int cover;
        TRY(cover = open_tree(s->covers, masked_kind[i], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
        TRY(move_mount(cover, "", s->proc, masked[i], MOVE_MOUNT_F_EMPTY_PATH));
        close(cover);
    }
    return 0;
}

static int make_dirs(int base, const char *path)
{
    char prefix[64];
    for (const char *end = path; end;) {
        end = strchr(end + 1, '/');
        snprintf(prefix, sizeof prefix, "%.*s", end ? (int)(end - path) : (int)strlen(path), path);
        if (mkdirat(base, prefix, 0755) < 0 && errno != EEXIST)
            return -1;
    }
    return 0;
}

static int sys(struct start *s)
{
    static const char *const options[][2] = {{"size", "64k"}, {"mode", "755"}, {NULL, NULL}};
    int sysfs;
    TRY(attach(s->sys = new_mount("tmpfs", options, PRIVATE_DATA), s->root, "sys"));
    TRY(mkdir("s", 0755));
    TRY(attach(sysfs = new_mount("sysfs", NULL, MOUNT_ATTR_RDONLY | PRIVATE_DATA), s->scratch, "s"));
    for (const char **part = sys_parts; *part; part++) {
        TRY(make_dirs(s->sys, *part));
        TRY(attach_and_close(clone_below(sysfs, *part, MOUNT_ATTR_RDONLY | PRIVATE_DATA, 1), s->sys, *part));
    }
    TRY(set_attr(s->sys, MOUNT_ATTR_RDONLY, 0));
    return close(sysfs);
}

static int dev(struct start *s)
{
    static const char *const options[][2] = {{"size", "64k"}, {"mode", "755"}, {NULL, NULL}};
    return attach(s->dev = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), s->root, "dev");
}

/* The host's nodes: "/" is still the old root, the workbench only lies on top of it. */
static int dev_nodes(struct start *s)
{
    for (size_t i = 0; i < COUNT(devices); i++) {
        char path[32];
        int node;
        snprintf(path, sizeof path, "/dev/%s", devices[i]);
        TRY(node = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
        TRY(set_attr(node, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, 0));
        TRY(mknodat(s->dev, devices[i], S_IFREG | 0666, 0));
        TRY(attach_and_close(node, s->dev, devices[i]));
    }
    return 0;
}

static int dev_symlinks(struct start *s)
{
    for (size_t i = 0; i < COUNT(dev_links); i++)
        TRY(symlinkat(dev_links[i].target, s->dev, dev_links[i].name));
    return 0;
}

static int dev_pts(struct start *s)
{
    static const char *const options[][2] = {
        {"newinstance", NULL}, {"ptmxmode", "666"}, {"mode", "620"}, {NULL, NULL}};
    TRY(mkdirat(s->dev, "pts", 0755));
    return attach_and_close(new_mount("devpts", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), s->dev, "pts");
}

static int dev_shm(struct start *s)
{
    static const char *const options[][2] = {{"size", "64m"}, {"mode", "1777"}, {NULL, NULL}};
    TRY(mkdirat(s->dev, "shm", 0755));
    return attach_and_close(new_mount("tmpfs", options, PRIVATE_DATA), s->dev, "shm");
}

static int dev_mqueue(struct start *s)
{
    TRY(mkdirat(s->dev, "mqueue", 0755));
    return attach_and_close(new_mount("mqueue", NULL, PRIVATE_DATA), s->dev, "mqueue");
}

static int dev_read_only(struct start *s)
{
    return set_attr(s->dev, MOUNT_ATTR_RDONLY, 0);
}

static int tmp(struct start *s)
{
    static const char *const options[][2] = {{"size", "64m"}, {"nr_inodes", "65536"}, {"mode", "1777"},
                                             {"uid", "0"},    {"gid", "0"},           {NULL, NULL}};
    return attach_and_close(new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), s->root, "tmp");
}

/* umount2 takes off what is stacked on top of ".": first the workbench, which lies on the old root's "/", then the old
 * root. With one call only, "/.." would still be the host. */
static int pivot(struct start *s)
{
    TRY(fchdir(s->root));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
    TRY(umount2(".", MNT_DETACH));
    return chdir("/");
}

static int host_name(struct start *s)
{
    (void)s;
    return sethostname(HOSTNAME, strlen(HOSTNAME));
}

static int drop_privilege(struct start *s)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {0};
    (void)s;
    for (unsigned long cap = 0; cap <= LAST_CAP; cap++)
        TRY(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0));
    TRY(prctl(PR_SET_SECUREBITS, LOCKED_BITS, 0, 0, 0));
    TRY(syscall(SYS_setgroups, 0, NULL));
    TRY(syscall(SYS_setresgid, 0, 0, 0));
    TRY(syscall(SYS_setresuid, 0, 0, 0));
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    TRY(syscall(SYS_capset, &header, none));
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* ---- the program ---------------------------------------------------------------------------------------------- */

static int session(struct start *s)
{
    (void)s;
    return setsid();
}

static int file_mode(struct start *s)
{
    (void)s;
    umask(022);
    return 0;
}

static int descriptors(struct start *s)
{
    (void)s;
    return close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
}

static int set_rlimits(struct start *s)
{
    (void)s;
    for (size_t i = 0; i < COUNT(rlimits); i++) {
        struct rlimit now;
        TRY(getrlimit((__rlimit_resource_t)rlimits[i].resource, &now));
        rlim_t limit = rlimits[i].limit < now.rlim_max ? rlimits[i].limit : now.rlim_max;
        TRY(setrlimit((__rlimit_resource_t)rlimits[i].resource, &(struct rlimit){limit, limit}));
    }
    return 0;
}

static int signal_mask(struct start *s)
{
    sigset_t none;
    (void)s;
    sigemptyset(&none);
    return sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Rights by number (linux/landlock.h knows them one by one): everything but making device nodes below "/" and in /tmp,
 * to read and to write in /proc, and ioctl too in /dev. Scopes: abstract sockets and signals. */
static int landlock(struct start *s)
{
    static const struct { const char *path; uint64_t rights; } places[] = {
        {"/", 0x77bf}, {"/proc", 0x400f}, {"/dev", 0xf7bf}, {"/tmp", 0x77bf},
    };
    struct { uint64_t files, ports, scopes; } attr = {0xffff, 0, 3};
    struct { uint64_t rights; int32_t fd; } __attribute__((packed)) rule;
    int rules;
    (void)s;
    TRY(rules = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0));
    for (size_t i = 0; i < COUNT(places); i++) {
        rule.rights = places[i].rights;
        TRY(rule.fd = open(places[i].path, O_PATH | O_CLOEXEC));
        TRY(syscall(SYS_landlock_add_rule, rules, 1 /* LANDLOCK_RULE_PATH_BENEATH */, &rule, 0));
        close(rule.fd);
    }
    TRY(syscall(SYS_landlock_restrict_self, rules, 0));
    return close(rules);
}

static struct sock_filter filter[4096];
static unsigned short filter_length;

static int system_calls(struct start *s)
{
    struct sock_fprog calls = {filter_length, filter};
    (void)s;
    return filter_length ? (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &calls) : 0;
}

static int execute(struct start *s)
{
    static char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    return execve(s->argv[0], s->argv, env);
}

/* ---- the order of the steps, and who takes them ------------------------------------------------------------------ */

static const struct step outside[] = {
    {"id maps", id_maps},
    {"idmapped clone of the root file system", lower_tree},
    {"go", say_go},
};
static const struct step early[] = {
    {"standard streams", standard_streams},
    {"cgroup and time namespaces", late_namespaces},
    {"private propagation", private_propagation},
    {"loopback", loopback},
    {"wait for go", wait_for_go},
};
static const struct step inside[] = {
    {"become id 0", become_root},
    {"no user namespaces", no_user_namespaces},
    {"scratch tmpfs", scratch},
    {"attach the lower tree", attach_lower},
    {"overlay", overlay},
    {"covers", covers},
    {"/proc", proc},
    {"read-only paths", read_only_paths},
    {"masked paths", masks},
    {"/dev", dev},
    {"device nodes", dev_nodes},
    {"/dev symlinks", dev_symlinks},
    {"/dev/pts", dev_pts},
    {"/dev/shm", dev_shm},
    {"/dev/mqueue", dev_mqueue},
    {"/dev read-only", dev_read_only},
    {"/tmp", tmp},
    {"/sys", sys},
    {"pivot_root", pivot},
    {"host name", host_name},
    {"drop privilege", drop_privilege},
};
static const struct step program[] = {
    {"session", session},
    {"umask", file_mode},
    {"descriptors", descriptors},
    {"Landlock", landlock},
    {"rlimits", set_rlimits},
    {"signal mask", signal_mask},
    {"system call filter", system_calls},
    {"execve", execute},
};

static int take(const struct step *steps, size_t count, struct start *s)
{
    for (size_t i = 0; i < count; i++)
        if (steps[i].take(s) < 0) {
            dprintf(STDERR_FILENO, "reference: %s: %s\n", steps[i].name, strerror(errno));
            return -1;
        }
    return 0;
}

/* ---- the processes ---------------------------------------------------------------------------------------------- */

/* vfork: the program runs its steps in PID 1's memory until execve, so nothing is copied. */
static pid_t start_program(struct start *s)
{
    pid_t pid = vfork();
    if (pid == 0) {
        take(program, COUNT(program), s);
        _exit(SETUP_FAILED);
    }
    return pid;
}

static int reap(pid_t pid)
{
    int status;
    pid_t got;
    while ((got = wait4(-1, &status, 0, NULL)) != pid)
        if (got < 0)
            return SETUP_FAILED;
    kill(-1, SIGKILL);
    while (wait4(-1, NULL, 0, NULL) > 0)
        continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static _Noreturn void first_process(struct start *s)
{
    if (take(early, COUNT(early), s) < 0 || take(inside, COUNT(inside), s) < 0)
        _exit(SETUP_FAILED);
    pid_t pid = start_program(s);
    _exit(pid < 0 ? SETUP_FAILED : reap(pid));
}

static int clone_first_process(struct start *s)
{
    struct clone_args args = {
        .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)&s->pidfd,
        .exit_signal = SIGCHLD,
    };
    TRY(pipe2(s->out, O_CLOEXEC));
    TRY(pipe2(s->err, O_CLOEXEC));
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s->go));
    long pid = syscall(SYS_clone3, &args, sizeof args);
    TRY(pid);
    if (pid == 0)
        first_process(s);
    s->pid = (pid_t)pid;
    close(s->out[1]);
    close(s->err[1]);
    return close(s->go[1]);
}

/* What the container says passes through; a good start of /bin/true says nothing. */
static void read_to_end(struct start *s)
{
    struct pollfd pipes[2] = {{s->out[0], POLLIN, 0}, {s->err[0], POLLIN, 0}};
    for (int open = 2; open;) {
        if (poll(pipes, 2, -1) < 0)
            continue;
        for (int i = 0; i < 2; i++) {
            char buffer[4096];
            if (!pipes[i].revents)
                continue;
            ssize_t n = read(pipes[i].fd, buffer, sizeof buffer);
            if (n > 0) {
                dprintf(STDERR_FILENO, "%.*s", (int)n, buffer);
                continue;
            }
            close(pipes[i].fd);
            pipes[i].fd = -1;
            open--;
        }
    }
}

static int wait_for_end(struct start *s)
{
    struct pollfd ended = {s->pidfd, POLLIN, 0};
    siginfo_t info = {0};
    while (poll(&ended, 1, -1) < 0 && errno == EINTR)
        continue;
    TRY(waitid(P_PIDFD, (id_t)s->pidfd, &info, WEXITED));
    close(s->pidfd);
    close(s->go[0]);
    return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t run_ns(const char *rootfs, char **argv)
{
    struct start s = {.rootfs = rootfs, .argv = argv};
    uint64_t begin = now_ns();
    if (clone_first_process(&s) < 0) {
        perror("reference: clone3");
        return 0;
    }
    int started = take(outside, COUNT(outside), &s);
    if (started < 0)
        kill(s.pid, SIGKILL);
    read_to_end(&s);
    int status = wait_for_end(&s);
    uint64_t taken = now_ns() - begin;
    if (started < 0 || status != 0) {
        fprintf(stderr, "reference: `%s` ended with status %d\n", argv[0], status);
        return 0;
    }
    return taken;
}

struct shared {
    unsigned next;
    uint64_t ns[];
};

/* One process per lane, so that no lane waits for another's memory lock; they take runs from one counter. */
static int lane(struct shared *shared, unsigned runs, const char *rootfs, char **argv)
{
    for (unsigned i; (i = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED)) < runs;)
        if (!(shared->ns[i] = run_ns(rootfs, argv)))
            return 1;
    return 0;
}

static int run_lanes(struct shared *shared, unsigned runs, unsigned lanes, const char *rootfs, char **argv)
{
    int failed = 0, status;
    for (unsigned i = 0; i < lanes; i++) {
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(lane(shared, runs, rootfs, argv));
        }
    }
    while (wait(&status) > 0)
        failed |= status != 0;
    return failed;
}

/* Keep what this kernel has and what grants `mode` to others: the rest is closed to ids that are not the host's. */
static void keep_open_ones(const char **names, const char *below, mode_t mode, const char *always)
{
    const char **kept = names;
    char path[64];
    struct stat st;
    for (; *names; names++) {
        snprintf(path, sizeof path, "%s/%s", below, *names);
        if (lstat(path, &st) == 0 && (st.st_mode & mode || strcmp(*names, always) == 0))
            *kept++ = *names;
    }
    *kept = NULL;
}

static void print_json(const struct shared *shared, unsigned runs, uint64_t wall_ns)
{
    printf("{\"runs_us\": [");
    for (unsigned i = 0; i < runs; i++)
        printf("%s%.1f", i ? ", " : "", (double)shared->ns[i] / 1000);
    printf("], \"wall_us\": %.1f}\n", (double)wall_ns / 1000);
}

/* The library's own filter, as bytes: what a filter costs depends on its instructions. */
static int read_filter(const char *path)
{
    int fd;
    if (!path)
        return 0;
    TRY(fd = open(path, O_RDONLY | O_CLOEXEC));
    ssize_t n = read(fd, filter, sizeof filter);
    close(fd);
    filter_length = n < 0 ? 0 : (unsigned short)((size_t)n / sizeof filter[0]);
    return n < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: reference N PARALLEL ROOTFS CMD...\n");
        return 2;
    }
    unsigned runs = (unsigned)strtoul(argv[1], NULL, 10), lanes = (unsigned)strtoul(argv[2], NULL, 10);
    size_t size = sizeof(struct shared) + runs * sizeof(uint64_t);
    struct shared *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!runs || !lanes || shared == MAP_FAILED) {
        fprintf(stderr, "reference: N and PARALLEL are numbers above 0\n");
        return 2;
    }
    umask(0);
    if (read_filter(getenv("REFERENCE_FILTER")) < 0) {
        perror("reference: REFERENCE_FILTER");
        return 2;
    }
    keep_open_ones(masked, "/proc", S_IROTH, "");
    for (size_t i = 0; masked[i]; i++) {
        char path[64];
        struct stat st;
        snprintf(path, sizeof path, "/proc/%s", masked[i]);
        masked_kind[i] = stat(path, &st) == 0 && S_ISDIR(st.st_mode) ? "dir" : "file";
    }
    keep_open_ones(read_only, "/proc", S_IWOTH, "sys");
    keep_open_ones(sys_parts, "/sys", S_IROTH, "");
    uint64_t begin = now_ns();
    int failed = lanes == 1 ? lane(shared, runs, argv[3], argv + 4) : run_lanes(shared, runs, lanes, argv[3], argv + 4);
    uint64_t wall = now_ns() - begin;
    if (!failed)
        print_json(shared, runs, wall);
    return failed;
}
