/* Namespaces, ids, credentials, and everything a process is besides its mounts. */
#include "ck_init.h"

#include <linux/capability.h>
#include <linux/fcntl.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <linux/stat.h>


static int write_file(int dir, const char *path, const char *data, size_t len)
{
    int fd = (int)sys(openat, dir, path, O_WRONLY | CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long r = sys(write, fd, data, len);
    SYS1(__NR_close, fd);
    return r < 0 ? (int)r : 0;
}

char *first_path(char *buf, size_t size, const char *name)
{
    char *end = buf + size, *p = put_dec(put_str(buf, end, "/proc/"), end, (uint64_t)ctx.first_pid);
    put_str(p, end, name);
    return buf;
}

/* A joiner is never dumpable from here on: what is inside must not open our memory or descriptors (CVE-2016-9962). */
int op_join(const struct ck_op *op)
{
    int r = (int)sys(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    return r < 0 ? r : (int)sys(setns, op->fd, op->a);
}

int op_idmap(const struct ck_op *op)
{
    char path[64];
    uint32_t len;
    int r;
    if (op->flags & CK_F_DENY_GROUPS) {
        r = write_file(FD_CWD, first_path(path, sizeof path, "/setgroups"), "deny", 4);
        if (r < 0)
            return r;
    }
    const char *map = op_str(op, 1, &len);
    r = write_file(FD_CWD, first_path(path, sizeof path, "/gid_map"), map, len);
    if (r < 0)
        return r;
    map = op_str(op, 0, &len);
    return write_file(FD_CWD, first_path(path, sizeof path, "/uid_map"), map, len);
}

/* newuidmap and newgidmap are the system's setuid tools: trusted paths, an empty environment, words kept for the error. */
int op_newidmap(const struct ck_op *op)
{
    const char *argv[1028] = {0}, *env[1] = {0};
    char pid[24];
    int fds[2], status = 0;
    if (op->nstr < 2 || op->nstr > 1024)
        return -E2BIG;
    put_dec(pid, pid + sizeof pid, (uint64_t)ctx.first_pid);
    argv[0] = op_str(op, 0, 0);
    argv[1] = pid;
    for (uint32_t i = 1; i < op->nstr; i++)
        argv[i + 1] = op_str(op, i, 0);
    long r = sys(pipe2, fds, CLOEXEC);
    if (r < 0)
        return (int)r;
    struct clone_args args = {.flags = CLONE_VFORK, .exit_signal = SIGNAL_CHLD};
    long child = sys(clone3, &args, CLONE_ARGS_SIZE_VER0);
    if (child == 0) {
        SYS3(__NR_dup3, fds[1], 2, 0);
        SYS3(__NR_execve, argv[0], argv, env);
        quit(127);
    }
    SYS1(__NR_close, fds[1]);
    if (child > 0) {
        long n;
        while ((n = SYS3(__NR_read, fds[0], ctx.detail + ctx.detail_len, sizeof ctx.detail - ctx.detail_len)) > 0)
            ctx.detail_len += (uint32_t)n;
        while (sys(wait4, child, &status, 0, 0) == -EINTR)
            ;
    }
    SYS1(__NR_close, fds[0]);
    if (child < 0)
        return (int)child;
    if (status)
        last_sysno = __NR_execve;
    return status == 0 ? 0 : status >> 8 == 127 ? -ENOENT : -EPERM;
}

/* Into the time namespace that unshare(2) made for our children: everything that is joined to us later is then in it.
 * The clock may jump by the offsets; the times that we report must not. */
static int enter_time(void)
{
    uint64_t before = now_ns();
    int fd = (int)sys(openat, FD_CWD, "/proc/self/ns/time_for_children", O_RDONLY | CLOEXEC, 0);
    if (fd < 0)
        return fd;
    int r = (int)sys(setns, fd, CLONE_NEWTIME);
    SYS1(__NR_close, fd);
    ctx.clock_shift += before - now_ns();
    return r;
}

/* Done by the first process itself: the cgroup namespace's root is the cgroup that it is in now, and time offsets can be
 * set only before anybody enters the new time namespace. */
int op_unshare(const struct ck_op *op)
{
    int r = (int)sys(unshare, op->a);
    if (r == 0 && op->nstr) {
        uint32_t len;
        const char *offsets = op_str(op, 0, &len);
        r = write_file(FD_CWD, "/proc/self/timens_offsets", offsets, len);
    }
    return r == 0 && op->a & CLONE_NEWTIME ? enter_time() : r;
}

/* What STARTED will bring: no plan of ours has more than a terminal, the namespaces and the root. */
static void give(int fd)
{
    if (ctx.ngiven == countof(ctx.given))
        quit(70);
    ctx.given[ctx.ngiven++] = fd;
}

/* Opened while we may still be looked at: once PID 1 is not dumpable, not even its owner may (ptrace(2), access mode). */
int op_namespaces(const struct ck_op *op)
{
    static const struct { char path[36]; uint64_t flag; } kinds[] = {
        {"/proc/self/ns/user", CLONE_NEWUSER}, {"/proc/self/ns/mnt", CLONE_NEWNS},   {"/proc/self/ns/pid", CLONE_NEWPID},
        {"/proc/self/ns/net", CLONE_NEWNET},   {"/proc/self/ns/ipc", CLONE_NEWIPC},  {"/proc/self/ns/uts", CLONE_NEWUTS},
        {"/proc/self/ns/cgroup", CLONE_NEWCGROUP}, {"/proc/self/ns/time", CLONE_NEWTIME},
        {"/", CK_NAMESPACES_ROOT},
    };
    for (uint32_t i = 0; i < countof(kinds); i++) {
        if (!(op->a & kinds[i].flag))
            continue;
        int fd = (int)sys(openat, FD_CWD, kinds[i].path, O_RDONLY | CLOEXEC, 0);
        if (fd < 0)
            return fd;
        give(fd);
    }
    return 0;
}

/* A network namespace takes the kernel a fifth of the whole start, so the helper makes it while the first process builds
 * the mounts. It belongs to the user namespace of its maker, so the maker joins that one first. */
int op_network(const struct ck_op *op)
{
    /* To another processor, if we may: the first process waits on this one, and nothing would move it for 0.7 ms. */
    uint64_t cpus[128] = {0};
    uint32_t cpu = 0;
    long size = SYS3(__NR_sched_getaffinity, 0, sizeof cpus, cpus);
    SYS3(__NR_getcpu, &cpu, 0, 0);
    cpus[cpu / 64 % 128] &= ~(1ull << cpu % 64);
    if (size > 0)
        SYS3(__NR_sched_setaffinity, 0, size, cpus);
    int r = (int)sys(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (r == 0 && ctx.userns_fd >= 0)
        r = (int)sys(setns, ctx.userns_fd, CLONE_NEWUSER);
    if (r == 0)
        r = (int)sys(unshare, CLONE_NEWNET);
    if (r == 0)
        r = (int)sys(openat, FD_CWD, "/proc/thread-self/ns/net", O_RDONLY | CLOEXEC, 0);
    if (r < 0)
        return r;
    ctx.slots[op->slot] = r;
    return 0;
}

int op_loopback(UNUSED const struct ck_op *op)
{
    struct { char name[16]; short flags; char pad[22]; } ifr = {.name = "lo", .flags = 1 /* IFF_UP */};
    int s = (int)sys(socket, 2 /* AF_INET */, 2 | CLOEXEC /* SOCK_DGRAM */, 0);
    if (s < 0)
        return s;
    int r = (int)sys(ioctl, s, 0x8914 /* SIOCSIFFLAGS */, &ifr);
    SYS1(__NR_close, s);
    return r;
}

int op_hostname(const struct ck_op *op)
{
    uint32_t len;
    const char *name = op_str(op, 0, &len);
    return (int)(op->code == CK_OP_HOSTNAME ? sys(sethostname, name, len) : sys(setdomainname, name, len));
}

/* "0" means the writer, and for one thread alone the kernel then skips the lock that a pid would wait milliseconds for. */
int op_cgroup1(const struct ck_op *op)
{
    long r = sys(write, op->fd, "0", 1);
    return r < 0 ? (int)r : 0;
}

int op_become(const struct ck_op *op)
{
    long r = 0;
    if (!(op->flags & CK_F_NO_GROUPS))
        r = sys(setgroups, 0, 0);
    if (r == -EPERM && op->flags & CK_F_OPTIONAL)
        r = 0; /* a joined user namespace whose map denies setgroups: only ids without a place in it are left */
    if (r == 0)
        r = sys(setresgid, 0, 0, 0);
    if (r == 0)
        r = sys(setresuid, 0, 0, 0);
    return (int)r;
}

/* ---- user names, from the container's own files and without running any of its code ---------------------------- */

struct reader {
    int fd;
    size_t at, len, total;
    char buf[2048];
};

/* A name service file may be anything: a FIFO, a device, a link, huge. It is opened without blocking, must be a regular
 * file, and is read up to a bound (CVE-2024-9341 and its kin). */
static int open_reader(struct reader *r, const char *path)
{
    struct open_how how = {.flags = O_RDONLY | CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve = RESOLVE_NO_MAGICLINKS}; /* "/" is the new root by now */
    struct statx st;
    r->at = r->len = r->total = 0;
    r->fd = (int)sys(openat2, FD_CWD, path, &how, sizeof how);
    if (r->fd < 0)
        return r->fd;
    if (sys(statx, r->fd, "", EMPTY_PATH, STATX_TYPE, &st) < 0 || (st.stx_mode & 0170000) != 0100000)
        return -EINVAL;
    return 0;
}

/* One line into `line`; longer ones are skipped. 0 at the end. */
static int read_line(struct reader *r, char *line, size_t size)
{
    size_t n = 0;
    for (;;) {
        if (r->at == r->len) {
            long got = r->total > (1u << 20) ? 0 : SYS3(__NR_read, r->fd, r->buf, sizeof r->buf);
            if (got <= 0)
                break;
            r->total += (size_t)got;
            r->at = 0;
            r->len = (size_t)got;
        }
        char c = r->buf[r->at++];
        if (c == '\n') {
            if (n < size) {
                line[n] = 0;
                return 1;
            }
            n = 0;
        } else if (n < size) {
            if (n + 1 < size)
                line[n++] = c;
            else
                n = size;
        }
    }
    if (n == 0 || n >= size)
        return 0;
    line[n] = 0;
    return 1;
}

static int split(char *line, char **field, int max)
{
    int n = 0;
    field[n++] = line;
    for (char *p = line; *p && n < max; p++)
        if (*p == ':') {
            *p = 0;
            field[n++] = p + 1;
        }
    return n;
}

static const char *account_name, *account_home; /* of who was found last: parts of a line */
static int gives_home;

/* By name, or by `*uid` when that is empty. */
static int find_user(const char *name, uint32_t *uid, uint32_t *gid)
{
    static struct reader r;
    static char line[1024];
    char *f[7];
    int e = open_reader(&r, "/etc/passwd");
    if (e < 0)
        return e == -ENOENT ? -ESRCH : e;
    e = -ESRCH;
    while (e == -ESRCH && read_line(&r, line, sizeof line)) {
        uint32_t id = 0, group = 0;
        if (split(line, f, 7) != 7)
            continue;
        int known = get_dec(f[2], strlen(f[2]), &id) == 0 && get_dec(f[3], strlen(f[3]), &group) == 0;
        if (name[0] ? strcmp(f[0], name) != 0 : !known || id != *uid)
            continue;
        e = known ? 0 : -EINVAL;
        *uid = id;
        *gid = group;
        account_name = f[0];
        account_home = f[5][0] ? f[5] : "/";
    }
    SYS1(__NR_close, r.fd);
    return e;
}

static int is_member(char *list, const char *name)
{
    for (char *p = list;; p++) {
        if (*p == ',' || *p == 0) {
            char c = *p;
            *p = 0;
            if (strcmp(list, name) == 0)
                return 1;
            if (!c)
                return 0;
            list = p + 1;
        }
    }
}

/* With `group`: its id. Without: every group that lists `user` as a member. */
static int find_groups(const char *user, const char *group, uint32_t *gids, uint32_t max, uint32_t *count)
{
    static struct reader r;
    static char line[8192];
    char *f[4];
    uint32_t gid;
    int e = open_reader(&r, "/etc/group");
    if (e < 0)
        return e == -ENOENT ? (group ? -ESRCH : 0) : e;
    e = group ? -ESRCH : 0;
    while (e != -EINVAL && read_line(&r, line, sizeof line)) {
        if (split(line, f, 4) != 4)
            continue;
        if (group ? strcmp(f[0], group) != 0 : !is_member(f[3], user))
            continue;
        if (get_dec(f[2], strlen(f[2]), &gid) < 0)
            e = -EINVAL;
        else if (*count < max)
            gids[(*count)++] = gid;
        if (group) {
            e = e == -EINVAL ? e : 0;
            break;
        }
    }
    SYS1(__NR_close, r.fd);
    return e;
}

/* ---- credentials ------------------------------------------------------------------------------------------------ */

static int lock_bounding(uint64_t keep)
{
    for (unsigned long cap = 0; cap < 64; cap++) {
        if (keep >> cap & 1)
            continue;
        long r = sys(prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (r == -EINVAL)
            break; /* past the last one that this kernel knows */
        if (r < 0)
            return (int)r;
    }
    /* With nothing kept, uid 0 has no meaning left: exec and setuid give nothing back, and this cannot be undone. */
    if (!keep)
        return (int)sys(prctl, PR_SET_SECUREBITS,
                        SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |
                            SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED,
                        0, 0, 0);
    return 0;
}

static int set_caps(uint64_t keep, int ambient)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    uint32_t lo = (uint32_t)keep, hi = (uint32_t)(keep >> 32);
    struct __user_cap_data_struct d[2] = {{lo, lo, ambient ? lo : 0}, {hi, hi, ambient ? hi : 0}};
    long r = sys(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (r == 0)
        r = sys(capset, &h, d);
    for (unsigned long cap = 0; r == 0 && ambient && cap < 64; cap++)
        if (keep >> cap & 1)
            r = sys(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return (int)r;
}

/* Groups before user, bounding set and securebits while SETPCAP is still ours, no_new_privs last. */
int op_creds(const struct ck_op *op)
{
    uint32_t uid = (uint32_t)op->b, gid = (uint32_t)(op->b >> 32), groups[256], ngroups = 0, i;
    const char *user = op_str(op, 0, 0), *group = op_str(op, 1, 0);
    int account = !!(op->flags & CK_F_ACCOUNT);
    long r = 0;
    gives_home = account;
    account_home = "/";
    if (user[0] || account) {
        ctx.fail_arg = 0;
        r = find_user(user, &uid, &gid);
        /* As docker: who asks for a group gets that one alone. */
        if (r == 0 && !(account && group[0]))
            r = find_groups(account_name, 0, groups, countof(groups), &ngroups);
        if (!user[0])
            r = 0; /* a number needs no account */
    }
    if (r == 0 && group[0]) {
        ctx.fail_arg = 1;
        uint32_t n = 0;
        /* Digits are a number, also when the group file has such a name; the user's own group must not replace it. */
        r = get_dec(group, strlen(group), &gid) == 0 ? 0 : find_groups(0, group, &gid, 1, &n);
    }
    if (r < 0) {
        last_sysno = -1; /* not the kernel's answer but ours */
        return (int)r;
    }
    ctx.fail_arg = -1;
    /* Else a set-group-id program would be rid of it, and of what it is denied (CVE-2022-36109). */
    if (account && ngroups < countof(groups))
        groups[ngroups++] = gid;
    for (i = 2; i < op->nstr && ngroups < countof(groups); i++)
        memcpy(&groups[ngroups++], op_str(op, i, 0), 4);
    if (op->flags & CK_F_DROP_BOUNDING && (r = lock_bounding(op->a)) < 0)
        return (int)r;
    if (!(op->flags & CK_F_KEEP_CREDS)) {
        if (op->a)
            r = sys(prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
        if (r == 0 && !(op->flags & CK_F_NO_GROUPS))
            r = sys(setgroups, ngroups, groups);
        if (r == -EPERM && op->flags & CK_F_OPTIONAL && (account || ngroups == 0))
            r = 0;
        if (r == 0)
            r = sys(setresgid, gid, gid, gid);
        if (r == 0)
            r = sys(setresuid, uid, uid, uid);
        if (r < 0)
            return (int)r;
    }
    if (op->flags & CK_F_DROP_BOUNDING && (r = set_caps(op->a, !!(op->flags & CK_F_AMBIENT))) < 0)
        return (int)r;
    if (op->flags & CK_F_NNP && (r = sys(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) < 0)
        return (int)r;
    /* setresuid and capset make a process dumpable again in some cases; PID 1 and a joiner must not be. */
    return ctx.plan->mode == CK_MODE_EXEC ? 0 : (int)sys(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* ---- the terminal ------------------------------------------------------------------------------------------------ */

/* The peer is opened by an ioctl on the master, not by name, so it is the terminal that belongs to it (CVE-2025-52565). */
int op_pty(const struct ck_op *op)
{
    struct { uint16_t rows, cols, x, y; } size = {(uint16_t)op->a, (uint16_t)op->b, 0, 0};
    int unlock = 0;
    int master = (int)sys(openat, ctx.slots[op->slot], "ptmx", O_RDWR | O_NOCTTY | CLOEXEC, 0);
    if (master < 0)
        return master;
    int r = (int)sys(ioctl, master, 0x40045431 /* TIOCSPTLCK */, &unlock);
    int peer = r < 0 ? r : (int)sys(ioctl, master, 0x5441 /* TIOCGPTPEER */, O_RDWR | O_NOCTTY | CLOEXEC);
    if (peer < 0)
        return peer;
    if (size.rows)
        r = (int)sys(ioctl, peer, 0x5414 /* TIOCSWINSZ */, &size);
    if (r == 0 && op->nstr) {
        uint32_t owner[1];
        memcpy(owner, op_str(op, 0, 0), sizeof owner);
        r = (int)sys(fchown, peer, owner[0], -1);
    }
    for (int fd = 0; r >= 0 && fd < 3; fd++)
        r = (int)sys(dup3, peer, fd, 0);
    SYS1(__NR_close, peer);
    give(master);
    return r < 0 ? r : 0;
}

/* In a /proc of our own: the container's root may have none, or show less. */
int op_cpu_limit(const struct ck_op *op)
{
    ctx.proc_fd = ctx.slots[op->slot];
    ctx.cpu_limit_ns = op->a;
    ctx.processors = op->b ? op->b : 1;
    return 0;
}

/* ---- the program ------------------------------------------------------------------------------------------------ */

int op_session(const struct ck_op *op)
{
    long r = sys(setsid, 0);
    if (r == -EPERM)
        r = 0; /* a session leader already */
    if (r >= 0 && op->flags & CK_F_CTTY)
        r = sys(ioctl, 0, 0x540e /* TIOCSCTTY */, 0);
    return r < 0 ? (int)r : 0;
}

int op_rlimit(const struct ck_op *op)
{
    uint64_t limit[2] = {op->a, op->b};
    return (int)sys(prlimit64, 0, op->fd, limit, 0);
}

int op_umask(const struct ck_op *op)
{
    sys(umask, op->a);
    return 0;
}

int op_nice(const struct ck_op *op)
{
    return (int)sys(setpriority, 0, 0, op->fd);
}

int op_affinity(const struct ck_op *op)
{
    uint32_t len;
    const char *mask = op_str(op, 0, &len);
    long r = sys(sched_setaffinity, 0, len, mask);
    return r < 0 ? (int)r : 0;
}

/* In the caller's /proc, while the old root is there: no file of the container's can stand in for it. It must be procfs
 * all the same (CVE-2019-16884), and must have kept what it was given. */
int op_setting(const struct ck_op *op)
{
    uint32_t len;
    uint64_t fs[16];
    const char *value = op_str(op, 1, &len);
    int fd = (int)sys(openat, op->fd, op_str(op, 0, 0), (op->b ? O_WRONLY : O_RDWR) | CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long r = sys(fstatfs, fd, fs);
    if (r == 0)
        r = fs[0] == 0x9fa0 /* PROC_SUPER_MAGIC */ ? sys(write, fd, value, len) : -EXDEV;
    if (r >= 0 && !op->b && (r = sys(pread64, fd, ctx.detail, sizeof ctx.detail - 1, 0)) >= 0) {
        ctx.detail[ctx.detail_len = (uint32_t)r] = 0;
        for (char *p = ctx.detail; *p; p++)
            if (*p == '\t' || *p == '\n') /* between the numbers of a list, and at the end */
                *p = p[1] ? ' ' : 0;
        r = strcmp(value, ctx.detail) == 0 ? 0 : -ERANGE;
    }
    SYS1(__NR_close, fd);
    return r < 0 ? (int)r : 0;
}

/* Sources first move above every target, so that no target is overwritten before it was copied. Whatever is not named
 * here is closed, but for the status socket, which exec closes: its end of file says that the program runs. */
int op_fds(const struct ck_op *op)
{
    int from[256], to[257], top = CK_FD_FIRST, n = (int)op->nstr;
    if (n > 256)
        return -EMFILE;
    for (int i = 0; i < n; i++) {
        uint32_t len;
        const char *pair = op_str(op, (uint32_t)i, &len);
        if (len != 8)
            return -EINVAL;
        memcpy(&from[i], pair, 4);
        memcpy(&to[i], pair + 4, 4);
        if (from[i] < 0 || from[i] >= (int)ctx.plan->nfds || to[i] < 3)
            return -EBADF;
        if (to[i] > top)
            top = to[i];
    }
    for (int i = 0; i < n; i++)
        if ((from[i] = (int)sys(fcntl, from[i], DUPFD_CLOEXEC, top + 1)) < 0)
            return from[i];
    int status = (int)sys(fcntl, ctx.status_fd, DUPFD_CLOEXEC, top + 1);
    if (status < 0)
        return status;
    ctx.status_fd = status;
    for (int i = 0; i < n; i++) {
        int r = (int)sys(dup3, from[i], to[i], 0);
        if (r < 0)
            return r;
    }
    to[n++] = status;
    return close_all_but(to, (uint32_t)n);
}

int op_chdir(const struct ck_op *op)
{
    char cwd[4096];
    int r = (int)sys(chdir, op_str(op, 0, 0));
    if (r < 0)
        return r;
    /* A working directory outside the root has no absolute name: "(unreachable)..." (CVE-2024-21626). */
    long n = sys(getcwd, cwd, sizeof cwd);
    return n < 0 ? (int)n : cwd[0] == '/' ? 0 : -EXDEV;
}

struct listener {
    int fd, result, done;
};

enum { NOT_YET = -4096 }; /* no descriptor and no errno */

static void send_listener(void *arg)
{
    struct listener *l = arg;
    struct ck_msg m = {.kind = CK_MSG_LISTENER};
    int fd;
    while ((fd = __atomic_load_n(&l->fd, __ATOMIC_ACQUIRE)) == NOT_YET)
        SYS1(__NR_sched_yield, 0);
    l->result = fd < 0 ? fd : send_msg(&m, 0, &fd, 1);
    __atomic_store_n(&l->done, 1, __ATOMIC_RELEASE);
    for (;;)
        SYS1(__NR_exit, 0);
}

/* Once the filter is there, any call of ours may be one that waits for the supervisor, who has not got the listener yet.
 * So a thread that the filter does not bind sends it, and we wait for that thread without a call. */
static int load_and_send(uint64_t flags, const void *program)
{
    static char stack[16384] __attribute__((aligned(16)));
    struct listener l = {.fd = NOT_YET};
    struct clone_args args = {.flags = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD,
                              .stack = (uint64_t)(uintptr_t)stack, .stack_size = sizeof stack};
    last_sysno = __NR_clone3;
    int r = (int)clone_call(&args, CLONE_ARGS_SIZE_VER0, send_listener, &l);
    if (r < 0)
        return r;
    r = (int)sys(seccomp, 1, flags, program);
    if (r == -EINVAL && flags & CK_SECCOMP_WAIT_KILLABLE) /* Linux 5.19 */
        r = (int)sys(seccomp, 1, flags & ~(uint64_t)CK_SECCOMP_WAIT_KILLABLE, program);
    __atomic_store_n(&l.fd, r, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&l.done, __ATOMIC_ACQUIRE))
        __asm__ volatile("" ::: "memory");
    return l.result;
}

int op_prctl(const struct ck_op *op)
{
    return (int)sys(prctl, (uint32_t)op->a, op->b, 0, op->a >> 32, 0);
}

int op_keyring(UNUSED const struct ck_op *op)
{
    long r = sys(keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, 0);
    return r < 0 ? (int)r : 0;
}

static int landlock_file(int ruleset, uint64_t access, int fd)
{
    struct { uint64_t access; int32_t fd; } __attribute__((packed)) beneath = {access, fd};
    int r = (int)sys(landlock_add_rule, ruleset, 1 /* LANDLOCK_RULE_PATH_BENEATH */, &beneath, 0);
    beneath.access &= CK_LANDLOCK_FILE; /* of what is not a directory, nothing else can be allowed */
    return r == -EINVAL ? (int)sys(landlock_add_rule, ruleset, 1, &beneath, 0) : r;
}

/* A rule is about the file that its path means in the new root now. Opening one with O_PATH gives no right to it. */
static int landlock_path(int ruleset, const char *rule, int optional)
{
    struct open_how how = {.flags = OPEN_PATH | CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
    uint64_t access;
    memcpy(&access, rule, sizeof access);
    int fd = (int)sys(openat2, FD_CWD, rule + sizeof access, &how, sizeof how);
    if (fd < 0)
        return optional ? 0 : fd;
    int r = landlock_file(ruleset, access, fd);
    SYS1(__NR_close, fd);
    return r;
}

int op_landlock(const struct ck_op *op)
{
    uint32_t len;
    const char *rule = op_str(op, 0, &len);
    int ruleset = (int)sys(landlock_create_ruleset, rule, len, 0), r = 0;
    if (ruleset < 0)
        return ruleset;
    /* /dev/stdout is the standard output again. Pipes and sockets need no rule, and get EBADFD. */
    for (int fd = 0; fd < 3 && op->b; fd++)
        landlock_file(ruleset, op->b, fd);
    for (uint32_t i = 1; i < op->nstr && r == 0; i++) {
        ctx.fail_arg = (int)i;
        rule = op_str(op, i, &len);
        r = len < 8 ? -EINVAL : i <= op->a ? landlock_path(ruleset, rule, !!(op->flags & CK_F_OPTIONAL))
                                           : (int)sys(landlock_add_rule, ruleset, 2 /* LANDLOCK_RULE_NET_PORT */, rule, 0);
    }
    if (r == 0) {
        ctx.fail_arg = -1;
        r = (int)sys(landlock_restrict_self, ruleset, 0);
    }
    SYS1(__NR_close, ruleset);
    return r;
}

/* The caller looks from outside, where nothing of ours can lie to it. */
int op_attest(UNUSED const struct ck_op *op)
{
    struct ck_msg m = {.kind = CK_MSG_COMPLETE};
    char go;
    int r = send_msg(&m, 0, 0, 0);
    return r < 0 ? r : sys(read, ctx.status_fd, &go, 1) == 1 ? 0 : -ECANCELED;
}

/* The last thing before exec, so that the filter need not allow what the set-up does. */
int op_seccomp(const struct ck_op *op)
{
    uint32_t size;
    const char *code = op_str(op, 0, &size);
    struct { uint16_t len; const void *filter; } program = {(uint16_t)(size / 8), code};
    if (op->a & CK_SECCOMP_NEW_LISTENER)
        return load_and_send(op->a, &program);
    return (int)sys(seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, op->a, &program);
}

/* ENOENT may mean the program, or what its first line or its ELF header asks for: Python reads that from the head. */
static void attach_head(const char *path)
{
    int fd = (int)SYS4(__NR_openat, FD_CWD, path, O_RDONLY | CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return;
    long n = SYS3(__NR_read, fd, ctx.detail, sizeof ctx.detail);
    ctx.detail_len = n > 0 ? (uint32_t)n : 0;
    SYS1(__NR_close, fd);
}

/* What the plan leaves empty is for /etc/passwd to say. */
static const char *with_home(void)
{
    static char home[1024 + 6] = "HOME="; /* longer than any line */
    memcpy(home + 5, account_home, strlen(account_home) + 1);
    return home;
}

int op_exec(const struct ck_op *op)
{
    uint64_t words = op->a + op->b + 2, unblocked = 0;
    if (op->a > op->nstr || op->b > op->nstr || op->nstr < op->a + op->b + 1)
        return -EINVAL;
    const char **argv = (const char **)SYS6(__NR_mmap, 0, words * sizeof(char *), 3, 0x22, -1, 0);
    if ((long)argv < 0 && (long)argv > -4096)
        return (int)(long)argv;
    const char **envp = argv + op->a + 1, *at = op_str(op, 0, 0);
    for (uint64_t i = 0; i < op->a + op->b; i++) { /* op_str would walk from the start each time */
        uint32_t len;
        memcpy(&len, at - 4, 4);
        (i < op->a ? argv : envp - op->a)[i] = at;
        at += ((len + 4) & ~3u) + 4;
    }
    for (uint64_t i = 0; i < op->b && gives_home; i++)
        if (strcmp(envp[i], "HOME=") == 0)
            envp[i] = with_home();
    sys(rt_sigprocmask, 2 /* SIG_SETMASK */, &unblocked, 0, 8);
    int err = -ENOENT, worst = 0;
    for (uint32_t i = (uint32_t)(op->a + op->b); i < op->nstr; i++) {
        const char *path = op_str(op, i, 0);
        int r = (int)sys(execve, path, argv, envp);
        if (r == -ENOENT || r == -ENOTDIR) {
            if (ctx.detail_len == 0 && (attach_head(path), ctx.detail_len))
                worst = (int)i + 1; /* it is there: what it names is missing */
            continue;
        }
        ctx.fail_arg = (int)i;
        if (r != -EACCES)
            return r;
        err = r;
    }
    if (worst && err == -ENOENT)
        ctx.fail_arg = worst - 1;
    last_sysno = __NR_execve;
    return err;
}
