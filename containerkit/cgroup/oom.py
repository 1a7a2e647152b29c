"""Whether the kernel killed for a group's own limit of memory, and whom.

The counters that decide:

* v2: ``oom_kill`` of memory.events counts the killed of the group and of those below it, whatever the reason; ``oom``
  of memory.events.local counts how often the group's own limit left no way out. Both must have grown: kills for the
  limit of a group above, or for want of memory of the whole machine, are not this group's.
* v1: ``oom_kill`` of memory.oom_control counts the killed of this group alone, whatever the reason. The kernel log says
  for whose limit; where it cannot be read, the peak says whether the group ever met its own.

The kernel log (/dev/kmsg; it takes CAP_SYSLOG, or kernel.dmesg_restrict=0) also names the victims.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..errors import NotFound
from .stats import pairs

if TYPE_CHECKING:
    from .directory import Directory
    from .observed import Observed

__all__ = ["Oom", "OomCount", "Victim", "count", "memory_of", "oom"]


class Victim(NamedTuple):
    """Whom the kernel chose: its process id and the name that it had, of up to 15 characters (proc_pid_comm(5)).

    ``pid`` is None where this process lives in a pid namespace that is not the machine's own.
    """

    pid: int | None
    command: str


class Oom(NamedTuple):
    """The kernel killed because a group met its limit of memory.

    ``group`` is the name of the group whose limit it was, ``limit`` and ``peak`` are bytes (None where the kernel does
    not tell), ``kills`` is how many processes it killed. ``victims`` are those it chose, as far as they are known: from
    the kernel log if it may be read, else the program itself if that was killed.
    """

    group: str
    limit: int | None
    peak: int | None
    kills: int
    victims: tuple[Victim, ...]

    def __str__(self) -> str:
        parts = [f"{what} {_human(size)}" for what, size in (("limit", self.limit), ("peak", self.peak)) if size]
        names = [one.command if one.pid is None else f"{one.command} (pid {one.pid})" for one in self.victims]
        parts += [f"killed {', '.join(names)}" if names else f"{self.kills} killed"]
        return f"out of memory: {', '.join(parts)}"


def _human(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} bytes"


class OomCount(NamedTuple):
    """What the kernel has counted so far: the killed of a group, and (v2) how often its own limit left no way out."""

    killed: int = 0
    met: int = 0


NOTHING = OomCount()


def memory_of(group: Observed) -> Directory | None:
    """The directory that counts its memory."""
    return next((one for one in group.dirs if "memory" in one.controllers), None)


def count(memory: Directory) -> OomCount:
    """Count now."""
    if memory.version == 1:
        return OomCount(int(pairs(memory.read("memory.oom_control"))["oom_kill"]))
    killed = int(pairs(memory.read("memory.events"))["oom_kill"])
    return OomCount(killed, int(pairs(memory.read("memory.events.local"))["oom"]) if killed else 0)


def oom(group: Observed, before: OomCount = NOTHING) -> Oom | None:
    """What has been killed for this group's own limit since ``before``; None when nothing was."""
    memory = memory_of(group)
    if memory is None:
        return None
    now = count(memory)
    killed = now.killed - before.killed
    if not killed:
        return None
    name = os.path.basename(memory.path)
    told = list(kernel_log(name))[-killed:]
    mine = tuple(one.victim for one in told if one.mine)
    if memory.version == 2 and now.met <= before.met:
        return None
    if memory.version == 1 and not (mine or (not told and _was_full(memory))):
        return None
    limit, peak = _sizes(memory)
    return Oom(name, limit, peak, killed, mine)


_SHORT = 8 * 4096
"""The largest piece of memory for which the kernel kills (PAGE_ALLOC_COSTLY_ORDER): so little is free when it does."""


def _was_full(memory: Directory) -> bool:
    """v1: whether it met its limit of memory, or that of memory and swap together.

    Not by failcnt, which newer kernels count of memory alone, and older ones also where something could be taken back.
    """
    for kind in ("memory", "memory.memsw"):
        with suppress(NotFound):  # memsw: only with the accounting of swap
            limit = int(memory.read(f"{kind}.limit_in_bytes"))
            if int(memory.read(f"{kind}.max_usage_in_bytes")) > limit - _SHORT:
                return True
    return False


def _sizes(memory: Directory) -> tuple[int | None, int | None]:
    files = ("memory.max", "memory.peak") if memory.version == 2 else (
        "memory.limit_in_bytes", "memory.max_usage_in_bytes"
    )  # fmt: skip
    sizes: list[int | None] = []
    for file in files:
        try:
            text = memory.read(file)
        except NotFound:  # memory.peak: since Linux 5.19
            text = "max"
        sizes.append(int(text) if text.isdecimal() else None)
    return sizes[0], sizes[1]


# ---- the kernel log --------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """One kill in the kernel log: the victim, and whether it was for the limit of the group that was asked about."""

    victim: Victim
    mine: bool


# dump_header() in mm/oom_kill.c, since Linux 4.19. A task chooses its own name, but that has 15 characters at most and
# comes before the number.
_LINE = re.compile(
    r"oom-kill:.*?oom_memcg=(?P<limited>.*?),task_memcg=(?P<of>.*?),task=(?P<name>.*),pid=(?P<pid>\d+),uid=\d+$"
)


def kernel_log(name: str) -> Iterator[Told]:
    """Kills of processes of the group of this name, which is unguessable, and of groups below it; the oldest first.

    Nothing where the log cannot be read. The kernel may leave a kill out: it writes at most 10 in 5 seconds.
    """
    known = _pids_are_known()
    for line in _records():
        found = _LINE.match(line)
        if found is None or name not in found["of"].split("/"):
            continue
        victim = Victim(int(found["pid"]) if known else None, found["name"])
        yield Told(victim, found["limited"].rpartition("/")[2] == name)


def _records() -> Iterable[str]:
    """The kernel's own messages (Documentation/ABI/testing/dev-kmsg); those of programs have another facility."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:  # it was overwritten before it was read: the next one is the oldest there is
                continue
            prefix, _, text = record.partition(b";")
            if int(prefix.split(b",", 1)[0]) < 8:
                yield text.split(b"\n", 1)[0].decode(errors="replace")
    except OSError:  # EAGAIN: that was the last
        return
    finally:
        os.close(fd)


_INITIAL = 0xEFFFFFFC
"""The inode of the machine's own pid namespace (PROC_PID_INIT_INO)."""


def _pids_are_known() -> bool:
    return os.stat("/proc/self/ns/pid").st_ino == _INITIAL
