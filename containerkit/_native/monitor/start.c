/* One run of the program: ck-init is started with the container's plan, as ck_spawn in native.c starts it. */
#include "monitor.h"

#include <linux/sched.h>

enum { O_NONBLOCK_ = 04000, AF_UNIX_ = 1, SOCK_SEQPACKET_ = 5, MSG_DONTWAIT_ = 0x40, WALL_ = 0x40000000, F_SETFL_ = 4, F_SETFD_ = 2 };

static const int64_t START_SECONDS = 60; /* a start that takes longer has hung */

static int dup_to(int from, int to)
{
    return (int)(from == to ? SYS3(__NR_fcntl, to, F_SETFD_, 0) : SYS3(__NR_dup3, from, to, 0));
}

/* In the child, which shares our memory and has descriptors of its own. Descriptor i of the list becomes number i: those
 * in the way move up first. */
static void become_helper(void *arg)
{
    struct spawn *s = arg;
    const char *argv[2], *envp[1];
    int n = (int)s->nfds, helper = mon.helper;
    long r = 0;
    argv[0] = "ck-init"; /* not initialised: that would be a table of pointers, which needs relocation */
    argv[1] = envp[0] = 0;
    if (helper < n)
        helper = (int)(r = SYS3(__NR_fcntl, helper, DUPFD_CLOEXEC, n));
    for (int i = 0; r >= 0 && i < n; i++)
        if (s->fds[i] < n && s->fds[i] != i)
            s->fds[i] = (int)(r = SYS3(__NR_fcntl, s->fds[i], DUPFD_CLOEXEC, n));
    for (int i = 0; r >= 0 && i < n; i++)
        r = dup_to(s->fds[i], i);
    if (r >= 0)
        r = SYS3(__NR_close_range, n, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
    if (r >= 0)
        r = SYS5(__NR_execveat, helper, "", argv, envp, EMPTY_PATH);
    s->error = (int)r;
    for (;;)
        SYS1(__NR_exit, 127);
}

int spawn_helper(struct spawn *s, int plan, int *status)
{
    static char stack[32768] __attribute__((aligned(16)));
    struct clone_args args = {.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&s->pidfd,
                              .stack = (uint64_t)(uintptr_t)stack, .stack_size = sizeof stack};
    int pair[2] = {-1, -1};
    long pid = sys(socketpair, AF_UNIX_, SOCK_SEQPACKET_ | CLOEXEC, 0, pair);
    if (pid < 0)
        return (int)pid;
    *status = pair[0];
    s->fds[CK_FD_PLAN] = plan;
    s->fds[CK_FD_STATUS] = pair[1];
    s->fds[CK_FD_OWNER] = mon.self;
    s->error = 0;
    pid = clone_call(&args, CLONE_ARGS_SIZE_VER0, become_helper, s);
    close_fd(&pair[1]);
    if (pid > 0 && s->error) {
        sys(wait4, pid, 0, WALL_, 0);
        close_fd(&s->pidfd);
        return s->error;
    }
    return (int)pid;
}

/* A pipe of which we have the end that does not wait; the program may open /dev/stdout by name, whatever its ids are. */
int open_pipe(int *ours, int *theirs, int we_read)
{
    int pair[2];
    long r = sys(pipe2, pair, CLOEXEC);
    if (r < 0)
        return (int)r;
    *ours = pair[we_read ? 0 : 1];
    *theirs = pair[we_read ? 1 : 0];
    sys(fchmod, *theirs, 0666);
    return (int)sys(fcntl, *ours, F_SETFL_, O_NONBLOCK_);
}

static int open_streams(struct spawn *s)
{
    int r = 0;
    for (int i = 0; i < 3; i++)
        s->fds[i] = i; /* /dev/null */
    if (mon.config.flags & MON_TTY)
        return 0;
    if (mon.config.flags & MON_STDIN)
        r = open_pipe(&mon.in, &s->fds[0], 0);
    if (r == 0)
        r = open_pipe(&mon.out, &s->fds[1], 1);
    if (r == 0)
        r = open_pipe(&mon.err, &s->fds[2], 1);
    return r;
}

static void fail(uint32_t op, int err, int sysno)
{
    mon.state.flags |= MON_FAILED;
    mon.state.error_op = op;
    mon.state.err = err;
    mon.state.sysno = sysno;
}

/* What STARTED brings: the program's descriptor when PID 1 is not the program, the terminal, the namespaces. */
static void adopt(const struct ck_msg *m, struct message_fds *c, uint32_t nfds)
{
    uint32_t at = 0;
    if (mon.config.flags & MON_INIT && at < nfds)
        mon.program_pidfd = c->fds[at++];
    if (mon.config.flags & MON_TTY && at < nfds) {
        mon.pty = c->fds[at++];
        sys(fcntl, mon.pty, F_SETFL_, 2 | O_NONBLOCK_);
    }
    for (mon.nnamespaces = 0; at < nfds && mon.nnamespaces < MON_NAMESPACES; at++)
        mon.namespaces[mon.nnamespaces++] = c->fds[at];
    mon.state.program_pid = mon.config.flags & MON_INIT ? m->pid : 1;
}

/* Messages of one start, which who has started us hears too. 0: it runs. */
static int hear(void)
{
    static struct message_fds c;
    static uint8_t buffer[sizeof(struct ck_msg) + CK_OPS_MAX * sizeof(struct ck_time)];
    struct ck_msg *m = (void *)buffer;
    int running = 0;
    for (;;) {
        struct pollfd_k p[] = {{mon.status_fd, POLLIN_, 0}, {mon.ready, 0, 0}};
        struct { int64_t s, ns; } left = {START_SECONDS, 0};
        long r = sys(ppoll, p, countof(p), &left, 0, 8);
        if (r == 0 || p[1].revents & (POLLHUP_ | POLLERR_)) { /* whoever wanted it has given up, or has died */
            fail(UINT32_MAX, r ? ECANCELED : ETIMEDOUT, 0);
            return -ECANCELED;
        }
        if (!p[0].revents)
            continue;
        uint32_t nfds;
        long n = receive(mon.status_fd, buffer, sizeof buffer, &c, &nfds, MSG_DONTWAIT_);
        if (n == -EAGAIN)
            continue;
        if (mon.ready >= 0 && n > 0 && m->kind != CK_MSG_STARTED) /* of that he hears when it is written down */
            send_fds(mon.ready, buffer, (size_t)n, 0, 0);
        if (n < (long)sizeof *m) {
            if (!running)
                fail(UINT32_MAX, ECHILD, 0); /* it died without a word */
            return running ? 0 : -ECHILD;
        }
        if (m->kind == CK_MSG_CLONED && nfds == 1) {
            mon.first_pidfd = c.fds[0];
            mon.state.first_pid = m->pid;
        } else if (m->kind == CK_MSG_STARTED) {
            adopt(m, &c, nfds);
            running = 1;
            if (mon.config.flags & MON_INIT)
                return 0;
        } else {
            for (uint32_t i = 0; i < nfds; i++)
                SYS1(__NR_close, c.fds[i]);
            if (m->kind == CK_MSG_FAILED) {
                fail(m->op, m->err, m->sysno);
                return -ECHILD;
            }
        }
    }
}

static int launch(void)
{
    static struct spawn s;
    s.pidfd = -1;
    s.nfds = CK_FD_FIRST + mon.config.plan_fds;
    for (int i = CK_FD_FIRST; i < (int)s.nfds; i++)
        s.fds[i] = i; /* they are in their places already */
    int pid = open_streams(&s), theirs[3];
    memcpy(theirs, s.fds, sizeof theirs); /* the child may change the list */
    if (pid == 0)
        pid = spawn_helper(&s, MON_FD_PLAN, &mon.status_fd);
    for (int i = 0; i < 3; i++)
        if (theirs[i] > 2)
            close_fd(&theirs[i]);
    close_fd(&s.pidfd);
    return pid;
}

int start_program(void)
{
    mon.state.status = MON_STARTING;
    mon.state.flags &= ~(uint32_t)MON_FAILED;
    mon.state.reason = 0;
    int helper = launch();
    if (helper < 0)
        fail(UINT32_MAX, -helper, last_sysno);
    int r = helper < 0 ? helper : hear();
    if (helper > 0) {
        if (r < 0)
            sys(kill, helper, CK_SIGNAL_GIVE_UP);
        sys(wait4, helper, 0, WALL_, 0);
    }
    mon.state.started_ns = clock_ns(0);
    mon.run_since = clock_ns(1);
    if (r < 0) {
        if (mon.first_pidfd >= 0)
            sys(pidfd_send_signal, mon.first_pidfd, SIGNAL_KILL, 0, 0);
        end_of_run();
        return r;
    }
    mon.state.status = MON_RUNNING;
    health_begin();
    write_state();
    struct ck_msg started = {.kind = CK_MSG_STARTED};
    if (mon.ready >= 0)
        send_fds(mon.ready, &started, sizeof started, 0, 0);
    tell_event("start", 0, 0);
    return 0;
}

int read_output(int *fd, int stream)
{
    static uint8_t frame[LOG_HEADER + 65536];
    long n = *fd < 0 ? 0 : sys(read, *fd, frame + LOG_HEADER, sizeof frame - LOG_HEADER);
    if (n > 0) {
        log_frame(stream, frame, (uint32_t)n);
        wake_subscribers();
        return 1;
    }
    if (*fd >= 0 && n != -EAGAIN && n != -EINTR) {
        if (*fd == mon.pty)
            return 0; /* nobody has the terminal open at the moment */
        close_fd(fd);
    }
    return 0;
}

/* PID 1's last message has the program's own status and the usage of everything; without one its own status is it. */
void end_of_run(void)
{
    struct ck_msg m;
    int status = 0, told = 0;
    health_end();
    while (mon.status_fd >= 0 && receive(mon.status_fd, &m, sizeof m, 0, 0, MSG_DONTWAIT_) == (long)sizeof m)
        if (m.kind == CK_MSG_EXITED) {
            told = 1;
            mon.state.exit_status = m.status;
            mon.state.reason = m.reason;
            memcpy(mon.state.usage, &m.utime_us, sizeof mon.state.usage);
        }
    if (mon.state.first_pid > 0)
        while (sys(wait4, mon.state.first_pid, &status, WALL_, 0) == -EINTR)
            ;
    if (!told && !(mon.state.flags & MON_FAILED))
        mon.state.exit_status = status;
    while (read_output(&mon.out, LOG_STDOUT) || read_output(&mon.err, LOG_STDERR) || read_output(&mon.pty, LOG_STDOUT))
        ;
    for (int *fd = &mon.status_fd; fd <= &mon.pty; fd++)
        close_fd(fd);
    for (uint32_t i = 0; i < mon.nnamespaces; i++)
        SYS1(__NR_close, mon.namespaces[i]);
    mon.nnamespaces = 0;
    mon.state.first_pid = mon.state.program_pid = 0;
    mon.state.finished_ns = clock_ns(0);
    drop_input();
}
