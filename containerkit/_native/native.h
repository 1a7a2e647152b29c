/* The C half of containerkit/kernel: one function for each system call that Python's os module lacks, and the start of
 * ck-init. Every function returns a value >= 0, or a negative errno; none keeps state. */
#ifndef CK_NATIVE_H
#define CK_NATIVE_H

/* For the code that cffi generates. */
#include <alloca.h>
#include <string.h>

#include <stddef.h>
#include <stdint.h>
#include "cdef.h"

#endif
