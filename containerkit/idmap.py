"""Which ids of the host a user namespace's ids are, and ranges of ids that no two sandboxes share."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from functools import cache, partial

from .errors import InvalidValue, Unsupported
from .kernel.fd import Fd
from .plan import DENY_GROUPS, Code, Op, Plan, Stage
from .value import Value, field, frozen

__all__ = ["IdMap", "IdRange"]

Extent = tuple[int, int, int]

_ID_MAX = 0xFFFFFFFF  # exclusive: the last one means "no change" to setresuid(2)


def _extents(value: object) -> tuple[Extent, ...]:
    extents = tuple(tuple(extent) for extent in value)  # type: ignore[attr-defined]
    for extent in extents:
        if len(extent) != 3 or not all(isinstance(n, int) for n in extent):
            raise InvalidValue(f"id map line {extent!r} must be three numbers: first id inside, first outside, count")
        inside, outside, count = extent
        if inside < 0 or outside < 0 or count < 1 or max(inside, outside) + count > _ID_MAX:
            raise InvalidValue(f"id map line {extent!r} leaves the range of ids (0 to {_ID_MAX - 1})")
    if not extents:
        raise InvalidValue("an id map needs at least one line")
    return extents


@frozen()
class IdMap(Value):
    """The ``uid_map`` and ``gid_map`` of a user namespace (user_namespaces(7)).

    Each line is (first id inside, first id outside, count). ``tool`` says that the maps are written by the setuid
    programs newuidmap and newgidmap, which let an ordinary user map the ranges that /etc/subuid and /etc/subgid grant.
    """

    uid: tuple[Extent, ...] = field(converter=_extents)
    gid: tuple[Extent, ...] = field(converter=_extents)
    tool: bool = False

    @classmethod
    def identity(cls) -> IdMap:
        """Every id is itself: a user namespace without translation. Needs root."""
        return cls([(0, 0, _ID_MAX - 1)], [(0, 0, _ID_MAX - 1)])

    @classmethod
    def single(cls, uid: int = 0, gid: int = 0) -> IdMap:
        """One id inside, which is the caller's own outside: all that an ordinary user may do without help."""
        return cls([(uid, os.geteuid(), 1)], [(gid, os.getegid(), 1)])

    @classmethod
    def subordinate(cls) -> IdMap:
        """Id 0 is the caller, and the ids from 1 are the caller's ranges in /etc/subuid and /etc/subgid.

        Raises Unsupported when there are none, or newuidmap is not installed (about a millisecond each at a start).
        """
        uid, gid = os.geteuid(), os.getegid()
        return cls(
            [(0, uid, 1), *_packed(_subordinate_ranges("/etc/subuid"))],
            [(0, gid, 1), *_packed(_subordinate_ranges("/etc/subgid"))],
            tool=True,
        )

    @classmethod
    def range(cls, start: int, count: int = 65536) -> IdMap:
        """The ids from 0 inside are those from ``start`` outside. Needs root."""
        return cls([(0, start, count)], [(0, start, count)])

    @property
    def denies_setgroups(self) -> bool:
        """Whether setgroups(2) is switched off inside.

        The kernel demands it of a map made without privilege, and a user namespace inherits it from its parent.
        """
        return not self.tool and (os.geteuid() != 0 or _setgroups_denied())

    @property
    def maps_host_root(self) -> bool:
        """Whether the caller's id 0 has a place inside."""
        return any(outside == 0 for extents in (self.uid, self.gid) for _, outside, _ in extents)

    def covers(self, uid: int, gid: int) -> bool:
        """Whether both ids have a place inside."""
        return _covers(self.uid, uid) and _covers(self.gid, gid)

    def compile(self, plan: Plan) -> None:
        """Add the operations that write the maps from outside."""
        if not self.tool:
            plan.add(_write_op(self.uid, self.gid, self.denies_setgroups))
            return
        for tool, extents in (("newgidmap", self.gid), ("newuidmap", self.uid)):
            numbers = [str(n).encode() for extent in extents for n in extent]
            plan.add(Op(Code.NEWIDMAP, Stage.OUTSIDE, f"map ids with {tool}: {_words(extents)}", _find(tool), *numbers))


def _setgroups_denied() -> bool:
    with open("/proc/self/setgroups") as file:
        return file.read().strip() == "deny"


def _write_op(uid: tuple[Extent, ...], gid: tuple[Extent, ...], deny: bool) -> Op:
    words = f"map user ids ({_words(uid)}) and group ids ({_words(gid)})"
    return Op(Code.IDMAP, Stage.OUTSIDE, words, _text(uid), _text(gid), flags=DENY_GROUPS if deny else 0)


def _text(extents: tuple[Extent, ...]) -> bytes:
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents).encode()


def _words(extents: tuple[Extent, ...]) -> str:
    return ", ".join(f"{i}+{n} = {o}+{n} outside" if n > 1 else f"{i} = {o} outside" for i, o, n in extents)


def _covers(extents: tuple[Extent, ...], number: int) -> bool:
    return any(inside <= number < inside + count for inside, _, count in extents)


def _packed(ranges: list[tuple[int, int]]) -> list[Extent]:
    """Subordinate ranges one after the other from id 1."""
    extents, at = [], 1
    for start, count in ranges:
        extents.append((at, start, count))
        at += count
    return extents


def _find(tool: str) -> bytes:
    for directory in ("/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"):
        path = f"{directory}/{tool}"
        if os.access(path, os.X_OK):
            return path.encode()
    raise Unsupported(f"{tool} is not installed (Debian: uidmap; Fedora: shadow-utils); IdMap.single() needs no tool")


def _subordinate_ranges(path: str) -> list[tuple[int, int]]:
    import pwd

    uid = os.geteuid()
    names = {str(uid)}
    with suppress(KeyError):  # a user without a name can still be listed by number
        names.add(pwd.getpwuid(uid).pw_name)
    ranges = [(start, count) for name, start, count in _read_subordinate(path) if name in names]
    if not ranges:
        raise Unsupported(
            f"{path} grants no range to this user: add a line like `{max(names)}:100000:65536`, or use IdMap.single()"
        )
    return ranges


def _read_subordinate(path: str) -> list[tuple[str, int, int]]:
    try:
        with open(path, errors="surrogateescape") as file:
            lines = [line.strip().split(":") for line in file]
    except OSError:
        return []
    return [(f[0], int(f[1]), int(f[2])) for f in lines if len(f) == 3 and f[1].isdecimal() and f[2].isdecimal()]


# ---- ranges that nobody shares ---------------------------------------------------------------------------------------

RANGE = 65536
# The upper end of what systemd reserves for containers (524288 to 1879048191, systemd.io/UIDS-GIDS), far from where
# useradd hands out subordinate ranges.
FIRST, LAST = 0x50000000, 0x6FFF0000
_SLOTS = (LAST - FIRST) // RANGE
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")
_DIRECTORY = "/run/containerkit"

_next = os.getpid() * 7919 % _SLOTS


class IdRange(Fd):
    """65,536 host ids that belong to nobody else while this handle is open. Root only.

    Every sandbox of root gets one, so that two sandboxes share no id: neither signals, nor files, nor the kernel's
    per-user limits reach from one to the other. Ranges are kept apart between all users of the library on a machine by
    locks on one byte each of ``/run/containerkit/id-ranges`` (open file description locks: they end with their owner,
    however it ends). Ranges that /etc/subuid or /etc/subgid gives to somebody are left alone.
    """

    __slots__ = ("start",)

    start: int

    @classmethod
    def allocate(cls, *, checked: bool = False) -> IdRange:
        """Find and lock a free range. Raises Unsupported when ids cannot be mapped here or all 8,191 are in use.

        ``checked`` says that the caller knows already that ``owns_all_ids()`` is true.
        """
        global _next
        if not (checked or owns_all_ids()):
            raise Unsupported(
                "only root outside any user namespace has ranges of ids to give: use IdMap.single() or subordinate()"
            )
        handle = cls._open()
        try:
            taken = _taken(_mtime("/etc/subuid"), _mtime("/etc/subgid"))
            for _ in range(_SLOTS):
                index = _next = (_next + 1) % _SLOTS
                if index not in taken and _lock(handle.fileno(), index):
                    handle.start = FIRST + index * RANGE
                    return handle
        except BaseException:
            handle.close()
            raise
        handle.close()
        raise Unsupported(f"all {_SLOTS} id ranges of 65536 ids are in use: close sandboxes that are no longer needed")

    @classmethod
    def _open(cls) -> IdRange:
        """The lock file. The directory must be ours alone: a lock file that others can replace would lock nothing."""
        try:
            directory = Fd.opening(os.open, _DIRECTORY, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            os.makedirs(_DIRECTORY, mode=0o700, exist_ok=True)
            return cls._open()
        with directory:
            stat = os.fstat(directory.fileno())
            if stat.st_uid != 0 or stat.st_mode & 0o022:
                raise Unsupported(f"{_DIRECTORY} must belong to root and be writable by root only; remove it")
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            return cls.opening(partial(os.open, dir_fd=directory.fileno()), "id-ranges", flags, 0o600)

    @property
    def map(self) -> IdMap:
        """The range as a map from id 0. Raises ClosedHandle once it is given back."""
        self.fileno()
        return IdMap.range(self.start, RANGE)

    def compile(self, plan: Plan) -> None:
        """As IdMap.compile, without making a value for it: every start as root goes this way."""
        extents = ((0, self.start, RANGE),)
        plan.add(_write_op(extents, extents, False))

    denies_setgroups = maps_host_root = False

    def covers(self, uid: int, gid: int) -> bool:
        """Whether both ids have a place inside."""
        return 0 <= uid < RANGE and 0 <= gid < RANGE

    def __repr__(self) -> str:
        return "<IdRange closed>" if self.closed else f"<IdRange {getattr(self, 'start', '?')}+{RANGE}>"


def owns_all_ids() -> bool:
    """Whether this process may map any id: root in the initial user namespace."""
    return os.geteuid() == 0 and _sees_all_ids(os.stat("/proc/self/ns/user").st_ino)


@cache
def _sees_all_ids(namespace: int) -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _lock(fd: int, index: int) -> bool:
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, index, 1, 0))
    except BlockingIOError:
        return False
    return True


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@cache
def _taken(*mtimes: int) -> frozenset[int]:
    """Ranges that overlap somebody's subordinate ids; read again when the files change."""
    taken: set[int] = set()
    for path in ("/etc/subuid", "/etc/subgid"):
        for _, start, count in _read_subordinate(path):
            first = max(start, FIRST) - FIRST
            last = min(start + count, LAST) - FIRST - 1
            if first <= last:
                taken.update(range(first // RANGE, last // RANGE + 1))
    return frozenset(taken)
