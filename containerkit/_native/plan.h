/* The plan: what Python hands to ck-init, and what ck-init answers.
 *
 * A plan is one header and a list of operations. Python (containerkit/plan.py) decides what happens and writes it;
 * ck-init checks every length and index once, before the first operation runs, and then only executes.
 * Native byte order and alignment: both ends are always the same build on the same machine.
 * A test compares the numbers here with those in plan.py.
 */
#ifndef CK_PLAN_H
#define CK_PLAN_H

#include <stdint.h>

#define CK_PLAN_MAGIC 0x4c504b43u /* "CKPL" */
#define CK_PLAN_VERSION 1u
#define CK_PLAN_MAX (16u << 20)
#define CK_OPS_MAX 4096u
#define CK_SLOTS 128

/* Descriptors as the helper finds them. 0, 1 and 2 are the program's own standard streams. */
enum { CK_FD_PLAN = 3, CK_FD_STATUS = 4, CK_FD_OWNER = 5, CK_FD_FIRST = 6 };

/* Ends the helper in place of SIGKILL, which could hit between a clone and the message that tells of it. */
enum { CK_SIGNAL_GIVE_UP = 64 };

/* Who executes an operation: see the page at the top of main.c. */
enum ck_stage { CK_STAGE_JOIN, CK_STAGE_OUTSIDE, CK_STAGE_EARLY, CK_STAGE_INSIDE, CK_STAGE_PROGRAM, CK_STAGE_BESIDE,
                CK_STAGE_COUNT };

enum ck_mode {
    CK_MODE_EXEC, /* the first process becomes the program */
    CK_MODE_INIT, /* it stays as PID 1: starts the program, reaps, forwards signals, dies with its owner */
    CK_MODE_HOLD, /* it stays as PID 1 of a sandbox that other processes join */
};

/* HOP: clone the helper once more after JOIN: a new pid namespace can be made only from one that a process is in, and
 * setns(2) moves only children. BESIDE: there are operations of that stage. DETACHED: what is started is nobody's child,
 * and does not end with whoever has started it. */
enum { CK_PLAN_HOP = 1, CK_PLAN_BESIDE = 2, CK_PLAN_DETACHED = 4 };

struct ck_plan_header {
    uint32_t magic, version, size, nops;
    uint32_t mode;
    uint32_t nfds;        /* inherited descriptors, from 0 */
    uint64_t clone_flags; /* namespaces that clone3 makes */
    int32_t cgroup_fd;    /* cgroup v2 directory for CLONE_INTO_CGROUP, or -1 */
    uint32_t flags;       /* CK_PLAN_* */
};

/* `nstr` strings follow an operation, each a length, the bytes, a NUL, and padding to 4. */
struct ck_op {
    uint32_t size;
    uint16_t code, stage;
    uint32_t nstr, flags;
    int32_t fd, slot, base, reserved;
    uint64_t a, b;
};

enum ck_op_code {
    CK_OP_JOIN = 1,   /* setns: fd; a = CLONE_NEW* flags (several with a pidfd) */
    CK_OP_IDMAP,      /* strings: uid_map, gid_map */
    CK_OP_NEWIDMAP,   /* strings: path of newuidmap or newgidmap, then its arguments after the pid */
    CK_OP_TREE,       /* detached clone of a directory or file -> slot; fd = O_PATH of it; string: path; b = propagation */
    CK_OP_FS,         /* fsopen ... fsmount -> slot; strings: type, then key, value pairs; a = mount attributes */
    CK_OP_ATTACH,     /* move_mount slot onto a path below base; string: path */
    CK_OP_CLONE,      /* detached clone of a path below base -> slot; string: path; a = mount attributes */
    CK_OP_ATTR,       /* mount_setattr on slot: a = set, b = clear */
    CK_OP_SCRATCH,    /* move_mount slot over "/" and work in it: the workbench until the pivot */
    CK_OP_MKDIR,      /* strings: paths below base; a = mode */
    CK_OP_SYMLINK,    /* strings: target, path below base */
    CK_OP_FILE,       /* strings: path below base, content; a = mode */
    CK_OP_MASK,       /* cover paths of proc in base; slot = our tmpfs with an empty `file`, and `dir` (flag MKDIR) */
    CK_OP_READONLY,   /* make paths of proc in base read-only; strings: paths */
    CK_OP_PIVOT,      /* make slot the root directory and detach the old one */
    CK_OP_PRIVATE,    /* no mount event leaves this mount namespace; a = MS_SLAVE: some may come in; 0: none */
    CK_OP_UNSHARE,    /* a = CLONE_NEW* flags; string (optional): timens_offsets */
    CK_OP_LOOPBACK,   /* bring `lo` up */
    CK_OP_HOSTNAME,   /* string */
    CK_OP_DOMAINNAME, /* string */
    CK_OP_CGROUP1,    /* write "0" to the cgroup v1 `tasks` file fd */
    CK_OP_BECOME,     /* id 0 of the new user namespace, with its capabilities */
    CK_OP_PTY,        /* terminal of the devpts in slot (or fds given by the caller); a = rows, b = columns */
    CK_OP_CPU_LIMIT,  /* a = nanoseconds of processor time of the whole tree, b = processors; slot = a proc to see it in */
    CK_OP_CREDS,      /* a = capabilities kept, b = uid | gid << 32; strings: user name, group name or empty, group ids */
    CK_OP_SESSION,    /* setsid; flag: make descriptor 0 the controlling terminal */
    CK_OP_RLIMIT,     /* fd = resource, a = soft, b = hard */
    CK_OP_UMASK,      /* a */
    CK_OP_NICE,       /* fd = nice value */
    CK_OP_AFFINITY,   /* string: the cpu mask */
    CK_OP_SETTING,    /* strings: a file of /proc, below fd or absolute; its value, which is read back unless b */
    CK_OP_FDS,        /* keep descriptors: strings of two int32: number here, number in the program */
    CK_OP_CHDIR,      /* string */
    CK_OP_EXEC,       /* a = argc, b = envc; strings: argv, envp, then the paths to try */
    CK_OP_NAMESPACES, /* a = CLONE_NEW* flags: open our own of these, in the order of namespaces[], to send when started */
    CK_OP_SECCOMP,    /* string: the filter, an array of struct sock_filter; a = flags of seccomp(2) */
    CK_OP_NETWORK,    /* BESIDE: a new network namespace, owned by the new user namespace -> slot */
    CK_OP_ENTER,      /* wait for what BESIDE made, and enter the namespace in slot; a = its CLONE_NEW* flag */
    CK_OP_LANDLOCK,   /* strings: struct landlock_ruleset_attr, `a` rules {rights, path}, more of struct
                       * landlock_net_port_attr; b = rights to the files that are the standard streams */
    CK_OP_PRCTL,      /* a = option | 4th argument << 32, b = 2nd argument */
    CK_OP_KEYRING,    /* a new session keyring */
    CK_OP_ATTEST,     /* wait for the caller, who looks at us before we become the program */
    CK_OP_COUNT,
};

/* NAMESPACES: a bit of `a` that is none of CLONE_NEW*: open the root directory, too, as the last. */
enum { CK_NAMESPACES_ROOT = 1 };

/* The rights of Landlock that a file has: EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV. */
enum { CK_LANDLOCK_FILE = 0xc007 };

enum {
    CK_F_RECURSIVE = 1u << 0,
    CK_F_IDMAP = 1u << 1,      /* TREE: map ids through the new user namespace */
    CK_F_DETACHED = 1u << 2,   /* TREE: fd is a detached mount already: take it as it is */
    CK_F_MKDIR = 1u << 3,      /* ATTACH, MKDIR: make missing directories */
    CK_F_MKFILE = 1u << 4,     /* ATTACH: make a missing file */
    CK_F_NOSYMLINK = 1u << 5,  /* ATTACH: a symbolic link anywhere in the path is an error */
    CK_F_NO_GROUPS = 1u << 6,  /* CREDS, BECOME: setgroups(2) is denied in this user namespace */
    CK_F_CTTY = 1u << 7,       /* SESSION */
    CK_F_NNP = 1u << 8,        /* CREDS: no_new_privs */
    CK_F_AMBIENT = 1u << 9,    /* CREDS: raise the kept capabilities as ambient */
    CK_F_DENY_GROUPS = 1u << 10, /* IDMAP: write "deny" to /proc/PID/setgroups first */
    CK_F_OPTIONAL = 1u << 11,  /* a missing path is skipped */
    CK_F_DROP_BOUNDING = 1u << 12, /* CREDS: drop everything else from the bounding set and lock securebits */
    CK_F_KEEP_CREDS = 1u << 13, /* CREDS: keep uid and gid as they are */
    CK_F_OURS = 1u << 15, /* ATTACH, MKDIR, SYMLINK: base is a new file system of ours, so a plain name in it leads nowhere else */
    CK_F_ACCOUNT = 1u << 16, /* CREDS: as images expect: /etc/passwd tells of numbers, too, and an empty HOME */
    CK_F_SAME_MOUNT = 1u << 14, /* CLONE: open what is mounted there, clone nothing */
};

/* Messages on the status socket (SOCK_SEQPACKET): one struct each, then `detail_len` bytes. */
enum ck_msg_kind {
    CK_MSG_CLONED = 1, /* the first process exists: pid, pidfd attached */
    CK_MSG_FAILED,     /* operation `op` failed: err, sysno, arg; detail says more */
    CK_MSG_STARTED,    /* detail: struct ck_time per operation; the program's pidfd, the pty
                        * master and the namespaces are attached, as far as there are any */
    CK_MSG_HOPPED,     /* a second helper goes on: pidfd attached */
    CK_MSG_EXITED,     /* from PID 1: wait status, usage of everything it reaped */
    CK_MSG_COMPLETE,   /* ATTEST: one byte back lets it go on */
    CK_MSG_LISTENER = 7, /* attached: where a supervisor of system calls listens; it comes before the program runs */
};

/* SECCOMP: flags of seccomp(2) that mean more than a flag to us. */
enum { CK_SECCOMP_NEW_LISTENER = 1u << 3, CK_SECCOMP_WAIT_KILLABLE = 1u << 5 };

enum { CK_REASON_EXIT, CK_REASON_CPU_LIMIT };

struct ck_msg {
    uint32_t kind, op;
    int32_t err, sysno, arg, pid, status;
    uint32_t reason, detail_len, reserved;
    uint64_t t0, now;                     /* CLOCK_MONOTONIC, ns */
    uint64_t utime_us, stime_us, maxrss_kib;
    uint64_t minflt, majflt, inblock, oublock, nvcsw, nivcsw;
};

struct ck_time {
    uint32_t start, end; /* ns after t0; 0, 0 when the operation did not run */
};

#endif
