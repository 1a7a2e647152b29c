/* ck-init: the small program between the host and the container.
 *
 * The processes, and how they talk
 *
 *   host program ──clone(VM|VFORK)+execveat──> helper ──clone3(namespaces, CLONE_PARENT)──> first process
 *        ▲                                       │  writes id maps, clones mounts from outside   │
 *        └───────────── status socket ───────────┴────── go + mount descriptors ────────────────►│
 *
 * The helper is this program, started by the host program with an empty environment, from a sealed memory file, with
 * exactly the descriptors that the plan counts. It is single-threaded and knows nothing of the host program's memory.
 * It runs the plan's JOIN operations, clones the first process (a child of the host program, not of the helper), runs
 * the OUTSIDE operations, which need the caller's own namespaces and privilege, says "go", runs the BESIDE operations,
 * which take the kernel so long that they are worth another processor, sends what they made, and exits.
 * The first process runs the EARLY operations, which need no ids, at the same time; waits for "go"; runs INSIDE: it
 * builds the mounts, leaves the old root, drops privilege. Then it becomes the program (EXEC), or starts it with the
 * PROGRAM operations and stays as PID 1 (INIT), or just stays (HOLD). To start a program in a pid namespace that exists,
 * it stays outside of that one and is the program's parent: PID 1 in there cannot end before everything in it is reaped.
 *
 * Why it is safe: nothing from the container's tree is executed, loaded or followed before the old root is detached
 * (every path below a container root goes through openat2 with RESOLVE_IN_ROOT, every mount lands on a descriptor);
 * all lengths and indexes of the plan are checked before the first operation; each operation that fails ends the start,
 * reports itself, and leaves nothing, because all it made lives in namespaces that die with the process.
 */
#include "ck_init.h"

#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/socket.h>
#include <linux/stat.h>
#include <linux/time.h>

#define AF_UNIX 1
#define SOCK_SEQPACKET 5
#define MSG_NOSIGNAL 0x4000
#define MSG_CMSG_CLOEXEC 0x40000000
#define SOL_SOCKET_ANY 1
#define SCM_RIGHTS 1

struct ctx ctx;

/* ---- descriptors over a socket ------------------------------------------------------------------------------- */

struct piece { void *base; size_t len; };

struct msghdr_k {
    void *name;
    int namelen;
    struct piece *iov;
    size_t iovlen;
    void *control;
    size_t controllen;
    unsigned flags;
};

struct cmsg_fds {
    size_t len;
    int level, type;
    int fds[CK_SLOTS];
};

static long transfer(int sock, struct piece *iov, size_t niov, struct cmsg_fds *c, size_t nfds, int sending)
{
    struct msghdr_k m = {.iov = iov, .iovlen = niov};
    if (nfds || !sending) {
        m.control = c;
        m.controllen = offsetof(struct cmsg_fds, fds) + nfds * sizeof(int);
        c->len = m.controllen;
        c->level = SOL_SOCKET_ANY;
        c->type = SCM_RIGHTS;
    }
    long r;
    do
        r = sending ? sys(sendmsg, sock, &m, MSG_NOSIGNAL) : sys(recvmsg, sock, &m, MSG_CMSG_CLOEXEC);
    while (r == -EINTR);
    if (!sending && m.controllen < offsetof(struct cmsg_fds, fds))
        c->len = offsetof(struct cmsg_fds, fds);
    return r;
}

int send_msg(const struct ck_msg *msg, const void *detail, const int *fds, uint32_t nfds)
{
    static struct cmsg_fds c;
    struct ck_msg m = *msg;
    m.t0 = ctx.shared ? ctx.shared->t0 : 0;
    m.now = now_ns();
    struct piece iov[2] = {{&m, sizeof m}, {(void *)(uintptr_t)detail, m.detail_len}};
    for (uint32_t i = 0; i < nfds; i++)
        c.fds[i] = fds[i];
    long r = transfer(ctx.status_fd, iov, m.detail_len ? 2 : 1, &c, nfds, 1);
    return r < 0 ? (int)r : 0;
}

/* ---- the plan ------------------------------------------------------------------------------------------------- */

static uint32_t padded(uint32_t len)
{
    return (len + 4) & ~3u; /* room for the NUL */
}

static int check_op(const struct ck_op *op, uint32_t room, uint32_t nfds)
{
    if (room < sizeof *op || op->size < sizeof *op || op->size > room || op->size % 8)
        return -EINVAL;
    if (op->code == 0 || op->code >= CK_OP_COUNT || op->stage >= CK_STAGE_COUNT)
        return -EINVAL;
    if (op->slot < -1 || op->slot >= CK_SLOTS || op->base < -1 || op->base >= CK_SLOTS)
        return -EINVAL;
    if (op->slot < 0 &&
        (op->code == CK_OP_TREE || op->code == CK_OP_FS || op->code == CK_OP_CLONE || op->code == CK_OP_PTY ||
         op->code == CK_OP_NETWORK || op->code == CK_OP_ENTER || op->code == CK_OP_CPU_LIMIT))
        return -EINVAL;
    /* RLIMIT and NICE keep a small number in `fd`; every other operation a descriptor that we were given. */
    if (op->code != CK_OP_RLIMIT && op->code != CK_OP_NICE && (op->fd < -1 || op->fd >= (int)nfds))
        return -EINVAL;
    const char *p = (const char *)(op + 1), *end = (const char *)op + op->size;
    for (uint32_t i = 0; i < op->nstr; i++) {
        uint32_t len;
        if ((size_t)(end - p) < 8)
            return -EINVAL;
        memcpy(&len, p, 4);
        p += 4;
        if (len > CK_PLAN_MAX || padded(len) > (size_t)(end - p) || p[len] != 0)
            return -EINVAL;
        p += padded(len);
    }
    return 0;
}

static int check_plan(const struct ck_plan_header *h, uint64_t size)
{
    if (size < sizeof *h || size > CK_PLAN_MAX || h->magic != CK_PLAN_MAGIC || h->version != CK_PLAN_VERSION)
        return -EINVAL;
    if (h->size != size || h->nops > CK_OPS_MAX || h->mode > CK_MODE_HOLD || h->nfds < CK_FD_FIRST || h->nfds > 65536)
        return -EINVAL;
    if (h->cgroup_fd < -1 || h->cgroup_fd >= (int)h->nfds)
        return -EINVAL;
    uint32_t at = sizeof *h;
    for (uint32_t i = 0; i < h->nops; i++) {
        const struct ck_op *op = (const void *)((const char *)h + at);
        int r = check_op(op, h->size - at, h->nfds);
        if (r < 0)
            return r;
        at += op->size;
    }
    return at == h->size ? 0 : -EINVAL;
}

const char *op_str(const struct ck_op *op, uint32_t i, uint32_t *len)
{
    const char *p = (const char *)(op + 1);
    if (i >= op->nstr)
        quit(70);
    for (uint32_t n;; p += padded(n)) {
        memcpy(&n, p, 4);
        p += 4;
        if (i-- == 0) {
            if (len)
                *len = n;
            return p;
        }
    }
}

#define RUN(CODE, name) case CK_OP_##CODE: return op_##name(op)

static int execute(const struct ck_op *op)
{
    switch ((enum ck_op_code)op->code) {
    RUN(JOIN, join); RUN(IDMAP, idmap); RUN(NEWIDMAP, newidmap); RUN(TREE, tree); RUN(FS, fs); RUN(ATTACH, attach);
    RUN(CLONE, clone); RUN(ATTR, attr); RUN(SCRATCH, scratch); RUN(MKDIR, mkdir); RUN(SYMLINK, symlink);
    RUN(FILE, file); RUN(MASK, mask); RUN(READONLY, readonly); RUN(PIVOT, pivot); RUN(PRIVATE, private);
    RUN(UNSHARE, unshare); RUN(LOOPBACK, loopback); RUN(HOSTNAME, hostname); RUN(DOMAINNAME, hostname);
    RUN(CGROUP1, cgroup1); RUN(BECOME, become); RUN(PTY, pty); RUN(CPU_LIMIT, cpu_limit); RUN(CREDS, creds);
    RUN(SESSION, session); RUN(RLIMIT, rlimit); RUN(UMASK, umask); RUN(NICE, nice); RUN(AFFINITY, affinity);
    RUN(SETTING, setting); RUN(FDS, fds); RUN(CHDIR, chdir); RUN(EXEC, exec); RUN(NAMESPACES, namespaces);
    RUN(SECCOMP, seccomp); RUN(NETWORK, network); RUN(ENTER, enter); RUN(LANDLOCK, landlock); RUN(PRCTL, prctl);
    RUN(KEYRING, keyring); RUN(ATTEST, attest);
    case CK_OP_COUNT: break;
    }
    return -EINVAL;
}

/* A start that takes more than 4.29 s has hung; its times end there. */
static uint32_t since_start(uint64_t ns)
{
    ns -= ctx.shared->t0;
    return ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

int run_stage(enum ck_stage stage)
{
    const char *p = (const char *)(ctx.plan + 1);
    ctx.stage_ns = now_ns();
    for (uint32_t i = 0; i < ctx.plan->nops; i++) {
        const struct ck_op *op = (const void *)p;
        p += op->size;
        if (op->stage != stage)
            continue;
        ctx.fail_arg = -1;
        ctx.detail_len = 0;
        struct ck_time *t = &ctx.shared->times[i];
        t->start = since_start(ctx.stage_ns);
        int r = execute(op);
        if (unlikely(r < 0)) {
            report_failure(op, i, -r);
            return r;
        }
        ctx.stage_ns = now_ns();
        t->end = since_start(ctx.stage_ns);
    }
    return 0;
}

void report_failure(const struct ck_op *op, uint32_t index, int err)
{
    struct ck_msg m = {.kind = CK_MSG_FAILED, .op = op ? index : UINT32_MAX, .err = err, .sysno = last_sysno,
                       .arg = op ? ctx.fail_arg : -1, .detail_len = ctx.detail_len};
    ctx.shared->failed = 1;
    send_msg(&m, ctx.detail, 0, 0);
}

/* ---- small things --------------------------------------------------------------------------------------------- */

uint64_t now_ns(void)
{
    struct { int64_t sec, nsec; } ts;
    SYS2(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, &ts);
    return (uint64_t)ts.sec * 1000000000u + (uint64_t)ts.nsec + ctx.clock_shift;
}

/* Really closed, not only close-on-exec: a directory descriptor of the host must not be there when the program's
 * working directory is entered (CVE-2024-21626). Sorts `keep`, which is a handful. */
int close_all_but(int *keep, uint32_t n)
{
    unsigned from = 3;
    for (uint32_t i = 1; i < n; i++)
        for (uint32_t j = i; j > 0 && keep[j] < keep[j - 1]; j--) {
            int t = keep[j];
            keep[j] = keep[j - 1];
            keep[j - 1] = t;
        }
    for (uint32_t i = 0; i < n; from = (unsigned)keep[i++] + 1)
        if ((unsigned)keep[i] > from)
            sys(close_range, from, keep[i] - 1, 0);
    return (int)sys(close_range, from, ~0u, 0);
}

/* CLONE_CLEAR_SIGHAND and exec leave ignored signals ignored, and Python ignores SIGPIPE and SIGXFSZ. */
static void reset_signals(void)
{
    struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } dfl = {0, 0, 0, 0};
    for (int sig = 1; sig <= 64; sig++)
        SYS4(__NR_rt_sigaction, sig, &dfl, 0, 8);
}

/* ---- the stages ----------------------------------------------------------------------------------------------- */

static int fail_outside(int err)
{
    report_failure(0, 0, -err);
    return err;
}

/* What the helper made for us: descriptors for our slots. */
static void receive_slots(void)
{
    static struct cmsg_fds c;
    static uint32_t which[CK_SLOTS];
    struct piece iov = {which, sizeof which};
    long got = transfer(ctx.go_fd, &iov, 1, &c, CK_SLOTS, 0);
    if (got <= 0)
        quit(71); /* the helper died or failed; it has said why if it could */
    size_t nfds = (c.len - offsetof(struct cmsg_fds, fds)) / sizeof(int);
    for (size_t i = 0; i < nfds && i + 1 < (size_t)got / 4; i++)
        ctx.slots[which[i + 1] % CK_SLOTS] = c.fds[i];
}

int op_enter(const struct ck_op *op)
{
    receive_slots();
    return (int)sys(setns, ctx.slots[op->slot], op->a);
}

static _Noreturn void first_process(int go)
{
    const struct ck_plan_header *h = ctx.plan;

    ctx.go_fd = go;
    if (run_stage(CK_STAGE_EARLY) < 0)
        quit(71);
    receive_slots();
    sys(prctl, PR_SET_NAME, "ck-init", 0, 0, 0);
    sys(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (run_stage(CK_STAGE_INSIDE) < 0)
        quit(71);
    if (h->mode != CK_MODE_EXEC)
        reaper_main(h->mode == CK_MODE_INIT);
    struct ck_msg m = {.kind = CK_MSG_STARTED, .detail_len = h->nops * (uint32_t)sizeof(struct ck_time)};
    if (send_msg(&m, ctx.shared->times, ctx.given, ctx.ngiven) < 0)
        quit(71);
    run_stage(CK_STAGE_PROGRAM); /* returns only when it fails */
    quit(71);
}

static int start_first_process(int go[2])
{
    const struct ck_plan_header *h = ctx.plan;
    int pidfd = -1;
    uint64_t whose = h->flags & CK_PLAN_DETACHED ? 0 : CLONE_PARENT;
    struct clone_args args = {.flags = h->clone_flags | whose | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd};
    size_t size = CLONE_ARGS_SIZE_VER0;
    if (h->cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)h->cgroup_fd;
        size = CLONE_ARGS_SIZE_VER2;
    }
    long r = sys(socketpair, AF_UNIX, SOCK_SEQPACKET | CLOEXEC, 0, go);
    if (r < 0)
        return fail_outside((int)r);
    r = sys(clone3, &args, size);
    if (r < 0)
        return fail_outside((int)r);
    if (r == 0) {
        SYS1(__NR_close, go[0]);
        first_process(go[1]);
    }
    SYS1(__NR_close, go[1]);
    ctx.first_pid = (int)r;
    ctx.first_pidfd = pidfd;
    struct ck_msg m = {.kind = CK_MSG_CLONED, .pid = (int)r};
    return send_msg(&m, 0, &pidfd, 1);
}

static int say_go(int sock)
{
    static struct cmsg_fds c;
    static uint32_t which[CK_SLOTS + 1];
    size_t n = 0;
    for (uint32_t i = 0; i < CK_SLOTS; i++)
        if (ctx.slots[i] >= 0) {
            c.fds[n] = ctx.slots[i];
            which[++n] = i;
        }
    for (size_t i = 0; i < n; i++)
        ctx.slots[which[i + 1]] = -1;
    if (n > CK_SLOTS - 1) /* one message carries at most 253 descriptors, and the receiver's buffer CK_SLOTS numbers */
        return -EMFILE;
    struct piece iov = {which, (n + 1) * sizeof which[0]};
    long r = transfer(sock, &iov, 1, &c, n, 1);
    return r < 0 ? (int)r : 0;
}

/* Go on as a process that is really in the joined pid namespace. The host program is its parent too, and reaps it. */
static int hop(void)
{
    int pidfd = -1, told[2];
    char end = 0;
    struct clone_args args = {.flags = CLONE_PARENT | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd};
    long pid = sys(pipe2, told, CLOEXEC);
    if (pid == 0)
        pid = sys(clone3, &args, CLONE_ARGS_SIZE_VER0);
    if (pid < 0)
        return fail_outside((int)pid);
    if (pid == 0) {
        /* Not before the message is out: the host program must know us before it hears that the program runs. */
        SYS1(__NR_close, told[1]);
        if (sys(read, told[0], &end, 1) != 1)
            quit(71);
        SYS1(__NR_close, told[0]);
        return 0;
    }
    struct ck_msg m = {.kind = CK_MSG_HOPPED, .pid = (int)pid};
    quit(send_msg(&m, 0, &pidfd, 1) < 0 || sys(write, told[1], &end, 1) < 0 ? 71 : 0);
}

/* Every signal is blocked since ck_spawn. This one ends us, but never between a clone and the message that tells of it:
 * nobody could reap a process that nobody knows. */
static void may_be_given_up(int yes)
{
    uint64_t signal = 1ull << (CK_SIGNAL_GIVE_UP - 1);
    sys(rt_sigprocmask, yes ? 1 /* SIG_UNBLOCK */ : 0 /* SIG_BLOCK */, &signal, 0, 8);
}

static int helper(void)
{
    int go[2];
    may_be_given_up(1);
    if (run_stage(CK_STAGE_JOIN) < 0)
        return 71;
    may_be_given_up(0);
    if ((ctx.plan->flags & CK_PLAN_HOP && hop() < 0) || start_first_process(go) < 0)
        return 71;
    may_be_given_up(1);
    int r = run_stage(CK_STAGE_OUTSIDE);
    if (r == 0 && ctx.plan->clone_flags & CLONE_NEWUSER && ctx.plan->flags & CK_PLAN_BESIDE)
        r = userns_fd(); /* now: once it is not dumpable, not even its owner may open it */
    if (r >= 0)
        r = say_go(go[0]);
    if (r >= 0 && ctx.plan->flags & CK_PLAN_BESIDE && (r = run_stage(CK_STAGE_BESIDE)) == 0)
        r = say_go(go[0]);
    if (r < 0 && !ctx.shared->failed && r != -EPIPE && r != -ECONNRESET)
        fail_outside(r);
    if (r < 0)
        SYS4(__NR_pidfd_send_signal, ctx.first_pidfd, SIGNAL_KILL, 0, 0);
    return r < 0 ? 71 : 0;
}

static int load_plan(void)
{
    struct statx st;
    if (SYS5(__NR_statx, CK_FD_PLAN, "", EMPTY_PATH, STATX_SIZE | STATX_TYPE, &st) < 0 ||
        (st.stx_mode & 0170000) != 0100000 || st.stx_size < sizeof *ctx.plan || st.stx_size > CK_PLAN_MAX)
        return -EINVAL;
    long p = SYS6(__NR_mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE, CK_FD_PLAN, 0);
    if (p < 0 && p > -4096)
        return (int)p;
    const struct ck_plan_header *h = (const void *)p;
    int r = check_plan(h, st.stx_size);
    if (r < 0)
        return r;
    size_t shared = sizeof(struct shared) + h->nops * sizeof(struct ck_time);
    long s = SYS6(__NR_mmap, 0, shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s < 0 && s > -4096)
        return (int)s;
    ctx.plan = h;
    ctx.shared = (void *)s;
    return 0;
}

int ck_main(void);
int ck_main(void)
{
    uint64_t t0 = now_ns();
    ctx.status_fd = CK_FD_STATUS;
    ctx.first_pidfd = ctx.userns_fd = ctx.scratch_fd = ctx.proc_fd = -1;
    for (int i = 0; i < CK_SLOTS; i++)
        ctx.slots[i] = -1;
    if (load_plan() < 0)
        return 64; /* not started by the library: nothing to say and nobody to say it to */
    ctx.shared->t0 = t0;
    /* The plan's descriptors are ours by inheritance: none may reach the program by accident. */
    sys(close, CK_FD_PLAN);
    sys(close_range, CK_FD_STATUS, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
    reset_signals();
    sys(chdir, "/");
    sys(umask, 0);
    sys(personality, 0);
    sys(prctl, PR_SET_TIMERSLACK, 50000, 0, 0, 0); /* as at boot; 0 would mean what we inherited */
    /* By this name the owner finds what we have cloned, should we be killed before we could tell of it. */
    char name[16] = "ck-";
    put_dec(name + 3, name + sizeof name, (uint64_t)sys(getpid, 0));
    sys(prctl, PR_SET_NAME, name, 0, 0, 0);
    quit(helper());
}

#ifdef CK_HOSTED
int main(void)
{
    quit(ck_main());
}
#elif defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall ck_main\n\tmov %eax, %edi\n\tmov $231, %eax\n\tsyscall\n\tud2\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tbl ck_main\n\tmov x8, #94\n\tsvc 0\n\tbrk 0\n");
#endif
