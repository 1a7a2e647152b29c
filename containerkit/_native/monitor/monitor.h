/* What the parts of ck-monitor share, and what it and Python (containerkit/containers/monitor.py, state.py) agree on.
 * Native byte order and alignment: both ends are always the same build on the same machine. */
#ifndef CK_MONITOR_H
#define CK_MONITOR_H

#include "../init/sys.h"
#include "../plan.h"

/* Descriptors as the monitor finds them. The plan's own follow from CK_FD_FIRST on, as ck-init wants them; then these. */
enum { MON_FD_PLAN = 3, MON_FD_READY = 4, MON_FD_CONFIG = 5 };
enum { MON_HELPER, MON_DIRECTORY, MON_LOCK, MON_HEALTH_PLAN, MON_OWN_FDS };

#define MON_MAGIC 0x4e4d4b43u /* "CKMN" */
enum { MON_TTY = 1, MON_STDIN = 2, MON_INIT = 4 };
enum { MON_NO, MON_ON_FAILURE, MON_ALWAYS, MON_UNLESS_STOPPED };

struct mon_config {
    uint32_t magic, size, plan_fds, flags;
    uint32_t policy, retries, stop_signal, namespaces; /* namespaces: CLONE_NEW* flags of those that ck-init sends */
    uint64_t log_max;
    /* health_fds: how many the plan of the health check has, before the namespaces, which come in as its last. */
    uint32_t log_files, log_number, log_oldest, health_fds;
    uint32_t health_interval_ms, health_timeout_ms, health_retries, health_start_ms; /* 0 retries: no health check */
    char id[64];
};

/* ---- the record in `state` ---------------------------------------------------------------------------------------- */

enum { MON_STARTING = 1, MON_RUNNING, MON_RESTARTING, MON_EXITED };
enum { MON_STOP_REQUESTED = 1, MON_FAILED = 2 };
enum { MON_HEALTH_NONE, MON_HEALTH_STARTING, MON_HEALTHY, MON_UNHEALTHY };

struct mon_state {
    uint32_t seq, magic, status, flags;
    int32_t monitor_pid, first_pid, program_pid, exit_status;
    uint32_t reason, restarts, health, health_streak;
    uint32_t error_op;
    int32_t err, sysno;
    uint32_t log_number;
    uint64_t started_ns, finished_ns;
    uint64_t usage[9]; /* as in struct ck_msg, from utime_us on */
    uint8_t spare[256 - 64 - 16 - 72 - 4];
    uint32_t seq_end; /* the same as seq, unless somebody reads while we write */
};
_Static_assert(sizeof(struct mon_state) == 256, "struct mon_state");

/* One of the results that are kept in `health`: number N is the N % MON_CHECKS th there. */
enum { MON_CHECKS = 5, MON_CHECK_OUTPUT = 4096 };
struct mon_check {
    uint64_t start_ns, end_ns;
    int32_t exit_code; /* -1 when `err` says why there is none: ETIMEDOUT, or that of the start */
    uint32_t err, number, length;
    uint8_t output[MON_CHECK_OUTPUT];
};

/* ---- messages of the control socket ------------------------------------------------------------------------------- */

enum {
    MON_SUBSCRIBE = 1,
    MON_STDIN_DATA,
    MON_STDIN_EOF,
    MON_RESIZE,
    MON_SIGNAL,
    MON_STOP,
    MON_RESTART,
    MON_HANDLES,
    MON_POLICY,
    MON_PAUSED,
    MON_REPLY = 0x80000000u
};

struct mon_request {
    uint32_t kind, length;
    int32_t value;
    uint32_t value2;
};

enum { MON_INPUT_MAX = 16384, MON_CLIENTS = 64, MON_NAMESPACES = 9 /* and the root */ };

/* ---- */

struct monitor {
    struct mon_config config;
    struct mon_state state;
    int helper, directory, lock, health, log_directory, events, self; /* descriptors that live as long as we do */
    int ready;                                                 /* who started us, until the program runs */
    int status_fd, first_pidfd, program_pidfd, out, err, in, pty; /* of this run of the program, or -1; pty is the last */
    int namespaces[MON_NAMESPACES];
    uint32_t nnamespaces;
    int restart_now;
    uint64_t kill_at, start_at; /* monotonic ns: when to kill what was asked to stop; when to start again; or 0 */
    uint64_t health_due; /* when to call health_timer, or 0 */
    uint64_t run_since, backoff_ns;
};

extern struct monitor mon;

static inline __attribute__((always_inline)) _Noreturn void quit(int code)
{
    SYS1(__NR_exit_group, code);
    __builtin_trap();
}

static inline void close_fd(int *fd)
{
    if (*fd >= 0)
        SYS1(__NR_close, *fd);
    *fd = -1;
}

uint64_t clock_ns(int clock); /* 0 CLOCK_REALTIME, 1 CLOCK_MONOTONIC */

/* record.c */
void write_state(void);
void tell_event(const char *action, const char *name, const char *value); /* of an attribute; 0 for none */
int open_log(void);
void log_frame(int stream, uint8_t *frame, uint32_t length); /* room for a header before the data is the caller's */
enum { LOG_HEADER = 16, LOG_STDOUT = 1, LOG_STDERR = 2, LOG_MARK = 3 };
void log_mark(const char *text);

/* start.c */
int start_program(void); /* 0: it runs; else it does not, and the state says why */
void end_of_run(void);   /* the first process has ended: reap it, take what it has said */
int read_output(int *fd, int stream); /* 1: there was some, 0: none by now or never again */
struct spawn {
    uint32_t nfds; /* as many as the plan counts: 0 to 2, three that are filled in, then the plan's own */
    int fds[256], pidfd, error;
};
int spawn_helper(struct spawn *s, int plan, int *status); /* ck-init's pid, or a negative errno */
int open_pipe(int *ours, int *theirs, int we_read);

/* control.c */
int open_control(void);
struct pollfd_k {
    int fd;
    short events, revents;
};
enum { POLLIN_ = 1, POLLOUT_ = 4, POLLERR_ = 8, POLLHUP_ = 16 };
enum { CONTROL_POLLS = MON_CLIENTS + 2 };
void control_polls(struct pollfd_k *p);   /* fills CONTROL_POLLS of them */
void control_events(struct pollfd_k *p);
void wake_subscribers(void);
void drop_input(void);

/* health.c */
enum { HEALTH_POLLS = 4 };
void health_begin(void); /* a run of the program has begun */
void health_end(void);
void health_pause(int paused);
void health_timer(uint64_t now);
void health_polls(struct pollfd_k *p);
void health_events(const struct pollfd_k *p);

/* main.c */
int signal_program(int signum);
void ask_to_stop(int signum, uint64_t grace_ms, int restart);

/* fds.c */
struct message_fds {
    size_t len;
    int level, type;
    int fds[256];
};
long receive(int sock, void *data, size_t length, struct message_fds *fds, uint32_t *nfds, int flags);
long send_fds(int sock, const void *data, size_t length, struct message_fds *fds, uint32_t nfds);

#endif
