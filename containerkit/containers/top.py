"""Which processes a container has, by the kernel's own data: nothing is run inside, and nothing inside can lie.

They are those of its pid namespace and of the ones below. Programs that were started in it from outside (``exec``) are
no descendants of its PID 1, and PID 1 itself may not be looked at by an ordinary user (ptrace(2), access mode), while
anybody may know who is whose parent: so a process is one of the container's when the kernel says that it is in the
namespace, or when its parent is one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from ..kernel import nsfs, procfs
from ..kernel.fd import Fd

if TYPE_CHECKING:
    from ..cgroup.directory import Directory
    from .container import Container

__all__ = ["Top", "TopProcess", "processes", "top"]

TITLES = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
"""What ``ps -ef``, and with it ``docker top``, has above its columns."""


class TopProcess(NamedTuple):
    """One process. Ids without ``host_`` are those that are seen inside."""

    pid: int
    """Its id in the container's pid namespace."""
    host_pid: int
    """Its id for the caller."""
    host_parent: int
    """Its parent's id for the caller: of a program that was started from outside, whoever started it."""
    uid: int
    """Its user id in the container's user namespace; 65534 when it has none there."""
    host_uid: int
    state: str
    """One letter, as in proc_pid_stat(5): R S D T Z ..."""
    cpu_seconds: float
    """Processor time that it has used, itself and not its children."""
    started: float
    """Seconds since 1970."""
    terminal: str
    """As ps shows it: "pts/0", or "?" for none."""
    memory: int
    """Bytes that are resident."""
    threads: int
    command: str
    """Its arguments, or its name in brackets. What is not printable is escaped: it may say anything."""


class Top(NamedTuple):
    """The processes of a container at one time, by their ids."""

    titles: tuple[str, ...]
    processes: tuple[TopProcess, ...]

    def rows(self) -> list[list[str]]:
        """As ``docker top`` prints them under ``titles``: with the host's ids."""
        now = time.time()
        return [_row(one, now) for one in self.processes]

    def __str__(self) -> str:
        rows = [list(self.titles), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def top(container: Container) -> Top:
    """The processes of a running container. Raises WrongState when it does not run."""
    from .running import running

    with running(container) as found:
        return Top(TITLES, tuple(processes(found.first, found.namespace("pid"), _of_group(container))))


def _of_group(container: Container) -> list[int] | None:
    """All that are in its control group: on a busy machine much fewer to look at. None without one."""
    from .group import group

    found = group(container)
    if found is None:
        return None
    with found:
        return _in_and_below(found.directory("cgroup"))


def _in_and_below(directory: Directory) -> list[int]:
    from ..cgroup import members

    pids = members.pids(directory)
    for child in members.children(directory):
        with child, suppress(OSError):  # somebody inside may remove it meanwhile
            pids += _in_and_below(child)
    return pids


def processes(first: int, namespace: int | None, among: Iterable[int] | None = None) -> list[TopProcess]:
    """Those of the pid namespace whose PID 1 is ``first``, and whose inode number is ``namespace`` if it is known.

    ``among`` are the ids of which they may be some; by default all of the machine's.
    """
    maps, clock = _id_map(first), _Clock()
    found = []
    for pid in _members(first, namespace, dict(_parents(_all() if among is None else among))):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            found.append(_look(pid, maps, clock))
    return sorted(found, key=lambda one: one.pid)


def _members(first: int, namespace: int | None, parents: Mapping[int, int]) -> Iterator[int]:
    """A child that comes after its parent was looked at is missed, as by every such list."""
    within = _Within(namespace)
    known: dict[int, bool] = {first: True}
    for pid in parents:
        chain = []
        while pid not in known and pid in parents:
            chain.append(pid)
            known[pid] = False  # for now: also the end of a circle, which ids that are used again could make
            if within(pid):
                known[pid] = True
                break
            pid = parents[pid]
        belongs = known.get(pid, False)
        known.update((one, belongs) for one in chain)
    yield from (pid for pid, belongs in known.items() if belongs and pid in parents)


def _all() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _parents(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            yield pid, int(_stat(procfs.read(f"/proc/{pid}/stat"))[1][1])


class _Within:
    """Whether a process is in a pid namespace or in one below it, as far as it may be looked at."""

    def __init__(self, namespace: int | None) -> None:
        self._known = {} if namespace is None else {namespace: True}

    def __call__(self, pid: int) -> bool:
        if not self._known:
            return False
        try:
            with Fd.opening(os.open, f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC) as fd:
                return self._ask(fd)
        except OSError:  # it has ended, or is not ours to look at
            return False

    def _ask(self, fd: Fd) -> bool:
        inode = os.fstat(fd.fileno()).st_ino
        if inode not in self._known:
            above = nsfs.parent(fd.fileno())
            if above is None:
                self._known[inode] = False
            else:
                with Fd(above) as owned:
                    self._known[inode] = self._ask(owned)
        return self._known[inode]


def _stat(text: str) -> tuple[str, list[str]]:
    """Its name, which may contain anything, and the fields after it: state, parent, ..."""
    head, _, tail = text.rpartition(")")
    return head.partition("(")[2], tail.split()


class _Clock:
    """What turns the kernel's ticks since boot into the time of day."""

    def __init__(self) -> None:
        self.hertz = os.sysconf("SC_CLK_TCK")
        self.boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _look(pid: int, maps: str, clock: _Clock) -> TopProcess:
    """By one descriptor of its directory: a process that gets the same id later is another one."""
    directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name, fields = _stat(_read(directory, "stat"))
        status = dict(line.split(":\t", 1) for line in _read(directory, "status").splitlines() if ":\t" in line)
        command = _read(directory, "cmdline")
    finally:
        os.close(directory)
    inside = status.get("NSpid", str(pid)).split()
    host_uid = int(status["Uid"].split()[1])
    return TopProcess(
        int(inside[1] if len(inside) > 1 else inside[0]),  # the first is the id for the /proc that is read
        pid,
        int(fields[1]),
        _inside_id(maps, host_uid),
        host_uid,
        fields[0],
        (int(fields[11]) + int(fields[12])) / clock.hertz,
        clock.boot + int(fields[19]) / clock.hertz,
        _terminal(int(fields[4])),
        int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        int(fields[17]),
        _command(command, name),
    )


def _read(directory: int, file: str) -> str:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        data = os.read(fd, 1 << 16)
    finally:
        os.close(fd)
    return data.decode("utf-8", "surrogateescape")


def _id_map(first: int) -> str:
    try:
        return procfs.read(f"/proc/{first}/uid_map")
    except OSError:
        return ""


_NOBODY = 65534


def _inside_id(maps: str, number: int) -> int:
    """The other way round than procfs.outside_id()."""
    for line in maps.splitlines():
        inside, outside, count = map(int, line.split())
        if outside <= number < outside + count:
            return inside + number - outside
    return _NOBODY


def _terminal(device: int) -> str:
    """Majors 136 to 143 are pseudo-terminals (devices.txt of the kernel); a container has no others."""
    major, minor = os.major(device), os.minor(device)
    if device == 0:
        return "?"
    return f"pts/{minor + ((major - 136) << 20)}" if 136 <= major <= 143 else f"{major}:{minor}"


def _command(arguments: str, name: str) -> str:
    text = arguments.rstrip("\0").replace("\0", " ") if arguments else f"[{name}]"
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    code = ord(one)
    return f"\\x{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}"


# ---- as ps prints it -------------------------------------------------------------------------------------------------


def _row(one: TopProcess, now: float) -> list[str]:
    percent = 100 * one.cpu_seconds / max(now - one.started, 0.01)
    return [
        str(one.host_uid),
        str(one.host_pid),
        str(one.host_parent),
        str(min(int(percent), 99)),
        _started(one.started, now),
        one.terminal,
        _duration(one.cpu_seconds),
        one.command,
    ]


def _started(when: float, now: float) -> str:
    started, today = datetime.fromtimestamp(when).astimezone(), datetime.fromtimestamp(now).astimezone()
    if started.date() == today.date():
        return f"{started:%H:%M}"
    return f"{started:%b%d}" if started.year == today.year else f"{started:%Y}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02}:{minutes:02}:{rest:02}"
