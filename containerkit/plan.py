"""The plan: what a start will do, as a list of operations that ck-init executes.

Values (mounts, namespaces, security, a program and its arguments) compile to operations; a :class:`Plan` collects them
with the descriptors they need, writes itself as bytes for the helper, and tells itself in words for people. Compiling
is pure: it makes no system call, so it can be tested as data. The numbers here are those of ``_native/plan.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from .errors import InvalidValue
from .kernel.calls import CLONE_FLAGS
from .kernel.fd import close_all

if TYPE_CHECKING:
    from .security.supervision import Supervision

MAGIC = 0x4C504B43
VERSION = 1
SIZE_MAX = 16 << 20
SLOTS = 128

FD_PLAN, FD_STATUS, FD_OWNER, FD_FIRST = 3, 4, 5, 6

_HEADER = struct.Struct("=IIIIIIQiI")
_OP = struct.Struct("=IHHIIiiiiQQ")
_LEN = struct.Struct("=I")
_PAD = (b"\0\0\0\0", b"\0\0\0", b"\0\0", b"\0")


class Stage(IntEnum):
    """Which process executes an operation, and when."""

    JOIN = 0  # the helper, before it clones
    OUTSIDE = 1  # the helper, after it cloned: with the caller's privilege, in the caller's namespaces
    EARLY = 2  # the first process, at the same time as OUTSIDE: what needs no ids
    INSIDE = 3  # the first process
    PROGRAM = 4  # the process that becomes the program
    BESIDE = 5  # the helper, at the same time as INSIDE, in the new user namespace


class Mode(IntEnum):
    EXEC = 0  # the first process becomes the program
    INIT = 1  # it stays as PID 1 and starts the program
    HOLD = 2  # it stays as PID 1 and waits for others to join


class Code:
    """What an operation does: ``enum ck_op_code`` in plan.h. Plain numbers: an IntEnum of this size takes 0.6 ms."""

    JOIN = 1
    IDMAP = 2
    NEWIDMAP = 3
    TREE = 4
    FS = 5
    ATTACH = 6
    CLONE = 7
    ATTR = 8
    SCRATCH = 9
    MKDIR = 10
    SYMLINK = 11
    FILE = 12
    MASK = 13
    READONLY = 14
    PIVOT = 15
    PRIVATE = 16
    UNSHARE = 17
    LOOPBACK = 18
    HOSTNAME = 19
    DOMAINNAME = 20
    CGROUP1 = 21
    BECOME = 22
    PTY = 23
    CPU_LIMIT = 24
    CREDS = 25
    SESSION = 26
    RLIMIT = 27
    UMASK = 28
    NICE = 29
    AFFINITY = 30
    SETTING = 31
    FDS = 32
    CHDIR = 33
    EXEC = 34
    NAMESPACES = 35
    SECCOMP = 36
    NETWORK = 37
    ENTER = 38
    LANDLOCK = 39
    PRCTL = 40
    KEYRING = 41
    ATTEST = 42


HOP, BESIDE, DETACHED = 1, 2, 4  # flags of a plan
NAMESPACES_ROOT = 1  # of Code.NAMESPACES: open the root directory, too

RECURSIVE = 1 << 0
IDMAP = 1 << 1
DETACHED = 1 << 2
MKDIR = 1 << 3
MKFILE = 1 << 4
NOSYMLINK = 1 << 5
NO_GROUPS = 1 << 6
CTTY = 1 << 7
NNP = 1 << 8
AMBIENT = 1 << 9
DENY_GROUPS = 1 << 10
OPTIONAL = 1 << 11
DROP_BOUNDING = 1 << 12
KEEP_CREDS = 1 << 13
SAME_MOUNT = 1 << 14
OURS = 1 << 15
ACCOUNT = 1 << 16


def code_name(code: int) -> str:
    return next(name for name, number in vars(Code).items() if number == code and name.isupper())


class Op:
    """One operation. Immutable, so its bytes are made once even when it is part of many plans."""

    __slots__ = ("a", "b", "base", "code", "data", "fd", "flags", "slot", "stage", "strings", "words")

    def __init__(
        self,
        code: int,
        stage: Stage,
        words: str,
        *strings: bytes,
        flags: int = 0,
        fd: int = -1,
        slot: int = -1,
        base: int = -1,
        a: int = 0,
        b: int = 0,
    ) -> None:
        """``words`` says what it does, for explain() and for the error when it fails: "mount proc on /proc"."""
        self.code, self.stage, self.words, self.strings = code, stage, words, strings
        self.flags, self.fd, self.slot, self.base, self.a, self.b = flags, fd, slot, base, a, b
        parts: list[bytes] = []
        for string in strings:
            size = len(string)
            parts += (_LEN.pack(size), string, _PAD[size & 3])
        body = b"".join(parts)
        if len(body) & 7:
            body += bytes(8 - (len(body) & 7))
        self.data = _OP.pack(_OP.size + len(body), code, stage, len(strings), flags, fd, slot, base, 0, a, b) + body

    def __repr__(self) -> str:
        return f"<{self.stage.name} {code_name(self.code)}: {self.words}>"


class Plan:
    """Operations and descriptors of one start.

    Operations may be added in any order of stages; within a stage they run in the order in which they were added.
    """

    __slots__ = (
        "_next_slot", "attest", "beside", "cgroup_fd", "clone_flags", "detached", "fds", "hop", "mode", "ops",
        "outside", "owned", "supervision",
    )  # fmt: skip

    def __init__(self, mode: Mode, clone_flags: int = 0) -> None:
        self.mode = mode
        self.clone_flags = clone_flags
        self.cgroup_fd = -1
        self.hop = False  # clone the helper again after JOIN: see plan.h
        self.beside = False  # there are operations of that stage
        self.detached = False  # nobody's child, and nobody's to end
        self.outside = False  # the first process starts the program in a pid namespace in which it is not itself
        self.ops: list[Op] = []
        self.fds: list[int] = []  # ours; number FD_FIRST + index in the helper
        self.owned: list[int] = []  # those of them that were opened for this plan alone
        self._next_slot = FIRST_FREE_SLOT
        self.attest: Callable[[int], None] | None = None  # looks at the program's process before its exec
        self.supervision: Supervision | None = None  # takes the listener of a filter that has one

    def add(self, *ops: Op) -> None:
        self.ops.extend(ops)

    def fd(self, number: int) -> int:
        """Hand a descriptor of ours to the helper; returns its number there. It stays ours to close."""
        self.fds.append(number)
        return FD_FIRST + len(self.fds) - 1

    def close(self) -> None:
        """Close the descriptors that were opened for this plan. Idempotent."""
        close_all(self.owned)

    def __del__(self) -> None:
        """Of one that an interrupted start has lost."""
        if hasattr(self, "owned"):
            self.close()

    def slot(self) -> int:
        """A free place for a mount that is made in one stage and used in a later one."""
        if self._next_slot >= SLOTS - 1:
            raise InvalidValue(
                f"more than {SLOTS - 1 - FIRST_FREE_SLOT} mounts have a source outside the sandbox: bind a common "
                "parent directory"
            )
        self._next_slot += 1
        return self._next_slot - 1

    def to_bytes(self) -> bytes:
        body = b"".join([op.data for op in self.ops])
        size = _HEADER.size + len(body)
        if size > SIZE_MAX:
            raise InvalidValue(
                f"arguments, environment and files of this process take {size} bytes; a plan holds {SIZE_MAX}"
            )
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            size,
            len(self.ops),
            self.mode,
            FD_FIRST + len(self.fds),
            self.clone_flags,
            self.cgroup_fd,
            self.hop * HOP | self.beside * BESIDE | self.detached * DETACHED,
        )
        return header + body

    def in_order(self) -> Iterator[Op]:
        for stage in (Stage.JOIN, Stage.OUTSIDE, Stage.EARLY, Stage.BESIDE, Stage.INSIDE, Stage.PROGRAM):
            yield from (op for op in self.ops if op.stage is stage)

    def explain(self) -> str:
        """The plan in words, a line for each operation, by the process that executes it."""
        lines: list[str] = []
        for stage, title in _TITLES:
            ops = [op for op in self.ops if op.stage is stage]
            if stage is Stage.EARLY:
                if self.hop:
                    lines.append("the helper goes on in a process of the joined pid namespace")
                lines.append(f"the helper clones the first process{_namespaces(self.clone_flags)}")
            if ops:
                lines.append(title)
                lines += [f"  {op.words}" for op in ops]
        lines.append(_ENDINGS[self.mode])
        return "\n".join(lines)


# Places for what every sandbox has; free ones come after.
_PLACES = range(10)
SLOT_SCRATCH, SLOT_ROOT, SLOT_MASKS, SLOT_PROC, SLOT_SYS, SLOT_DEV, SLOT_PTS, SLOT_NET, SLOT_TEMP, SLOT_TEMP2 = _PLACES
FIRST_FREE_SLOT = len(_PLACES)

_TITLES: Sequence[tuple[Stage, str]] = (
    (Stage.JOIN, "the helper, outside:"),
    (Stage.EARLY, "the first process, before its ids are mapped:"),
    (Stage.OUTSIDE, "the helper, at the same time, outside:"),
    (Stage.BESIDE, "the helper, while the first process goes on, in the new user namespace:"),
    (Stage.INSIDE, "the first process, inside:"),
    (Stage.PROGRAM, "the program's process:"),
)
_ENDINGS = {
    Mode.EXEC: "the first process has become the program",
    Mode.INIT: "the first process stays as PID 1: reaps, forwards signals, dies with its owner",
    Mode.HOLD: "the first process stays as PID 1 and waits for processes that join",
}


def _namespaces(flags: int) -> str:
    kinds = [kind for kind, flag in CLONE_FLAGS.items() if flags & flag]
    return f" with new namespaces: {', '.join(kinds)}" if kinds else ""
