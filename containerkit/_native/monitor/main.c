/* ck-monitor: one for each detached container, outside of it, from its first start to its end.
 *
 * It starts ck-init with the container's plan, again and again if the restart policy says so; keeps what the program
 * says in log files; hands its input and signals on; and writes down how it is. It is nobody's child, reads nothing of
 * the container but its output, and ends with it. A lock in the container's directory is held as long as it lives:
 * that, and no record, tells that a container runs. When it is killed, PID 1 of the container sees its owner gone.
 */
#include "monitor.h"

#include <linux/prctl.h>
#include <linux/sched.h>

struct monitor mon;

enum { LOCK_UN_ = 8, PR_SET_NAME_ = 15, PR_SET_DUMPABLE_ = 4, CLOSE_RANGE_CLOEXEC_ = 4 };
static const uint64_t SECOND = 1000000000u;

uint64_t clock_ns(int clock)
{
    struct { int64_t sec, nsec; } ts;
    SYS2(__NR_clock_gettime, clock, &ts);
    return (uint64_t)ts.sec * SECOND + (uint64_t)ts.nsec;
}

/* ---- the end of a run, and what comes after it ---------------------------------------------------------------------- */

static int exit_code(int status)
{
    return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

int signal_program(int signum)
{
    if (mon.state.status != MON_RUNNING)
        return -ESRCH;
    if (signum == SIGNAL_KILL || (uint32_t)signum == mon.config.stop_signal)
        mon.state.flags |= MON_STOP_REQUESTED;
    int to = signum == SIGNAL_KILL || mon.program_pidfd < 0 ? mon.first_pidfd : mon.program_pidfd;
    return (int)sys(pidfd_send_signal, to, signum, 0, 0);
}

/* Without grace it is killed at once. While it waits to be started again there is nothing to stop but that. */
void ask_to_stop(int signum, uint64_t grace_ms, int restart)
{
    mon.restart_now = restart;
    if (!restart)
        mon.state.flags |= MON_STOP_REQUESTED;
    if (mon.start_at)
        mon.start_at = 1;
    if (mon.state.status != MON_RUNNING)
        return;
    uint32_t flags = mon.state.flags;
    signal_program(grace_ms ? signum : SIGNAL_KILL);
    mon.state.flags = flags;
    mon.kill_at = grace_ms ? clock_ns(1) + grace_ms * 1000000u : 0;
}

static int again(void)
{
    if (mon.restart_now)
        return 1;
    if (mon.state.flags & MON_STOP_REQUESTED)
        return 0;
    if (mon.config.policy == MON_ON_FAILURE)
        return (mon.state.exit_status != 0 || mon.state.flags & MON_FAILED) &&
               (!mon.config.retries || mon.state.restarts < mon.config.retries);
    return mon.config.policy != MON_NO;
}

/* 100 ms, and twice as long each time up to a minute; from the beginning when the program has run for ten seconds. */
static void wait_to_start(void)
{
    if (mon.restart_now) {
        mon.start_at = 1;
    } else {
        int ran = clock_ns(1) - mon.run_since > 10 * SECOND;
        mon.backoff_ns = ran || !mon.backoff_ns ? SECOND / 10 : mon.backoff_ns * 2;
        if (mon.backoff_ns > 60 * SECOND)
            mon.backoff_ns = 60 * SECOND;
        mon.start_at = clock_ns(1) + mon.backoff_ns;
        mon.state.restarts++;
    }
    mon.state.status = MON_RESTARTING;
    write_state();
}

static _Noreturn void finish(void)
{
    mon.state.status = MON_EXITED;
    write_state();
    /* Before anybody can see our sockets closed; a lock that others have a copy of would outlive us. */
    sys(flock, mon.lock, LOCK_UN_);
    wake_subscribers(); /* who waits for the end need not wait for ours */
    quit(0);
}

static void run_ended(void)
{
    mon.kill_at = 0;
    char code[8];
    put_dec(code, code + sizeof code, (uint64_t)exit_code(mon.state.exit_status));
    tell_event("die", "exitCode", code);
    log_mark("ended");
    if (!again())
        finish();
    wait_to_start();
}

/* Of a restart; of the first start, who asked for it hears. */
static void start_again(void)
{
    mon.start_at = 0;
    if (mon.state.flags & MON_STOP_REQUESTED && !mon.restart_now)
        finish();
    if (mon.restart_now) {
        mon.restart_now = 0;
        mon.state.flags &= ~(uint32_t)MON_STOP_REQUESTED;
        tell_event("restart", 0, 0);
    }
    if (start_program() < 0)
        run_ended();
}

/* ---- the loop -------------------------------------------------------------------------------------------------------- */

static uint64_t first_of(uint64_t a, uint64_t b)
{
    return !a || (b && b < a) ? b : a;
}

static int wait_ms(void)
{
    uint64_t now = clock_ns(1), next = first_of(first_of(mon.kill_at, mon.start_at), mon.health_due);
    if (!next)
        return -1;
    return next <= now ? 0 : next - now > 3600 * SECOND ? 3600000 : (int)((next - now) / 1000000u) + 1;
}

static void timers(void)
{
    uint64_t now = clock_ns(1);
    if (mon.kill_at && now >= mon.kill_at) {
        mon.kill_at = 0;
        if (mon.first_pidfd >= 0)
            sys(pidfd_send_signal, mon.first_pidfd, SIGNAL_KILL, 0, 0);
    }
    if (mon.start_at && now >= mon.start_at)
        start_again();
    health_timer(now);
}

/* A terminal that nobody has open is always "hung up": it is looked at again in a while. */
static int pty_is_idle;

static void loop(void)
{
    static struct pollfd_k p[4 + CONTROL_POLLS + HEALTH_POLLS];
    for (;;) {
        p[0] = (struct pollfd_k){mon.first_pidfd, POLLIN_, 0};
        p[1] = (struct pollfd_k){mon.out, POLLIN_, 0};
        p[2] = (struct pollfd_k){mon.err, POLLIN_, 0};
        p[3] = (struct pollfd_k){pty_is_idle ? -1 : mon.pty, POLLIN_, 0};
        control_polls(p + 4);
        health_polls(p + 4 + CONTROL_POLLS);
        int ms = wait_ms();
        if (pty_is_idle && mon.pty >= 0 && (ms < 0 || ms > 50))
            ms = 50;
        struct { int64_t s, ns; } ts = {ms / 1000, (int64_t)(ms % 1000) * 1000000};
        sys(ppoll, p, countof(p), ms < 0 ? 0 : &ts, 0, 8);
        pty_is_idle = 0;
        if (p[1].revents)
            read_output(&mon.out, LOG_STDOUT);
        if (p[2].revents)
            read_output(&mon.err, LOG_STDERR);
        if (p[3].revents)
            pty_is_idle = !read_output(&mon.pty, LOG_STDOUT);
        if (p[0].revents) {
            end_of_run();
            run_ended();
        }
        control_events(p + 4);
        health_events(p + 4 + CONTROL_POLLS);
        timers();
    }
}

/* ---- the beginning ---------------------------------------------------------------------------------------------------- */

static int take_config(void)
{
    struct mon_config *c = &mon.config;
    if (sys(pread64, MON_FD_CONFIG, c, sizeof *c, 0) != (long)sizeof *c || c->magic != MON_MAGIC || c->size != sizeof *c)
        return -EINVAL;
    if (c->plan_fds > 240 || c->health_fds > 240 || !c->log_files || c->policy > MON_UNLESS_STOPPED)
        return -EINVAL;
    int base = CK_FD_FIRST + (int)c->plan_fds;
    mon.helper = base + MON_HELPER;
    mon.directory = base + MON_DIRECTORY;
    mon.lock = base + MON_LOCK;
    mon.health = base + MON_HEALTH_PLAN;
    mon.ready = MON_FD_READY;
    mon.status_fd = mon.first_pidfd = mon.program_pidfd = mon.out = mon.err = mon.in = mon.pty = -1;
    /* All but what ck-init is to have at the same number. */
    sys(close_range, MON_FD_PLAN, MON_FD_CONFIG, CLOSE_RANGE_CLOEXEC_);
    return (int)sys(close_range, base, ~0u, CLOSE_RANGE_CLOEXEC_);
}

/* Who has started us waits for one who ends at once; the other is nobody's. */
static int detach(void)
{
    struct clone_args args = {.exit_signal = SIGNAL_CHLD};
    long r = sys(clone3, &args, CLONE_ARGS_SIZE_VER0);
    if (r != 0)
        quit(r < 0 ? 71 : 0);
    sys(setsid, 0);
    sys(umask, 077);
    sys(chdir, "/");
    sys(prctl, PR_SET_NAME_, "ck-monitor", 0, 0, 0);
    sys(prctl, PR_SET_DUMPABLE_, 0, 0, 0, 0);
    mon.state.magic = MON_MAGIC;
    mon.state.monitor_pid = (int)sys(getpid, 0);
    mon.self = (int)sys(pidfd_open, mon.state.monitor_pid, 0);
    return mon.self < 0 ? mon.self : 0;
}

int ck_main(void);
int ck_main(void)
{
    uint64_t all = ~0ull;
    if (take_config() < 0)
        return 64; /* not started by the library: nothing to say and nobody to say it to */
    sys(rt_sigprocmask, 0 /* SIG_BLOCK */, &all, 0, 8);
    if (detach() < 0 || open_log() < 0 || open_control() < 0)
        quit(71);
    /* What has never run is not tried again: who asked for it has been told why it did not start. */
    if (start_program() < 0)
        finish();
    sys(dup3, 0, MON_FD_READY, CLOEXEC); /* the number is not for others: ck-init gets its own there */
    mon.ready = -1;
    loop();
    quit(0);
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
