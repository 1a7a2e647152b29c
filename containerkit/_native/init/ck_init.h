/* What the parts of ck-init share. */
#ifndef CK_INIT_H
#define CK_INIT_H

#include "../plan.h"
#include "sys.h"

/* Written by every stage, so it lives in shared memory: the page that the stages have in common. */
struct shared {
    uint64_t t0;
    uint32_t failed;
    struct ck_time times[];
};

struct ctx {
    const struct ck_plan_header *plan;
    struct shared *shared;
    int slots[CK_SLOTS];
    int status_fd; /* our end of the status socket */
    int first_pidfd; /* OUTSIDE: the first process */
    int first_pid;
    int go_fd;       /* the first process: its end of the socket to the helper */
    int userns_fd;   /* OUTSIDE: the new user namespace, opened when a mount needs it */
    int scratch_fd;  /* INSIDE: the workbench */
    int given[12]; /* what the owner gets when the program runs: the terminal, namespaces */
    uint32_t ngiven;
    int proc_fd;     /* our own /proc, when a cpu limit must be watched */
    uint64_t cpu_limit_ns, processors;
    uint64_t clock_shift; /* host time is our time plus this */
    uint64_t stage_ns; /* end of the operation before */
    int fail_arg;      /* which string of the operation was at fault, or -1 */
    uint32_t detail_len;
    char detail[4096];
};

extern struct ctx ctx;

/* The kernel takes memory away before descriptors, and who has no memory counts as dumpable: so they go first. A filter may
 * refuse even exit_group: then by a fault, which no mask holds up and which ends PID 1 too. Inline, because
 * AddressSanitizer makes system calls of its own before a call that does not return. */
static inline __attribute__((always_inline)) _Noreturn void quit(int code)
{
    SYS3(__NR_close_range, 0, ~0u, 0), SYS1(__NR_exit_group, code);
    __builtin_trap();
}

#define UNUSED __attribute__((unused))

/* An operation: 0, or a negative errno. */
typedef int op_fn(const struct ck_op *op);

/* The i-th string of an operation; its length when asked. A missing one is a bug of the plan's writer: we stop. */
const char *op_str(const struct ck_op *op, uint32_t i, uint32_t *len);

uint64_t now_ns(void);
int run_stage(enum ck_stage stage);
int send_msg(const struct ck_msg *msg, const void *detail, const int *fds, uint32_t nfds);
void report_failure(const struct ck_op *op, uint32_t index, int err);
int close_all_but(int *keep, uint32_t n);
int userns_fd(void);
char *first_path(char *buf, size_t size, const char *name); /* a file of the first process in /proc */

/* reaper.c */
_Noreturn void reaper_main(int has_program);
/* ops_*.c */
op_fn op_join, op_idmap, op_newidmap, op_tree, op_fs, op_attach, op_clone, op_attr, op_scratch, op_mkdir, op_symlink,
    op_file, op_mask, op_readonly, op_pivot, op_private, op_unshare, op_loopback, op_hostname, op_cgroup1,
    op_become, op_pty, op_cpu_limit, op_creds, op_session, op_rlimit, op_umask, op_nice, op_affinity, op_setting, op_fds,
    op_chdir, op_exec, op_namespaces, op_seccomp, op_network, op_enter,
    op_landlock, op_prctl, op_keyring, op_attest;

#endif
