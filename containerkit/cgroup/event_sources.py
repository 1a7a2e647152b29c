"""Where the news of a control group comes from: one source for each file that tells something.

===========================  ============================================  ==========================================
event                        v2                                            v1
===========================  ============================================  ==========================================
OOM                          memory.events: oom                            an eventfd on memory.oom_control
OOM_KILL                     memory.events: oom_kill                       memory.oom_control: oom_kill, after OOM
MEMORY_HIGH                  memory.events: high                           none
MEMORY_MAX                   memory.events: max                            memory.failcnt (looked at while waiting)
PIDS_MAX                     pids.events: max                              pids.events: max
POPULATED, EMPTY             cgroup.events: populated                      the hybrid layout: as v2; else cgroup.procs
                                                                           (looked at while waiting)
FROZEN, THAWED               cgroup.events: frozen                         the hybrid layout: as v2
PRESSURE (PressureTrigger)   {cpu,memory,io}.pressure                      the hybrid layout: as v2
PRESSURE (MemoryPressure)    none                                          an eventfd on memory.pressure_level
===========================  ============================================  ==========================================

The event files are pollable themselves (POLLPRI, kernfs; no inotify is needed), and an epoll descriptor over them is
readable when one has news: so one descriptor serves poll(2) and every event loop. Two things cannot be told that way.
What v1 only counts is looked at every 50 ms while somebody waits. And a pressure trigger forgets its event when it is
polled, even from the outside of an epoll: those are polled directly, or by an event loop twice in each window.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import Unsupported, syscall_error
from .event_values import EventKind, MemoryPressure, PressureTrigger
from .stats import pairs, read_all

if TYPE_CHECKING:
    from .directory import Directory

__all__ = ["HEARTBEAT", "Source", "Sources", "Trigger"]

LOOK = 0.05
"""Seconds between two looks at what v1 only counts."""
HEARTBEAT = 1.0
"""Seconds between two looks whether the group is still there: of the removal of an empty one nothing is told."""


class Source:
    """A descriptor that becomes ready, and what there is to read then."""

    fd = -1
    mask = select.EPOLLPRI
    look: float | None = None
    """Seconds until it has to be looked at, when it does not become ready by itself."""

    def take(self) -> Iterable[tuple[EventKind, int, int]]:
        """What is new: kind, count, total."""
        raise NotImplementedError

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class _Counters(Source):
    """A flat keyed file of counters, or a file of one number, of which every growth is an event."""

    def __init__(self, one: Directory, file: str, kinds: dict[str, EventKind], look: float | None = None) -> None:
        self.fd, self.look, self._kinds = one.open(file), look, kinds
        try:
            self._known = self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, int]:
        text = read_all(self.fd)
        named = pairs(text) if len(text.split()) > 1 else {"": text}
        return {key: int(named.get(key, 0)) for key in self._kinds}

    def take(self) -> Iterable[tuple[EventKind, int, int]]:
        before, self._known = self._known, self._read()
        for key, kind in self._kinds.items():
            if self._known[key] > before[key]:
                yield kind, self._known[key] - before[key], self._known[key]


class _States(Source):
    """cgroup.events: what is so, and every change of it.

    It is read when the kernel tells of a change, and not at other times: so a change that nothing is seen of was one
    there and back, a process that came and ended between two looks. (Within 10 ms of the last one the kernel delays
    news, cgroup_file_notify(), so that one end may be told twice; none is ever missed.)
    """

    def __init__(self, one: Directory, kinds: dict[str, tuple[EventKind, EventKind]]) -> None:
        self._kinds, self._changes = kinds, dict.fromkeys((kind for pair in kinds.values() for kind in pair), 0)
        self.fd = self._open(one)
        self._poller = select.poll()
        self._poller.register(self.fd, select.POLLPRI)
        try:
            self._known = self._read()
        except BaseException:
            self.close()
            raise

    def _open(self, one: Directory) -> int:
        return one.open("cgroup.events")

    def _read(self) -> dict[str, bool]:
        named = pairs(read_all(self.fd))
        return {key: named.get(key) == "1" for key in self._kinds}

    def take(self) -> Iterable[tuple[EventKind, int, int]]:
        if self.look is None and not self._poller.poll(0):
            return
        before, self._known = self._known, self._read()
        happened = [pair[self._known[key]] for key, pair in self._kinds.items() if self._known[key] != before[key]]
        if not happened and self.look is None and not self._known.get("populated", True):
            happened = [EventKind.POPULATED, EventKind.EMPTY]
        for kind in happened:
            self._changes[kind] += 1
            yield kind, 1, self._changes[kind]


class _Processes(_States):
    """Populated or empty, where only cgroup.procs tells it.

    It is opened for each look: v1 makes the list at the first read of an open file, and keeps it for as long as that is
    read more often than once in a second (cgroup_pidlist_start() in kernel/cgroup/cgroup-v1.c).
    """

    look = LOOK

    def _open(self, one: Directory) -> int:
        return os.dup(one.fileno())

    def _read(self) -> dict[str, bool]:
        try:
            fd = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None  # as a file that was open says it
        try:
            return {"populated": bool(os.read(fd, 1))}
        finally:
            os.close(fd)


class _EventFd(Source):
    """A v1 notification: an eventfd registered with cgroup.event_control (cgroup-v1/memory.rst, 9)."""

    mask = select.EPOLLIN

    def __init__(self, one: Directory, file: str, kind: EventKind, arguments: str = "") -> None:
        self._kind, self._total, self._file = kind, 0, one.open(file)
        try:
            self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            one.write("cgroup.event_control", f"{self.fd} {self._file} {arguments}".rstrip())
        except BaseException:
            self.close()
            raise

    def take(self) -> Iterable[tuple[EventKind, int, int]]:
        self._check()  # the removal of the group is told in the same way, and is none of these
        with suppress(BlockingIOError):
            count = os.eventfd_read(self.fd)
            self._total += count
            yield self._kind, count, self._total

    def _check(self) -> None:
        try:
            os.pread(self._file, 1, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:  # memory.pressure_level has nothing to read; ENODEV comes before that
                raise

    def close(self) -> None:
        super().close()
        fd, self._file = self._file, -1
        if fd >= 0:
            os.close(fd)


class _OomV1(_EventFd):
    """v1 tells that a group is out of memory, before the kernel kills; of the kill itself there is only a counter."""

    def __init__(self, one: Directory) -> None:
        super().__init__(one, "memory.oom_control", EventKind.OOM)
        self._kills, self._until = self._read(), 0.0

    def _read(self) -> int:
        return int(pairs(read_all(self._file)).get("oom_kill", 0))  # since Linux 4.13

    def take(self) -> Iterable[tuple[EventKind, int, int]]:
        now = time.monotonic()
        for told in super().take():
            self.look, self._until = 0.005, now + HEARTBEAT
            yield told
        before, self._kills = self._kills, self._read()
        if self._kills > before:
            yield EventKind.OOM_KILL, self._kills - before, self._kills
        if self._kills > before or now > self._until:
            self.look = None


class _MemoryPressure(_EventFd):
    def __init__(self, one: Directory, trigger: MemoryPressure) -> None:
        super().__init__(one, "memory.pressure_level", EventKind.PRESSURE, trigger.level)
        self.trigger = trigger


class Trigger(Source):
    """A pressure trigger: a pressure file into which the threshold was written (Documentation/accounting/psi.rst)."""

    mask = select.POLLPRI

    def __init__(self, one: Directory, trigger: PressureTrigger) -> None:
        self.trigger, self._total, self.fired = trigger, 0, False
        file = f"{trigger.resource}.pressure"
        self.fd = one.open(file, os.O_RDWR)
        try:
            kind = "full" if trigger.full else "some"
            os.write(self.fd, f"{kind} {int(trigger.stall * 1e6)} {int(trigger.window * 1e6)}".encode())
        except OSError as error:
            self.close()
            raise syscall_error(
                error.errno or errno.EIO, "write", f"{one.path}/{file}", _why_no_trigger(error)
            ) from None

    def take(self) -> Iterable[tuple[EventKind, int, int]]:
        if self.fired:
            self.fired = False
            self._total += 1
            yield EventKind.PRESSURE, 1, self._total


def _why_no_trigger(error: OSError) -> str | None:
    if error.errno in (errno.EINVAL, errno.EPERM):
        return (
            "without CAP_SYS_RESOURCE the window of a pressure trigger must be a multiple of 2 seconds, and before "
            "Linux 6.5 there is none"
        )
    return (
        "pressure is not measured: psi=0 on the kernel's command line, or cgroup.pressure is 0"
        if (error.errno == errno.EOPNOTSUPP)
        else None
    )


# ---- which there are -------------------------------------------------------------------------------------------------

_MEMORY = {
    "oom": EventKind.OOM, "oom_kill": EventKind.OOM_KILL, "high": EventKind.MEMORY_HIGH, "max": EventKind.MEMORY_MAX,
}  # fmt: skip
_STATES = {
    "populated": (EventKind.EMPTY, EventKind.POPULATED),
    "frozen": (EventKind.THAWED, EventKind.FROZEN),
}


class Sources:
    """The directories of a group, as the places where files are."""

    def __init__(self, directories: Sequence[Directory]) -> None:
        v1 = any(one.version == 1 for one in directories)
        # A v1 group whose processes are in the root of v2: that is not the same group.
        self._dirs = [one for one in directories if not (v1 and one.version == 2 and not one.has("cgroup.events"))]

    def find(self, file: str) -> Directory | None:
        return next((one for one in self._dirs if one.has(file)), None)

    def open(self, kinds: set[EventKind], explicit: bool) -> Iterable[Source]:
        """The best sources of these kinds; what was found is taken out of ``kinds``."""
        for make in (self._memory, self._pids, self._states, self._oom_v1, *([self._looks] if explicit else [])):
            for source, found in make(kinds):
                kinds -= found
                yield source

    def _memory(self, kinds: set[EventKind]) -> Iterable[tuple[Source, set[EventKind]]]:
        wanted = {key: kind for key, kind in _MEMORY.items() if kind in kinds}
        if wanted and (one := self.find("memory.events")):
            yield _Counters(one, "memory.events", wanted), set(wanted.values())

    def _pids(self, kinds: set[EventKind]) -> Iterable[tuple[Source, set[EventKind]]]:
        if EventKind.PIDS_MAX in kinds and (one := self.find("pids.events")):
            yield _Counters(one, "pids.events", {"max": EventKind.PIDS_MAX}), {EventKind.PIDS_MAX}

    def _states(self, kinds: set[EventKind]) -> Iterable[tuple[Source, set[EventKind]]]:
        wanted = {key: pair for key, pair in _STATES.items() if kinds & set(pair)}
        if wanted and (one := self.find("cgroup.events")):
            yield _States(one, wanted), {kind for pair in wanted.values() for kind in pair}

    def _oom_v1(self, kinds: set[EventKind]) -> Iterable[tuple[Source, set[EventKind]]]:
        wanted = kinds & {EventKind.OOM, EventKind.OOM_KILL}
        if wanted and (one := self.find("memory.oom_control")):
            yield _OomV1(one), wanted

    def _looks(self, kinds: set[EventKind]) -> Iterable[tuple[Source, set[EventKind]]]:
        if EventKind.MEMORY_MAX in kinds and (one := self.find("memory.failcnt")):
            yield _Counters(one, "memory.failcnt", {"": EventKind.MEMORY_MAX}, LOOK), {EventKind.MEMORY_MAX}
        wanted = kinds & {EventKind.POPULATED, EventKind.EMPTY}
        if wanted and (one := self.find("cgroup.procs")):
            yield _Processes(one, {"populated": _STATES["populated"]}), wanted

    def trigger(self, wanted: PressureTrigger | MemoryPressure) -> Trigger | _MemoryPressure:
        file = "memory.pressure_level" if isinstance(wanted, MemoryPressure) else f"{wanted.resource}.pressure"
        one = self.find(file)
        if one is None:
            raise Unsupported(
                "MemoryPressure needs the memory controller of cgroup v1: use PressureTrigger('memory', ...)"
                if isinstance(wanted, MemoryPressure)
                else f"{wanted!r} needs cgroup v2, mounted, and a kernel that measures pressure (psi=1)"
            )
        return _MemoryPressure(one, wanted) if isinstance(wanted, MemoryPressure) else Trigger(one, wanted)
