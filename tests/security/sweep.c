/* Asks the kernel what a filter answers to system calls, without making them.
 *
 * Two filters: an old one that refuses with an errno of its own every call whose sixth argument is ours, and on top the
 * one on trial. Of two answers the kernel takes the stricter, and of two errnos that of the newer filter. So a call that
 * the filter on trial allows ends with our errno, one that it refuses with its, and none is ever made.
 *
 * sweep FILTER ABI FIRST LAST ARG0 ARG1 ARG2: an array of struct sock_filter; x86_64, i386, x32 or aarch64; the calls'
 * numbers; arguments in hexadecimal. Prints a line for each call: its number and the errno.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OURS 0x5eed5eedL
#define NOT_MADE 4000

static long native(long nr, long a, long b, long c, long sixth)
{
#if defined(__x86_64__)
    register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0, r9 __asm__("r9") = sixth;
    long ret;
    __asm__ volatile("syscall" : "=a"(ret) : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
#else
    register long x8 __asm__("x8") = nr, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
                  x3 __asm__("x3") = 0, x4 __asm__("x4") = 0, x5 __asm__("x5") = sixth;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#endif
}

#if defined(__x86_64__)
/* The sixth argument is in ebp, which the compiler may not give away, the first in ebx. */
static long compat(long nr, long a, long b, long c)
{
    int ret;
    __asm__ volatile("push %%rbp\n\tmov %[ours], %%ebp\n\tint $0x80\n\tpop %%rbp"
                     : "=a"(ret) : "0"((int)nr), "b"((int)a), "c"((int)b), "d"((int)c), "S"(0), "D"(0),
                       [ours] "i"((int)OURS) : "memory", "r8", "r9", "r10", "r11");
    return ret;
}
#endif

static void load(struct sock_filter *code, unsigned short size)
{
    struct sock_fprog program = {size, code};
    long r = native(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, (long)&program, 0);
    if (r != 0) {
        fprintf(stderr, "prctl: %ld\n", r);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    static struct sock_filter code[4096];
    static int answers[8192];
    struct sock_filter guard[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OURS, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | NOT_MADE),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    if (argc != 8)
        return 2;
    int fd = open(argv[1], O_RDONLY);
    ssize_t size = read(fd, code, sizeof code);
    long first = atol(argv[3]), last = atol(argv[4]), args[3];
    for (int i = 0; i < 3; i++)
        args[i] = (long)strtoul(argv[5 + i], NULL, 16);
    if (fd < 0 || size <= 0 || last - first >= 8192 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return 2;
    load(guard, 4);
    /* Before the filter on trial: a machine on which our guard does nothing must not get any further. */
    if (native(SYS_getpid, 0, 0, 0, OURS) != -NOT_MADE)
        return 3;
    load(code, (unsigned short)(size / 8));
    for (long nr = first; nr <= last; nr++) {
#if defined(__x86_64__)
        if (strcmp(argv[2], "i386") == 0) {
            answers[nr - first] = (int)compat(nr, args[0], args[1], args[2]);
            continue;
        }
        if (nr == 335 || nr == 336) /* uretprobe and uprobe pass every filter (Linux 6.14), and kill */
            continue;
#endif
        answers[nr - first] = (int)native(strcmp(argv[2], "x32") ? nr : nr | 0x40000000, args[0], args[1], args[2], OURS);
    }
    native(SYS_getpid, 0, 0, 0, 0); /* our number is out of the register that the C library's calls leave alone */
    for (long nr = first; nr <= last; nr++)
        printf("%ld %d\n", nr, -answers[nr - first]);
    return 0;
}
