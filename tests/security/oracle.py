"""What a policy says about a call, read off its rules one by one: slow, and too simple to be wrong."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Sequence

from containerkit.security import syscalls
from containerkit.security.seccomp import Arg, Seccomp

ENOSYS = 0x50000 | 38

OPS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

MODES = {("chmod", 1), ("mknod", 1), ("mknodat", 2), ("open", 2), ("openat", 3), ("mkdir", 1)}


I386 = {
    "_llseek": "lseek", "_newselect": "select", "fadvise64_64": "fadvise64", "fstatat64": "newfstatat",
    "mmap2": "mmap", "nice": "setpriority", "sigaction": "rt_sigaction", "signal": "rt_sigaction",
    "sigpending": "rt_sigpending", "sigprocmask": "rt_sigprocmask", "sigreturn": "rt_sigreturn",
    "sigsuspend": "rt_sigsuspend", "stime": "settimeofday", "ugetrlimit": "getrlimit", "umount": "umount2",
    "waitpid": "wait4",
}  # fmt: skip


def holds(arg: Arg, name: str, args: Sequence[int]) -> bool:
    # The kernel's types: what it casts away takes no part.
    if (name, arg.index) in MODES:
        width = 0xFFFF
    elif syscalls.INTS.get(name, 0) >> arg.index & 1:
        width = 0xFFFFFFFF
    else:
        width = 0xFFFFFFFFFFFFFFFF
    seen = args[arg.index] & width & arg.mask
    if isinstance(arg.value, tuple):
        return (seen in [value & width for value in arg.value]) is (arg.op == "in")
    value = arg.value & width if arg.op in ("==", "!=") else arg.value
    return bool(OPS[arg.op](seen, value))


def answer(policy: Seccomp, number: int, args: Sequence[int], *, machine: str, architecture: str) -> int:
    """``machine`` is whose filter it is, ``architecture`` whose call."""
    if architecture != machine and not (policy.multiarch and (machine, architecture) == ("x86_64", "i386")):
        return ENOSYS
    if architecture == "x86_64" and number >= 0x40000000:
        return ENOSYS
    called = names_of(architecture, number)
    for rule in reversed(policy.rules):
        for name in called.intersection(rule.names):
            if all(holds(arg, name, args) for arg in rule.where):
                return int(rule.action)
    return int(policy.default)


@functools.cache
def names_of(architecture: str, number: int) -> frozenset[str]:
    """The name of a call, and for 32-bit x86 that of the call which later architectures have instead."""
    numbers = syscalls.numbers(architecture)
    found = {name for name in numbers if numbers[name] == number}
    if architecture == "i386":
        for name in tuple(found):
            if name in I386:
                found.add(I386[name])
            elif name not in syscalls.numbers("x86_64"):
                found.add(re.sub("(32|64|_time64)$", "", name))
    return frozenset(found)
