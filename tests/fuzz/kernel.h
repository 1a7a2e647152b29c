/* Included before every file of ck-init when it is built for fuzzing: its system calls go to the kernel of plan_fuzz.c,
 * so nothing that a plan asks for is done to this machine. */
#ifndef FUZZ_KERNEL_H
#define FUZZ_KERNEL_H

#define raw_syscall machine_syscall
#define clone_call machine_clone_call
#include "init/sys.h"
#undef raw_syscall
#undef clone_call

long raw_syscall(long n, long a, long b, long c, long d, long e, long f);
long clone_call(struct clone_args *args, size_t size, void (*fn)(void *), void *arg);

#endif
