"""The compiler of seccomp policies: rules to classic BPF (Documentation/userspace-api/seccomp_filter.rst).

A filter sees a call's number, its architecture and six arguments of 64 bits, as words of 32. It may only jump forward,
and a conditional jump only over 255 instructions. So the program is written from its end: each instruction knows where
its targets are, and a target that has come too far away gets a stepping stone.

The shape: is it our architecture; then a search over the call numbers, in which neighbours with one answer are one
range; then, for the few calls that have conditions, their tests. The path to an answer that hangs on the number alone
has only jumps, so Linux keeps these answers in a bitmap and does not run the filter at all (5.11, x86-64, arm64).

What a filter costs is its loading, at every start: 20 us for any, 0.2 us for each instruction (the kernel compiles it),
and 3 ns for each step of each number on its way to an answer (the kernel tries all of them for its bitmap). So the
search halves the numbers, not the ranges, and a few numbers that stand alone among others of one answer are asked for
one by one, which takes one instruction where cutting the range takes two.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InvalidValue
from . import syscalls

if TYPE_CHECKING:
    from .seccomp import Arg, Seccomp

__all__ = ["compile_filter"]

LENGTH_MAX = 4096  # BPF_MAXINSNS

# linux/bpf_common.h
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # LD|W|ABS, ALU|AND|K, RET|K
_JUMP, _EQUAL, _GREATER, _NOT_LESS, _ANY_BIT = 0x05, 0x15, 0x25, 0x35, 0x45  # JA, JEQ, JGT, JGE, JSET |K

# struct seccomp_data
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

# linux/audit.h
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}
_X32 = 0x40000000

_ENOSYS = 0x00050000 | errno.ENOSYS
_U32 = 0xFFFFFFFF

_IN_USE = 480  # numbers, in any of the three lists; the search is halved over these
_ODD_ONES = 3

# Of these arguments of syscalls.INTS, which are file modes, it reads 16 bits (umode_t).
_MODES = {
    "chmod": 0b10, "creat": 0b10, "fchmod": 0b10, "fchmodat": 0b100, "fchmodat2": 0b100, "mkdir": 0b10,
    "mkdirat": 0b100, "mknod": 0b10, "mknodat": 0b100, "mq_open": 0b100, "open": 0b100, "openat": 0b1000,
}  # fmt: skip

# 32-bit x86 has several calls where later architectures have one. socketcall and ipc, which carry their arguments
# behind a pointer, are none of them.
_I386_SUFFIXES = ("32", "64", "_time64")
_I386_ALSO = {
    "fadvise64": ("fadvise64_64",), "getrlimit": ("ugetrlimit",), "lseek": ("_llseek",), "mmap": ("mmap2",),
    "newfstatat": ("fstatat64",), "rt_sigaction": ("sigaction", "signal"), "rt_sigpending": ("sigpending",),
    "rt_sigprocmask": ("sigprocmask",), "rt_sigreturn": ("sigreturn",), "rt_sigsuspend": ("sigsuspend",),
    "select": ("_newselect",), "setpriority": ("nice",), "settimeofday": ("stime",), "umount2": ("umount",),
    "wait4": ("waitpid",),
}  # fmt: skip

if TYPE_CHECKING:
    # Argument, operator, numbers, mask, whether 64 bits count.
    Condition = tuple[int, str, tuple[int, ...], int, bool]
    # Conditions, and what to return if all hold.
    Test = tuple[tuple[Condition, ...], int]
    # What to return; or tests, of which the first that holds decides, and what to return if none does.
    Answer = int | tuple[tuple[Test, ...], int]


def compile_filter(policy: Seccomp, machine: str) -> bytes:
    """The filter for programs of ``machine``, and of 32-bit x86 if the policy lets them run."""
    code = _Assembler()
    elsewhere = code.give(_ENOSYS)
    if policy.multiarch and machine == "x86_64":
        search = _search(code, _ranges(_answers(policy, "i386"), int(policy.default)))
        number = code.load(_NUMBER, before=search)
        elsewhere = code.jump(_EQUAL, _AUDIT_ARCH["i386"], number, elsewhere)
    ranges = _ranges(_answers(policy, machine), int(policy.default))
    if machine == "x86_64" and ranges[-1][1] != _ENOSYS:
        ranges.append((_X32, _ENOSYS))
    number = code.load(_NUMBER, before=_search(code, ranges))
    ours = code.jump(_EQUAL, _AUDIT_ARCH[machine], number, elsewhere)
    code.load(_ARCHITECTURE, before=ours)
    return code.program()


def _answers(policy: Seccomp, machine: str) -> dict[int, Answer]:
    """By number, what becomes of each call that a rule names."""
    numbers = syscalls.numbers(machine)
    default = int(policy.default)
    answers: dict[int, Answer] = {}
    for rule in policy.rules:
        action = int(rule.action)
        for name in rule.names:
            for number in _numbers_of(name, machine, numbers):
                if not rule.where:
                    answers[number] = action
                    continue
                tests, otherwise = _as_tests(answers.get(number, default))
                if tests or otherwise != action:
                    conditions = tuple(_condition(arg, name) for arg in rule.where)
                    answers[number] = (((conditions, action), *tests), otherwise)
    return answers


def _as_tests(answer: Answer) -> tuple[tuple[Test, ...], int]:
    return ((), answer) if isinstance(answer, int) else answer


def _numbers_of(name: str, machine: str, numbers: dict[str, int]) -> Sequence[int]:
    if machine != "i386":
        return (numbers[name],) if name in numbers else ()
    native = syscalls.numbers("x86_64")
    names = [name, *(name + suffix for suffix in _I386_SUFFIXES if name + suffix not in native)]
    return [numbers[one] for one in (*names, *_I386_ALSO.get(name, ())) if one in numbers]


def _condition(arg: Arg, name: str) -> Condition:
    values = arg.value if isinstance(arg.value, tuple) else (arg.value,)
    if not syscalls.INTS.get(name, 0) >> arg.index & 1:
        return arg.index, arg.op, values, arg.mask, True
    read = 0xFFFF if _MODES.get(name, 0) >> arg.index & 1 else _U32
    if arg.op in ("==", "!=", "in", "not in"):
        return arg.index, arg.op, tuple(value & read for value in values), arg.mask & read, False
    if values[0] > read:  # more than any
        return arg.index, "<=" if arg.op in ("<", "<=") else ">", (read,), arg.mask & read, False
    return arg.index, arg.op, values, arg.mask & read, False


def _ranges(answers: dict[int, Answer], default: int) -> list[tuple[int, Answer]]:
    """The first number of each run of equal answers, and the answer: from 0 to the end of all numbers."""
    ranges: list[tuple[int, Answer]] = [(0, answers.get(0, default))]
    following = 0
    for number in sorted(answers):
        if number != following and ranges[-1][1] != default:
            ranges.append((following, default))
        if answers[number] != ranges[-1][1]:
            ranges.append((number, answers[number]))
        following = number + 1
    if ranges[-1][1] != default:
        ranges.append((following, default))
    return ranges


def _search(code: _Assembler, ranges: Sequence[tuple[int, Answer]], end: int = 1 << 32) -> int:
    """The first instruction of a search for the number in the accumulator, which ``ranges`` cover up to ``end``."""
    odd = _odd_ones(ranges, end)
    if odd is not None:
        base, numbers = odd
        found = _give(code, base)
        for number, answer in reversed(numbers):
            found = code.jump(_EQUAL, number, _give(code, answer), found)
        return found
    both, half = ranges[0][0] + min(end, _IN_USE), 1
    while half < len(ranges) - 1 and ranges[half][0] + ranges[half + 1][0] < both:
        half += 1
    start = ranges[half][0]
    above = _search(code, ranges[half:], end)
    below = _search(code, ranges[:half], start)
    return code.jump(_NOT_LESS, start, above, below)


def _odd_ones(ranges: Sequence[tuple[int, Answer]], end: int) -> tuple[Answer, list[tuple[int, Answer]]] | None:
    """If all numbers but a few have one answer: that answer, and those few."""
    if len(ranges) > 2 * _ODD_ONES + 1:
        return None
    ends = [start for start, _ in ranges[1:]] + [end]
    for base in dict.fromkeys(answer for _, answer in ranges):
        others = [(start, stop, answer) for (start, answer), stop in zip(ranges, ends, strict=True) if answer != base]
        if len(others) <= _ODD_ONES and all(stop == start + 1 for start, stop, _ in others):
            return base, [(start, answer) for start, _, answer in others]
    return None


def _give(code: _Assembler, answer: Answer) -> int:
    if isinstance(answer, int):
        return code.give(answer)
    known = code.tests.get(answer)
    if known is None:
        tests, otherwise = answer
        known = code.give(otherwise)
        for conditions, action in reversed(tests):
            no, known = known, code.give(action)
            for condition in reversed(conditions):
                known = _test(code, condition, known, no)
        code.tests[answer] = known
    return known


def _test(code: _Assembler, condition: Condition, yes: int, no: int) -> int:
    index, op, values, mask, wide = condition
    if op in ("!=", "not in", "<", "<="):
        yes, no = no, yes
    low, high = _ARGUMENTS + 8 * index, _ARGUMENTS + 8 * index + 4  # both architectures are little-endian
    low_mask, high_mask = mask & _U32, mask >> 32
    if op in (">", ">=", "<", "<="):
        value = values[0]
        last = _GREATER if op in (">", "<=") else _NOT_LESS
        entry = code.load(low, low_mask, before=code.jump(last, value & _U32, yes, no))
        if wide:
            entry = code.jump(_EQUAL, value >> 32, entry, no)
            entry = code.load(high, high_mask, before=code.jump(_GREATER, value >> 32, yes, entry))
        return entry
    if values == (0,):  # no bit of the mask is set
        entry = code.load(low, before=code.jump(_ANY_BIT, low_mask, no, yes)) if low_mask else yes
        return code.load(high, before=code.jump(_ANY_BIT, high_mask, no, entry)) if wide and high_mask else entry
    if not wide or not high_mask:
        lows = [value for value in values if value <= _U32]
        return _one_of(code, low, low_mask, dict.fromkeys(lows, yes), no)
    by_high: dict[int, dict[int, int]] = {}
    for value in values:
        by_high.setdefault(value >> 32, {})[value & _U32] = yes
    found = {half: _one_of(code, low, low_mask, lows, no) for half, lows in by_high.items()}
    return _one_of(code, high, high_mask, found, no)


def _one_of(code: _Assembler, offset: int, mask: int, targets: dict[int, int], no: int) -> int:
    if not targets:
        return no
    for value, target in targets.items():
        no = code.jump(_EQUAL, value, target, no)
    return code.load(offset, mask, before=no)


class _Assembler:
    """A program, written from its end. A position counts from there: it stays when more is written before it."""

    def __init__(self) -> None:
        self.tests: dict[Answer, int] = {}
        self._code: list[tuple[int, int, int, int]] = []  # code, jt, jf, k; the last one first
        self._given: dict[int, int] = {}

    def give(self, value: int) -> int:
        """An instruction that ends with this value."""
        known = self._given.get(value)
        if known is None or self._distance(known) > 200:
            known = self._given[value] = self._write(_RETURN, 0, 0, value)
        return known

    def jump(self, code: int, k: int, yes: int, no: int) -> int:
        """A comparison of the accumulator with ``k``."""
        if yes == no:
            return yes
        yes, no = self._within_reach(yes), self._within_reach(no)
        return self._write(code, self._distance(yes), self._distance(no), k)

    def load(self, offset: int, mask: int = _U32, *, before: int) -> int:
        """Load a word of the call, and go on at ``before``, which has to come next."""
        if before != len(self._code) - 1:
            self._stone(before)
        if mask != _U32:
            self._write(_AND, 0, 0, mask)
        return self._write(_LOAD, 0, 0, offset)

    def program(self) -> bytes:
        if len(self._code) > LENGTH_MAX:
            raise InvalidValue(
                f"the policy needs {len(self._code)} instructions, more than the {LENGTH_MAX} that the kernel takes: "
                "use fewer conditions, or masks and ranges instead of single numbers"
            )
        return struct.pack("<" + "HBBI" * len(self._code), *(part for line in reversed(self._code) for part in line))

    def _write(self, code: int, jt: int, jf: int, k: int) -> int:
        self._code.append((code, jt, jf, k))
        return len(self._code) - 1

    def _distance(self, position: int) -> int:
        """What the next instruction has to jump over to get there."""
        return len(self._code) - position - 1

    def _within_reach(self, position: int) -> int:
        # Two less than the limit: the other target of the same jump may need a stone, too.
        return position if self._distance(position) <= 253 else self._stone(position)

    def _stone(self, position: int) -> int:
        code, _, _, k = self._code[position]
        return self._write(_RETURN, 0, 0, k) if code == _RETURN else self._write(_JUMP, 0, 0, self._distance(position))
