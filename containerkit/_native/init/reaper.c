/* PID 1: starts the program, reaps whatever dies, forwards signals, and ends when the program or its owner ends.
 *
 * The kernel kills every process of a pid namespace with its PID 1, so "the tree dies" needs no list of processes.
 * The owner's life is watched through a pidfd, not PR_SET_PDEATHSIG, which is bound to the thread that made us, and not
 * only through a socket, whose other end a forked copy of the owner would keep open.
 */
#include "ck_init.h"

#include <linux/prctl.h>
#include <linux/sched.h>

#define POLLIN 1
#define POLLHUP 16
#define WNOHANG_ 1
#define STACK_SIZE 65536

struct pollfd_k { int fd; short events, revents; };

struct rusage_k {
    int64_t utime[2], stime[2];
    int64_t maxrss, ixrss, idrss, isrss, minflt, majflt, nswap, inblock, oublock, msgsnd, msgrcv, nsignals, nvcsw, nivcsw;
};

struct siginfo_k { uint32_t signo; int32_t err, code; uint32_t pid; uint8_t rest[112]; };

static void program_main(void *arg)
{
    (void)arg;
    run_stage(CK_STAGE_PROGRAM); /* returns only when it failed, and was reported */
    quit(71);
}

/* CLONE_VM: nothing to copy; CLONE_VFORK: when this returns, the program runs or has failed. */
static int start_program(int *pidfd)
{
    static char stack[STACK_SIZE] __attribute__((aligned(16)));
    struct clone_args args = {.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD, .exit_signal = SIGNAL_CHLD,
                              .pidfd = (uint64_t)(uintptr_t)pidfd, .stack = (uint64_t)(uintptr_t)stack,
                              .stack_size = sizeof stack};
    int status_fd = ctx.status_fd;
    last_sysno = __NR_clone3;
    long pid = clone_call(&args, CLONE_ARGS_SIZE_VER0, program_main, 0);
    ctx.status_fd = status_fd; /* the program moved its own copy of it */
    return (int)pid;
}

/* ---- processor time of the whole tree --------------------------------------------------------------------------- */

static uint64_t usage_us(struct rusage_k *u)
{
    sys(getrusage, -1 /* RUSAGE_CHILDREN */, u);
    return (uint64_t)(u->utime[0] + u->stime[0]) * 1000000u + (uint64_t)(u->utime[1] + u->stime[1]);
}

/* utime + stime + cutime + cstime of one live process, in clock ticks of 10 ms (proc_pid_stat(5), fields 14 to 17). */
static uint64_t process_ticks(const char *pid)
{
    char buf[512], path[32], *end = path + sizeof path;
    put_str(put_str(path, end, pid), end, "/stat");
    int fd = (int)sys(openat, ctx.proc_fd, path, CLOEXEC, 0);
    if (fd < 0)
        return 0;
    long n = sys(read, fd, buf, sizeof buf - 1);
    SYS1(__NR_close, fd);
    uint64_t sum = 0, v = 0;
    long i = n - 1;
    while (i >= 0 && buf[i] != ')') /* the name may hold anything, also ")" */
        i--;
    int field = 2, digit = 0;
    for (; i >= 0 && i < n && field < 18; i++) {
        if (buf[i] >= '0' && buf[i] <= '9') {
            v = v * 10 + (uint64_t)(buf[i] - '0');
            digit = 1;
        } else if (buf[i] == ' ') {
            if (digit && field >= 14)
                sum += v;
            v = 0;
            digit = 0;
            field++;
        }
    }
    return sum;
}

struct dirent_k {
    uint64_t ino;
    int64_t off;
    uint16_t reclen;
    uint8_t type;
    char name[];
};

static uint64_t tree_cpu_us(void)
{
    static char buf[8192] __attribute__((aligned(8)));
    struct rusage_k u;
    uint64_t sum = usage_us(&u);
    int dir = (int)sys(openat, ctx.proc_fd, ".", CLOEXEC | 0200000 /* O_DIRECTORY */, 0);
    if (dir < 0)
        return sum;
    long n;
    while ((n = sys(getdents64, dir, buf, sizeof buf)) > 0)
        for (long at = 0; at < n;) {
            struct dirent_k *d = (void *)(buf + at);
            at += d->reclen;
            if (d->name[0] >= '1' && d->name[0] <= '9' && strcmp(d->name, "1") != 0)
                sum += process_ticks(d->name) * 10000;
        }
    SYS1(__NR_close, dir);
    return sum;
}

/* Milliseconds until the limit could be reached at the earliest if every processor worked for us; at least one tick. */
static int cpu_wait_ms(uint64_t used_us)
{
    uint64_t left = ctx.cpu_limit_ns / 1000 - used_us, ms = left / 1000 / ctx.processors;
    return ms < 10 ? 10 : ms > 1000 ? 1000 : (int)ms;
}

/* ---- the end ------------------------------------------------------------------------------------------------------ */

/* Everything is killed and reaped before the message, so that its numbers hold every descendant, also one that outlived
 * its parent. One kill(-1) is enough: a fork that races with it fails with the signal pending (kernel/fork.c). */
static _Noreturn void finish(int status, uint32_t reason)
{
    struct rusage_k u;
    /* As PID 1 of a namespace that reaches its processes; anywhere else it would reach the whole machine's. */
    if (sys(getpid, 0) == 1)
        sys(kill, -1, SIGNAL_KILL);
    long r;
    while ((r = sys(wait4, -1, 0, 0, 0)) > 0 || r == -EINTR)
        ;
    sys(getrusage, -1, &u);
    struct ck_msg m = {.kind = CK_MSG_EXITED, .status = status, .reason = reason,
                       .utime_us = (uint64_t)u.utime[0] * 1000000u + (uint64_t)u.utime[1],
                       .stime_us = (uint64_t)u.stime[0] * 1000000u + (uint64_t)u.stime[1],
                       .maxrss_kib = (uint64_t)u.maxrss, .minflt = (uint64_t)u.minflt, .majflt = (uint64_t)u.majflt,
                       .inblock = (uint64_t)u.inblock, .oublock = (uint64_t)u.oublock, .nvcsw = (uint64_t)u.nvcsw,
                       .nivcsw = (uint64_t)u.nivcsw};
    send_msg(&m, 0, 0, 0);
    /* End as the program did, for whoever only sees our exit status; we cannot die of a signal, being PID 1. */
    quit((status & 0x7f) ? 128 + (status & 0x7f) : status >> 8 & 0xff);
}

static void reap(int program)
{
    int status, ended = 0, program_status = 0;
    long pid;
    while ((pid = sys(wait4, -1, &status, WNOHANG_, 0)) > 0)
        if (pid == program) {
            program_status = status;
            ended = 1;
        }
    if (ended)
        finish(program_status, CK_REASON_EXIT);
}

static void take_signals(int sigfd, int program)
{
    struct siginfo_k info;
    while (sys(read, sigfd, &info, sizeof info) == (long)sizeof info) {
        if (info.signo == SIGNAL_CHLD)
            reap(program);
        else if (program > 0)
            sys(kill, program, info.signo);
        else if (info.signo == SIGNAL_TERM)
            finish(0, CK_REASON_EXIT);
    }
}

/* The kernel ends the program with PID 1 of its namespace; a parent outside of that one does it itself, and reaps it: PID 1
 * in there waits for that, and not everybody has an init that does it in our place. */
static _Noreturn void leave(int program, int code)
{
    if (program > 0 && sys(getpid, 0) != 1) {
        sys(kill, program, SIGNAL_KILL);
        while (sys(wait4, program, 0, 0, 0) == -EINTR)
            ;
    }
    quit(code);
}

_Noreturn void reaper_main(int has_program)
{
    uint64_t all = ~0ull;
    int fds[1 + countof(ctx.given)], program = 0, nfds = 0;

    sys(rt_sigprocmask, 0 /* SIG_BLOCK */, &all, 0, 8);
    int sigfd = (int)sys(signalfd4, -1, &all, 8, CLOEXEC | 04000 /* SFD_NONBLOCK */);
    if (sigfd < 0) {
        report_failure(0, 0, -sigfd);
        quit(71);
    }
    sys(setsid, 0);
    if (has_program) {
        program = start_program(&fds[0]);
        if (program < 0 && !ctx.shared->failed)
            report_failure(0, 0, -program);
        if (program < 0 || ctx.shared->failed)
            leave(program, 71);
        fds[nfds++] = fds[0];
    }
    for (uint32_t i = 0; i < ctx.ngiven; i++)
        fds[nfds++] = ctx.given[i];
    struct ck_msg m = {.kind = CK_MSG_STARTED, .pid = program,
                       .detail_len = ctx.plan->nops * (uint32_t)sizeof(struct ck_time)};
    if (send_msg(&m, ctx.shared->times, fds, (uint32_t)nfds) < 0)
        leave(program, 71);
    /* From here on we hold three descriptors and a few pages: nothing of the program's, so that its pipes end with it. */
    int keep[] = {ctx.status_fd, CK_FD_OWNER, sigfd, ctx.proc_fd}, n = ctx.proc_fd >= 0 ? 4 : 3;
    sys(close_range, 0, 2, 0);
    close_all_but(keep, (uint32_t)n);

    int owned = !(ctx.plan->flags & CK_PLAN_DETACHED);
    struct pollfd_k p[] = {{sigfd, POLLIN, 0}, {owned ? CK_FD_OWNER : -1, POLLIN, 0}, {owned ? ctx.status_fd : -1, 0, 0}};
    for (;;) {
        int wait_ms = -1;
        if (ctx.cpu_limit_ns) {
            uint64_t used = tree_cpu_us();
            if (used * 1000 >= ctx.cpu_limit_ns)
                finish(SIGNAL_KILL, CK_REASON_CPU_LIMIT);
            wait_ms = cpu_wait_ms(used);
        }
        struct { int64_t s, ns; } ts = {wait_ms / 1000, (int64_t)(wait_ms % 1000) * 1000000};
        sys(ppoll, p, countof(p), wait_ms < 0 ? 0 : &ts, 0, 8);
        if (p[1].revents || p[2].revents & POLLHUP)
            leave(program, 137); /* the owner is gone: so are we, and with us the whole namespace */
        if (p[0].revents)
            take_signals(sigfd, program);
    }
}
