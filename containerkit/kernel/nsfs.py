"""Namespace files: what a descriptor of one tells, how to get one, and which namespaces this machine has.

A namespace is a file of the kernel's nsfs (namespaces(7)). Its descriptor keeps it alive, its device and
inode are its identity while it lives, and its ioctls tell kind and relatives (ioctl_nsfs(2); all of them are
older than Linux 5.0).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from .._native._ck import ffi, lib
from ..errors import InvalidValue, Unsupported, syscall_error
from .calls import CLONE_FLAGS, StrPath, check, pid_of

KINDS = tuple(CLONE_FLAGS)
HIERARCHICAL = frozenset({"user", "pid"})
"""The kinds whose namespaces have a parent."""

_BY_FLAG = {flag: name for name, flag in CLONE_FLAGS.items()}  # NS_GET_NSTYPE answers with the CLONE_NEW* flag

_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB703, 0xB704
# linux/pidfd.h: PIDFD_GET_*_NAMESPACE, _IO(0xFF, n). The names are those of the files in /proc/PID/ns.
_PIDFD_GET = {
    "cgroup": 0xFF01,
    "ipc": 0xFF02,
    "mnt": 0xFF03,
    "net": 0xFF04,
    "pid": 0xFF05,
    "pid_for_children": 0xFF06,
    "time": 0xFF07,
    "time_for_children": 0xFF08,
    "user": 0xFF09,
    "uts": 0xFF0A,
}

Identity = tuple[int, int]
"""Device and inode: equal for two descriptors exactly when they are of one namespace (namespaces(7))."""


# ---- what a descriptor tells -----------------------------------------------------------------------------


def kind(fd: int) -> str:
    """The kind of the namespace, named as in /proc/PID/ns. Raises InvalidValue when it is no namespace."""
    result = lib.ck_ioctl(fd, _NS_GET_NSTYPE, 0)
    if result == -errno.ENOTTY:
        raise InvalidValue(f"descriptor {fd} is not one of a namespace")
    flag = check(result, "ioctl NS_GET_NSTYPE")
    try:
        return _BY_FLAG[flag]
    except KeyError:
        raise Unsupported(f"a kind of namespace that containerkit does not know ({flag:#x})") from None


def identity(fd: int) -> Identity:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino


def parent(fd: int) -> int | None:
    """A descriptor of the parent of a user or pid namespace.

    None when it has none, or one that lies outside our own user or pid namespace: the kernel does not tell
    which (EPERM, ioctl_nsfs(2)). Raises InvalidValue for the other kinds.
    """
    result = lib.ck_ioctl(fd, _NS_GET_PARENT, 0)
    if result == -errno.EINVAL:
        raise InvalidValue("only user and pid namespaces have a parent")
    return _relative(result, "ioctl NS_GET_PARENT")


def owner(fd: int) -> int | None:
    """A descriptor of the user namespace whose capabilities count in this one; None if it lies outside ours.

    Of a user namespace it is the parent.
    """
    return _relative(lib.ck_ioctl(fd, _NS_GET_USERNS, 0), "ioctl NS_GET_USERNS")


def _relative(result: int, syscall: str) -> int | None:
    return None if result == -errno.EPERM else check(result, syscall)


def owner_uid(fd: int) -> int:
    """The user who made a user namespace, as our own user namespace numbers it.

    The overflow id, 65534, stands for a user who has no number here. Raises InvalidValue for the other kinds.
    """
    uid = ffi.new("uint32_t *")
    result = lib.ck_ioctl(fd, _NS_GET_OWNER_UID, int(ffi.cast("uintptr_t", uid)))
    if result == -errno.EINVAL:
        raise InvalidValue("only user namespaces have an owner_uid; for the others ask their owner")
    check(result, "ioctl NS_GET_OWNER_UID")
    return int(uid[0])


# ---- how to get one --------------------------------------------------------------------------------------


def open_path(path: StrPath) -> int:
    """Open a namespace file: a link in /proc/PID/ns, or a file that one is pinned at."""
    try:
        # Whoever names a FIFO or a terminal by mistake gets an error and does not hang.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", path, _open_hint(error.errno)) from None


def open_pid(pid: int, name: str) -> int:
    """Open ``/proc/PID/ns/name``. By the time it is looked up a pid can be another's; a pidfd cannot."""
    return open_path(f"/proc/{pid}/ns/{name}")


def open_pidfd(pidfd: int, name: str) -> int:
    """Open a namespace of the process behind a pidfd.

    ``name`` is one of :data:`KINDS`, ``"pid_for_children"`` or ``"time_for_children"``. The kernel does it
    itself since Linux 6.11; before, the file in /proc is opened, and is the right one because the process is
    still there afterwards. Needs the right to inspect the process (ptrace(2), PTRACE_MODE_READ_FSCREDS).
    """
    result = lib.ck_ioctl(pidfd, _PIDFD_GET[name], 0)
    if result >= 0:
        return int(result)
    if result != -errno.ENOTTY:
        raise syscall_error(-result, f"ioctl PIDFD_GET_{name.upper()}_NAMESPACE", None, _open_hint(-result))
    fd = open_pid(pid_of(pidfd), name)
    try:
        _check_alive(pidfd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_hint(number: int | None) -> str | None:
    if number in (errno.EACCES, errno.EPERM):
        return (
            "looking at a process's namespaces needs the right to trace it: be its user, with all the "
            "capabilities that it has, or have CAP_SYS_PTRACE in its user namespace"
        )
    if number == errno.ESRCH:
        return "the process has ended"
    if number == errno.ENOENT:
        return "the process has ended, or this kernel lacks that kind of namespace"
    return None


def _check_alive(pidfd: int) -> None:
    """Raise SyscallError (ESRCH) when the process has been reaped, so that its pid may be another's."""
    import signal

    try:
        signal.pidfd_send_signal(pidfd, 0)
    except PermissionError:
        pass  # it is there, only not ours to signal
    except OSError as error:
        raise syscall_error(error.errno or 0, "pidfd_send_signal", None, _open_hint(error.errno)) from None


# ---- which there are -------------------------------------------------------------------------------------


class Found(NamedTuple):
    """One namespace of the machine.

    ``processes`` counts those that are in it, and ``pid`` is the lowest of them (0: none). ``pins`` are the
    paths at which our mount namespace shows it. ``owner`` and ``parent`` are inodes; None: there is none that
    we may see.
    """

    kind: str
    dev: int
    inode: int
    processes: int
    pid: int
    pins: tuple[str, ...]
    owner: int | None
    parent: int | None


class _Seen:
    """What the walk gathers about one namespace; ``way`` is a path that leads to it, for now."""

    __slots__ = ("kind", "pid", "pins", "processes", "way")

    def __init__(self, kind: str, way: str) -> None:
        self.kind, self.way = kind, way
        self.processes = self.pid = 0
        self.pins: list[str] = []


def machine() -> list[Found]:
    """Every namespace that we can see: of processes, pinned by bind mounts, and their owners and parents.

    Missing are namespaces of processes that we may not inspect (for an ordinary user: most of other users'),
    those that single threads are in, that only descriptors hold, or that are pinned in other mount
    namespaces. It is no snapshot: processes come and go while it walks.
    """
    seen: dict[Identity, _Seen] = {}
    for pid in _pids():
        _walk_process(pid, seen)
    for name, path in _pins():
        _walk_pin(name, path, seen)
    found: dict[Identity, Found] = {}
    for number, entry in seen.items():
        _resolve(number, entry, found)
    return sorted(found.values(), key=lambda one: (KINDS.index(one.kind), one.inode))


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def _walk_process(pid: int, seen: dict[Identity, _Seen]) -> None:
    for name in (*KINDS, "pid_for_children", "time_for_children"):
        path = f"/proc/{pid}/ns/{name}"
        try:
            stat = os.stat(path)  # follows the link, and asks for no more rights than to read it
        except OSError:
            continue  # ended, not ours to see, or a kind that this kernel lacks
        kind, for_children, _ = name.partition("_for_children")
        entry = seen.setdefault((stat.st_dev, stat.st_ino), _Seen(kind, path))
        if not for_children:
            entry.processes += 1
            entry.pid = entry.pid or pid


def _pins() -> Iterator[tuple[str, str]]:
    """The nsfs lines of our mount table: ("net:[4026532281]", "/run/netns/blue") (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            if rest.startswith("nsfs "):
                root, path = fields.split()[3:5]
                yield root, _unescape(path)


def _unescape(path: str) -> str:
    """The table writes space, tab, newline and backslash as three octal digits."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(octal, character)
    return path


def _walk_pin(name: str, path: str, seen: dict[Identity, _Seen]) -> None:
    try:
        stat = os.stat(path)
    except OSError:
        return  # below a directory that we may not search
    if not name.endswith(f":[{stat.st_ino}]"):
        return  # another mount covers it
    entry = seen.setdefault((stat.st_dev, stat.st_ino), _Seen(name.partition(":")[0], path))
    entry.pins.append(path)


def _resolve(number: Identity, entry: _Seen, found: dict[Identity, Found]) -> None:
    """Add a namespace with its relatives; relatives that no process is in are found only this way."""
    try:
        fd = open_path(entry.way)
    except OSError:
        fd = -1
    owners = parents = None
    if fd >= 0:
        try:
            if identity(fd) == number:  # the pid may be another's by now
                owners = _relatives(owner(fd), found)
                parents = _relatives(parent(fd), found) if entry.kind in HIERARCHICAL else None
        finally:
            os.close(fd)
    pins = tuple(entry.pins)
    found[number] = Found(entry.kind, *number, entry.processes, entry.pid, pins, owners, parents)


def _relatives(fd: int | None, found: dict[Identity, Found]) -> int | None:
    """The inode behind ``fd``, which is closed; it and its own ancestors are added when they are new."""
    if fd is None:
        return None
    try:
        number = identity(fd)
        if number not in found:
            name = kind(fd)
            mine = _relatives(owner(fd), found)
            above = _relatives(parent(fd), found) if name in HIERARCHICAL else None
            found[number] = Found(name, *number, 0, 0, (), mine, above)
        return number[1]
    finally:
        os.close(fd)
