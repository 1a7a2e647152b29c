/* Health checks: the container's test is run in it now and then, as docker does it (moby, daemon/health.go).
 *
 * ck-init joins the container's namespaces and becomes the test, a child of ours: so PID 1 of the container, which ends
 * last of all in its namespace, cannot end before we have reaped the test. Nothing here waits for anything.
 */
#include "monitor.h"

enum { P_ALL_ = 0, P_PIDFD_ = 3, WNOHANG_ = 1, WEXITED_ = 4, WNOWAIT_ = 0x1000000, WALL_ = 0x40000000, CLD_EXITED_ = 1, MSG_DONTWAIT_ = 0x40 };
enum { O_WRONLY_ = 1, O_CREAT_ = 0100, O_TRUNC_ = 01000 };
static const uint64_t MS = 1000000u, FAILED_MS = 100;

static struct {
    enum { NONE, WAITS, RUNS, ENDED } phase; /* mon.health_due: when it starts, its time is over, its end counts */
    int helper, test, status, output; /* while it runs: pidfds, its messages, what it says; or -1 */
    int pid, paused;
    uint64_t began;
    uint32_t number;
    struct mon_check result;
} check = {.helper = -1, .test = -1, .status = -1, .output = -1};

static void wait_for_next(void)
{
    check.phase = WAITS;
    mon.health_due = check.paused ? 0 : clock_ns(1) + mon.config.health_interval_ms * MS;
}

void health_begin(void)
{
    mon.state.health = mon.config.health_retries ? MON_HEALTH_STARTING : MON_HEALTH_NONE;
    mon.state.health_streak = 0;
    check.paused = 0;
    if (mon.config.health_retries)
        wait_for_next();
}

/* A failure counts a moment later: it may be because the container ends, and then it does not. */
static void test_is_over(void)
{
    check.phase = ENDED;
    check.result.end_ns = clock_ns(0);
    if (check.result.err)
        check.result.exit_code = -1;
    mon.health_due = clock_ns(1) + (check.result.exit_code ? FAILED_MS * MS : 0);
}

/* Of a helper that was killed before it could tell whom it has cloned, or whom we could not hear (no descriptor left). */
static void reap_strays(void)
{
    int info[32];
    for (;;) {
        info[4] = 0; /* si_pid */
        sys(waitid, P_ALL_, 0, info, WEXITED_ | WNOHANG_ | WNOWAIT_ | WALL_, 0);
        if (info[4] <= 0 || info[4] == mon.state.first_pid || sys(wait4, info[4], 0, WNOHANG_ | WALL_, 0) <= 0)
            return;
    }
}

static void begin_test(void)
{
    static struct spawn s;
    int theirs = -1;
    reap_strays();
    memset(&check.result, 0, sizeof check.result);
    check.result.start_ns = clock_ns(0);
    check.result.exit_code = -1;
    check.began = clock_ns(1);
    mon.health_due = check.began + mon.config.health_timeout_ms * MS;
    check.phase = RUNS;
    s.nfds = CK_FD_FIRST;
    for (uint32_t i = 0; i < mon.config.health_fds; i++)
        s.fds[s.nfds++] = mon.health + MON_OWN_FDS - MON_HEALTH_PLAN + (int)i;
    for (uint32_t i = 0; i + 1 < mon.nnamespaces; i++) /* the last is the root */
        s.fds[s.nfds++] = mon.namespaces[i];
    int r = open_pipe(&check.output, &theirs, 1);
    s.fds[0] = 0;
    s.fds[1] = s.fds[2] = theirs;
    if (r == 0)
        r = spawn_helper(&s, mon.health, &check.status);
    close_fd(&theirs);
    check.helper = r > 0 ? s.pidfd : -1;
    if (r < 0) {
        check.result.err = (uint32_t)-r;
        test_is_over();
    }
}

/* With all that it has forked, unless that has made a session of its own. Its number stays its own until it is reaped. */
static void end_test(int err)
{
    mon.health_due = 0;
    if (!check.result.err)
        check.result.err = (uint32_t)err;
    if (check.helper >= 0)
        sys(pidfd_send_signal, check.helper, CK_SIGNAL_GIVE_UP, 0, 0);
    if (check.test >= 0)
        sys(pidfd_send_signal, check.test, SIGNAL_KILL, 0, 0);
    if (check.test >= 0 && check.pid > 1)
        sys(kill, -check.pid, SIGNAL_KILL);
}

static void hear(void)
{
    static struct message_fds c;
    struct ck_msg m;
    uint32_t nfds;
    for (long n; check.status >= 0 && (n = receive(check.status, &m, sizeof m, &c, &nfds, MSG_DONTWAIT_)) != -EAGAIN;) {
        if (n < (long)sizeof m) {
            close_fd(&check.status);
        } else if (m.kind == CK_MSG_CLONED && nfds == 1) {
            check.test = c.fds[0];
            check.pid = m.pid;
        } else if (m.kind == CK_MSG_FAILED && !check.result.err) {
            check.result.err = (uint32_t)m.err;
        }
        if (check.result.err)
            end_test(0); /* it has been born too late to be killed in time */
    }
}

static long take_output(void)
{
    uint8_t lost[4096];
    uint32_t room = MON_CHECK_OUTPUT - check.result.length;
    long n = sys(read, check.output, room ? check.result.output + check.result.length : lost, room ? room : sizeof lost);
    if (n > 0 && room)
        check.result.length += (uint32_t)n;
    else if (n <= 0 && n != -EAGAIN)
        close_fd(&check.output);
    return room ? n : 0;
}

static void reap(int *pidfd)
{
    int info[32] = {0}; /* siginfo_t: [2] is si_code, [6] is si_status */
    if (*pidfd < 0)
        return;
    sys(waitid, P_PIDFD_, *pidfd, info, WEXITED_ | WALL_, 0);
    if (pidfd == &check.test)
        check.result.exit_code = info[2] == CLD_EXITED_ ? info[6] : 128 + info[6];
    close_fd(pidfd);
}

static void write_result(void)
{
    int flags = O_WRONLY_ | O_CREAT_ | (check.number ? 0 : O_TRUNC_) | CLOEXEC;
    int fd = (int)sys(openat, mon.directory, "health", flags, 0600);
    check.result.number = check.number++;
    sys(pwrite64, fd, &check.result, sizeof check.result, check.result.number % MON_CHECKS * sizeof check.result);
    close_fd(&fd);
}

static void count_result(void)
{
    struct mon_state *s = &mon.state;
    uint32_t was = s->health;
    uint64_t free_until = mon.run_since + mon.config.health_start_ms * MS;
    if (check.result.exit_code == 0) {
        s->health_streak = 0;
        s->health = MON_HEALTHY;
    } else if ((was != MON_HEALTH_STARTING || check.began >= free_until) && ++s->health_streak >= mon.config.health_retries) {
        s->health = MON_UNHEALTHY;
    }
    write_result();
    write_state();
    if (s->health != was)
        tell_event("health_status", "health", s->health == MON_HEALTHY ? "healthy" : "unhealthy");
}

static void conclude(void)
{
    while (check.output >= 0 && take_output() > 0)
        ;
    close_fd(&check.output);
    close_fd(&check.status);
    if (check.result.err != ECANCELED)
        count_result();
    wait_for_next();
}

void health_end(void)
{
    if (check.helper >= 0)
        sys(pidfd_send_signal, check.helper, SIGNAL_KILL, 0, 0);
    for (int *fd = &check.helper; fd <= &check.test; fd++)
        reap(fd);
    for (int *fd = &check.status; fd <= &check.output; fd++)
        close_fd(fd);
    check.phase = NONE;
    mon.health_due = 0;
}

void health_pause(int paused)
{
    check.paused = paused;
    if (check.phase == WAITS)
        wait_for_next();
    else if (check.phase == RUNS && paused)
        end_test(ECANCELED);
}

void health_timer(uint64_t now)
{
    if (!mon.health_due || now < mon.health_due)
        return;
    if (check.phase == WAITS)
        begin_test();
    else if (check.phase == RUNS)
        end_test(ETIMEDOUT);
    else
        conclude();
}

void health_polls(struct pollfd_k *p)
{
    for (int i = 0; i < HEALTH_POLLS; i++)
        p[i] = (struct pollfd_k){(&check.helper)[i], POLLIN_, 0};
}

/* What has ended has said before all that it had to say. */
void health_events(const struct pollfd_k *p)
{
    if (check.phase != RUNS)
        return;
    hear();
    if (p[3].revents && p[3].fd == check.output)
        take_output();
    for (int i = 0; i < 2; i++)
        if (p[i].revents && p[i].fd == (&check.helper)[i])
            reap(&check.helper + i);
    if (check.helper < 0 && check.test < 0)
        test_is_over();
}
