/* All of ck-init under libFuzzer: the reader of plans, every operation, the reaper, and the reading of the container's
 * own /etc/passwd and /etc/group.
 *
 * An input is two bytes of length, a tape of that many bytes, and a plan. The helper runs the plan against a kernel of
 * our own, which takes each answer from the tape: first of all which of two processes we are after each clone, then an
 * errno or success for each call, and what a file holds. It touches every byte that the real one would read, so that AddressSanitizer sees a pointer or a
 * length that is wrong, and keeps a table of descriptors: closing one that is not open is a finding, too. When the tape
 * is at its end everything succeeds, files are empty and the owner has gone, so every input comes to its end.
 *
 * Half of the inputs are put in good form and so reach further than the checks.
 */
#include "init/ck_init.h"

#include <linux/sched.h>
#include <linux/stat.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

int ck_main(void);

#define MAX_FDS 4096
#define MAX_ALLOCATIONS 64

static const uint8_t *tape, *tape_end, *plan;
static size_t plan_size, nallocations;
static void *allocations[MAX_ALLOCATIONS];
static uint8_t is_open[MAX_FDS];
static jmp_buf *gone; /* where the process that runs now ends */
static volatile uint8_t sink;
static int swept; /* all but a few descriptors were closed, perhaps earlier than a sound plan does: no closing is wrong */
static uint8_t child_after; /* a bit for each clone3 */

static void must(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "ck-init broke a rule: %s\n", what);
    abort();
}

static uint8_t take(void)
{
    return tape < tape_end ? *tape++ : 0;
}

static size_t take_bytes(void *to, size_t most)
{
    size_t n = (size_t)take() * 16 + take() % 16, left = (size_t)(tape_end - tape);
    n = n > most ? most : n;
    n = n > left ? left : n;
    memcpy(to, tape, n);
    tape += n;
    return n;
}

/* What the kernel reads and writes, where AddressSanitizer can see it. */
static long reads(long address, size_t n)
{
    const uint8_t *p = (const uint8_t *)address;
    for (size_t i = 0; i < n; i++)
        sink += p[i];
    return 0;
}

static long reads_string(long address)
{
    return address ? reads(address, strlen((const char *)address) + 1) : 0;
}

static long reads_strings(long address)
{
    for (const char *const *p = (const void *)address; *p; p++)
        reads_string((long)*p);
    return 0;
}

static void *allocate(size_t n)
{
    must(nallocations < MAX_ALLOCATIONS, "it maps memory without end");
    return allocations[nallocations++] = calloc(1, n ? n : 1);
}

static long new_fd(long lowest)
{
    for (long fd = lowest < 0 ? 0 : lowest; fd < MAX_FDS; fd++)
        if (!is_open[fd]) {
            is_open[fd] = 1;
            return fd;
        }
    return -EMFILE;
}

static _Noreturn void end(void)
{
    longjmp(*gone, 1);
}

static long sys_mmap(size_t n, long flags, long fd)
{
    if (flags & 0x20 /* MAP_ANONYMOUS */)
        return (long)allocate(n);
    must(fd == CK_FD_PLAN && n == plan_size, "it maps what is not the plan");
    return (long)memcpy(allocate(n), plan, n);
}

static long sys_statx(long fd, struct statx *st)
{
    memset(st, 0, sizeof *st);
    if (fd == CK_FD_PLAN && !nallocations) {
        st->stx_size = plan_size;
        st->stx_mode = 0100644;
        return 0;
    }
    uint8_t kind = take();
    st->stx_mode = kind & 1 ? 0040755 : kind & 2 ? 0020666 : 0100644;
    st->stx_ino = kind >> 2 & 1;
    st->stx_mnt_id = kind >> 3 & 1;
    return 0;
}

static long sys_read(uint8_t *to, size_t n)
{
    if (n != 128) /* not a struct signalfd_siginfo */
        return (long)take_bytes(to, n);
    uint8_t signal = take();
    if (!signal)
        return -EAGAIN;
    memset(to, 0, n);
    to[0] = signal;
    return (long)n;
}

struct message {
    void *name;
    int namelen;
    struct { void *base; size_t len; } *iov;
    size_t iovlen;
    struct { size_t len; int level, type, fds[]; } *control;
    size_t controllen;
};

static long sys_sendmsg(const struct message *m)
{
    long total = 0;
    for (size_t i = 0; i < m->iovlen; i++) {
        reads((long)m->iov[i].base, m->iov[i].len);
        total += (long)m->iov[i].len;
    }
    reads((long)m->control, m->controllen);
    return total;
}

static long sys_recvmsg(struct message *m)
{
    size_t n = take(), room = (m->controllen - 16) / sizeof(int);
    n = n > room ? room : n;
    for (size_t i = 0; i < n; i++)
        m->control->fds[i] = (int)new_fd(3);
    if (n) {
        m->controllen = 16 + n * sizeof(int);
        m->control->len = m->controllen;
    } else {
        m->controllen = 0;
    }
    return (long)take_bytes(m->iov[0].base, m->iov[0].len);
}

static long sys_getdents(uint8_t *to)
{
    uint8_t name = take();
    if (!name)
        return 0;
    memset(to, 0, 24);
    to[16] = 24; /* d_reclen */
    to[19] = name;
    to[20] = take();
    return 24;
}

static long sys_ppoll(struct { int fd; short events, revents; } *p, long n)
{
    int over = tape == tape_end;
    for (long i = 0; i < n; i++)
        p[i].revents = over ? 1 : take() & (p[i].events | 16);
    return 1;
}

static long sys_clone3(const struct clone_args *args)
{
    uint8_t child = child_after & 1;
    child_after >>= 1;
    if (child)
        return 0;
    if (args->flags & CLONE_PIDFD)
        *(int *)(uintptr_t)args->pidfd = (int)new_fd(3);
    return 7;
}

static long sys_close_range(unsigned first, unsigned last, long flags)
{
    swept |= !flags;
    for (unsigned fd = first; !flags && fd <= last && fd < MAX_FDS; fd++)
        is_open[fd] = 0;
    return 0;
}

static long two_fds(int *fds)
{
    fds[0] = (int)new_fd(3);
    fds[1] = (int)new_fd(3);
    return 0;
}

static long sys_close(long fd)
{
    must(swept || (fd >= 0 && fd < MAX_FDS && is_open[fd]), "it closes a descriptor that is not open");
    if (fd >= 0 && fd < MAX_FDS)
        is_open[fd] = 0;
    return 0;
}

static long sys_getcwd(char *to, const char *answer, size_t room)
{
    size_t n = strlen(answer) + 1;
    return n > room ? -ERANGE : (memcpy(to, answer, n), (long)n);
}

static long sys_wait4(long pid, int *status)
{
    if (!(take() & 1))
        return -ECHILD;
    if (status)
        *status = take() << 8 | take();
    return pid > 0 ? pid : take() + 1;
}

static const int errnos[] = {EPERM, ENOENT, EINTR, EIO, ENOMEM, EACCES, EEXIST, ENOTDIR,
                             EINVAL, EMFILE, ENOSPC, ELOOP, ENOSYS, EAGAIN, ESRCH, EPIPE};

/* Those without a failure that means anything. */
static int never_fails(long n)
{
    return n == __NR_exit_group || n == __NR_exit || n == __NR_close || n == __NR_clock_gettime || n == __NR_getpid ||
           n == __NR_umask || n == __NR_ppoll || n == __NR_getrusage;
}

long raw_syscall(long n, long a, long b, long c, long d, long e, long f)
{
    (void)f;
    if (!never_fails(n)) {
        uint8_t answer = take();
        if (answer >= 0xe0)
            return -errnos[answer & 15];
    }
    switch (n) {
    case __NR_exit: case __NR_exit_group: end();
    case __NR_execve:
        reads_string(a), reads_strings(b), reads_strings(c);
        if (take() == 0xff)
            end();
        return -ENOENT;
    case __NR_getpid: return 1;
    case __NR_clock_gettime: return memset((void *)b, 0, 16), 0;
    case __NR_mmap: return sys_mmap((size_t)b, d, e);
    case __NR_statx: return reads_string(b), sys_statx(a, (struct statx *)e);
    case __NR_read: return sys_read((uint8_t *)b, (size_t)c);
    case __NR_write: return reads(b, (size_t)c), c;
    case __NR_sendmsg: return sys_sendmsg((struct message *)b);
    case __NR_recvmsg: return sys_recvmsg((struct message *)b);
    case __NR_getdents64: return sys_getdents((uint8_t *)b);
    case __NR_ppoll: return sys_ppoll((void *)a, b);
    case __NR_getrusage: return memset((void *)b, 0, 144), 0;
    case __NR_wait4:
        return sys_wait4(a, (int *)b);
    case __NR_getcwd:
        return sys_getcwd((char *)a, take() == 0xff ? "(unreachable)/x" : "/", (size_t)b);
    case __NR_close: return sys_close(a);
    case __NR_close_range: return sys_close_range((unsigned)a, (unsigned)b, c);
    case __NR_pipe2: return two_fds((int *)a);
    case __NR_socketpair: return two_fds((int *)d);
    case __NR_clone3: return reads(a, (size_t)b), sys_clone3((struct clone_args *)a);
    case __NR_fcntl: return new_fd(c);
    case __NR_dup3: return b >= 0 && b < MAX_FDS ? is_open[b] = 1, b : -EBADF;
    case __NR_openat: case __NR_open_tree: return reads_string(b), new_fd(3);
    case __NR_openat2: return reads_string(b), reads(c, (size_t)d), new_fd(3);
    case __NR_fsopen: return reads_string(a), new_fd(3);
    case __NR_fsmount: case __NR_signalfd4: case __NR_socket: return new_fd(3);
    case __NR_ioctl: return b == 0x5441 /* TIOCGPTPEER */ ? new_fd(3) : 0;
    case __NR_fsconfig: return reads_string(c), reads_string(d);
    case __NR_move_mount: return reads_string(b), reads_string(d);
    case __NR_mount: return reads_string(b);
    case __NR_mount_setattr: return reads_string(b), reads(d, (size_t)e);
    case __NR_mkdirat: case __NR_mknodat: return reads_string(b);
    case __NR_symlinkat: return reads_string(a), reads_string(c);
    case __NR_chdir: case __NR_umount2: return reads_string(a);
    case __NR_pivot_root: return reads_string(a), reads_string(b);
    case __NR_sethostname: case __NR_setdomainname: return reads(a, (size_t)b);
    case __NR_setgroups: return reads(b, (size_t)a * 4);
    case __NR_sched_setaffinity: return reads(c, (size_t)b);
    case __NR_prlimit64: return reads(c, 16);
    case __NR_capset: return reads(a, 8), reads(b, 24);
    case __NR_seccomp:
        return reads(*(long *)(c + 8), (size_t)*(uint16_t *)c * 8);
    case __NR_rt_sigprocmask: return reads(b, 8);
    default: return 0;
    }
}

/* vfork: the child first, with descriptors of its own, to its end. */
long clone_call(struct clone_args *args, size_t size, void (*fn)(void *), void *arg)
{
    uint8_t before[MAX_FDS];
    jmp_buf here, *volatile outer = gone;
    reads((long)args, size);
    memcpy(before, is_open, sizeof before);
    if (take() >= 0xf0)
        return -EAGAIN;
    gone = &here;
    if (!setjmp(here)) {
        fn(arg);
        must(0, "the program's process came back");
    }
    gone = outer;
    memcpy(is_open, before, sizeof before);
    *(int *)(uintptr_t)args->pidfd = (int)new_fd(3);
    return 8;
}

static int within(int value, int count)
{
    return (int)((unsigned)value % (unsigned)(count + 1)) - 1;
}

/* Numbers and lengths that pass the checks. */
static void fix_op(struct ck_op *op, size_t room, uint32_t nfds)
{
    char *p = (char *)(op + 1), *end;
    if (op->size < sizeof *op || op->size > room || op->size % 8)
        op->size = (uint32_t)room & ~7u;
    end = (char *)op + op->size;
    op->code = (uint16_t)(1 + op->code % (CK_OP_COUNT - 1));
    op->stage %= CK_STAGE_COUNT;
    op->slot = op->slot < 0 ? 3 : op->slot % 16;
    op->base = within(op->base, 16);
    if (op->code != CK_OP_RLIMIT && op->code != CK_OP_NICE)
        op->fd = within(op->fd, (int)nfds);
    for (uint32_t i = 0; i < op->nstr; i++) {
        uint32_t len, most = (uint32_t)(end - p) - 8;
        if (end - p < 8) {
            op->nstr = i;
            break;
        }
        memcpy(&len, p, 4);
        len = len > most ? most & ~3u : len;
        memcpy(p, &len, 4);
        p[4 + len] = 0;
        p += 4 + ((len + 4) & ~3u);
    }
}

static void fix_plan(uint8_t *p, size_t n)
{
    struct ck_plan_header *h = (void *)p;
    if (n < sizeof *h)
        return;
    h->magic = CK_PLAN_MAGIC;
    h->version = CK_PLAN_VERSION;
    h->size = (uint32_t)n;
    h->mode %= 3;
    h->nfds = CK_FD_FIRST + h->nfds % 8;
    h->cgroup_fd = -1;
    h->hop &= 1;
    h->nops = 0;
    for (size_t at = sizeof *h; n - at >= sizeof(struct ck_op); h->nops++) {
        fix_op((void *)(p + at), n - at, h->nfds);
        at += ((struct ck_op *)(p + at))->size;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t copy[1 << 16] __attribute__((aligned(8)));
    jmp_buf here;
    if (size < 2 || size > sizeof copy)
        return -1;
    size_t length = (size_t)data[0] | (size_t)(data[1] & 0x0f) << 8;
    if (length > size - 2)
        return -1;
    tape = data + 2;
    tape_end = tape + length;
    plan_size = size - 2 - length;
    memcpy(copy, tape_end, plan_size);
    if (data[1] & 0x80)
        fix_plan(copy, plan_size &= ~7u);
    plan = copy;
    child_after = take();
    swept = 0;
    memset(is_open, 0, sizeof is_open);
    memset(is_open, 1, CK_FD_FIRST + 8);
    memset(&ctx, 0, sizeof ctx);
    gone = &here;
    if (!setjmp(here))
        ck_main();
    while (nallocations)
        free(allocations[--nallocations]);
    return 0;
}
