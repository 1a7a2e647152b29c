/* The kernel, without a libc: raw system calls and the few string functions ck-init needs. */
#ifndef CK_SYS_H
#define CK_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <asm/unistd.h>
#include <linux/errno.h>

#ifndef __NR_clone3
#define __NR_clone3 435
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef __NR_openat2
#define __NR_openat2 437
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif

#define unlikely(x) __builtin_expect(!!(x), 0)
#define countof(a) (sizeof(a) / sizeof((a)[0]))

/* The same on both architectures (include/uapi). Spelled apart from the libc's names, whose headers are not used. */
enum {
    FD_CWD = -100,
    CLOEXEC = 02000000, /* O_, SOCK_, SFD_ */
    OPEN_PATH = 010000000,
    EMPTY_PATH = 0x1000,
    DUPFD_CLOEXEC = 1030,
    SIGNAL_KILL = 9,
    SIGNAL_TERM = 15,
    SIGNAL_CHLD = 17,
};

/* The number of the system call made last: a failure names it. */
extern int last_sysno;

static inline long raw_syscall(long n, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long ret;
    __asm__ volatile("syscall" : "=a"(ret) : "0"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#else
#error "containerkit builds for x86-64 and aarch64"
#endif
}

#define SYS_PICK(_1, _2, _3, _4, _5, _6, N, ...) N
#define SYS1(n, a) raw_syscall(n, (long)(a), 0, 0, 0, 0, 0)
#define SYS2(n, a, b) raw_syscall(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS3(n, a, b, c) raw_syscall(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS4(n, a, b, c, d) raw_syscall(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS5(n, a, b, c, d, e) raw_syscall(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS6(n, a, b, c, d, e, f) raw_syscall(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys(name, ...)                                                                                                 \
    (last_sysno = __NR_##name, SYS_PICK(__VA_ARGS__, SYS6, SYS5, SYS4, SYS3, SYS2, SYS1, )(__NR_##name, __VA_ARGS__))

/* clone3 whose child runs fn(arg) on the stack named in the arguments. fn must not return. */
struct clone_args;
static inline long clone_call(struct clone_args *args, size_t size, void (*fn)(void *), void *arg)
{
#if defined(__x86_64__)
    long ret;
    register void (*r8)(void *) __asm__("r8") = fn;
    register void *r9 __asm__("r9") = arg;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r9, %%rdi\n\t"
                     "call *%%r8\n\t"
                     "ud2\n"
                     "1:"
                     : "=a"(ret)
                     : "0"((long)__NR_clone3), "D"(args), "S"(size), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = __NR_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = (long)size;
    register void (*x2)(void *) __asm__("x2") = fn;
    register void *x3 __asm__("x3") = arg;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x3\n\t"
                     "blr x2\n\t"
                     "brk 0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3)
                     : "x30", "memory");
    return x0;
#endif
}

#ifndef CK_NO_STRING_FUNCTIONS
void *memcpy(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);

char *put_str(char *p, const char *end, const char *s);
char *put_dec(char *p, const char *end, uint64_t v);
int get_dec(const char *s, size_t n, uint32_t *out);
#endif

#endif
