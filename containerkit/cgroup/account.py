"""What the control groups of a run counted, at its end: exact usage of all descendants, and whether memory ran out."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..errors import NotFound, SyscallError
from .oom import NOTHING, Oom, Victim, count, memory_of, oom
from .stats import CgroupStats, pairs

if TYPE_CHECKING:
    from ..completed import Usage
    from ..process import Process
    from .cgroup import Cgroup
    from .start import Bounds

__all__ = ["Account", "Witness", "account", "exact_usage"]


class Account(NamedTuple):
    """What the groups of a run say about it.

    ``oom`` is a kill for want of memory; ``forks_refused`` how many processes or threads the kernel refused to make,
    None where nobody counted.
    """

    usage: Usage
    oom: Oom | None
    forks_refused: int | None


class Witness:
    """What the group that a run shares with others of its sandbox had counted when the run began."""

    __slots__ = ("_before", "_shared")

    def __init__(self, shared: Bounds) -> None:
        self._shared = shared.group
        memory = memory_of(self._shared)
        self._before = NOTHING if memory is None else count(memory)

    def oom(self) -> Oom | None:
        """A kill for the limit of the shared group since then: of this run, or of another one."""
        return oom(self._shared, self._before)


def account(process: Process, usage: Usage, *, killed: bool) -> Account:
    """Ask the groups of a process that has ended. ``killed`` says that it died of a SIGKILL that was not ours.

    Who looks after the machine may have removed an empty group by then: nothing is known in that case.
    """
    try:
        return _account(process, usage, killed)
    except SyscallError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return Account(usage, None, None)


def _account(process: Process, usage: Usage, killed: bool) -> Account:
    own = process._bounds.group if process._bounds is not None else None
    program = Victim(process.pid or None, os.path.basename(os.fsdecode(process.args[0]))[:15])
    witness = process._launch.witness
    found = None if own is None else oom(own)
    if found is None and witness is not None and killed:
        found = witness.oom()
        if found is not None and not _among({process.pid, process._started.first_pid}, found):
            found = None
    if found is not None and not found.victims and killed:
        found = found._replace(victims=(program,))
    if own is None:
        return Account(usage, found, None)
    return Account(exact_usage(usage, own), found, _forks_refused(own))


def _among(pids: set[int], found: Oom) -> bool:
    """Whether the killed may be one of these: unless the kernel log names them all, and others."""
    named = {victim.pid for victim in found.victims}
    return bool(pids & named) or None in named or len(found.victims) < found.kills


_FILES_V2 = ("cpu.stat", "memory.peak", "io.stat", "pids.peak")
_FILES_V1 = {
    "memory": ("memory.max_usage_in_bytes",),
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"),
    "blkio": ("blkio.throttle.io_service_bytes_recursive",),
    "pids": ("pids.peak",),
}


def exact_usage(usage: Usage, own: Cgroup) -> Usage:
    """The usage with what the group knows better: all that was ever in it, at one time."""
    v1: dict[str, str] = {}
    v2: dict[str, str] = {}
    for one in own.dirs:
        files = (
            _FILES_V2 if one.version == 2 else [file for name in one.controllers for file in _FILES_V1.get(name, ())]
        )
        for file in files:
            with suppress(NotFound):
                (v1 if one.version == 1 else v2)[file] = one.read(file)
    stats = CgroupStats(0.0, v1, v2)
    if stats.cpu.usage is not None and stats.cpu.user is not None and stats.cpu.system is not None:
        usage = usage._replace(
            cpu_seconds=stats.cpu.usage, user_seconds=stats.cpu.user, system_seconds=stats.cpu.system
        )
    peak = v2.get("memory.peak") or v1.get("memory.max_usage_in_bytes")
    if peak is not None:
        usage = usage._replace(memory_peak=int(peak))
    most = v2.get("pids.peak") or v1.get("pids.peak")
    if most is not None:
        usage = usage._replace(pids_peak=int(most))
    io = stats.io_total
    if io is not None:
        usage = usage._replace(io_read_bytes=io.read_bytes, io_write_bytes=io.write_bytes)
    return usage


def _forks_refused(own: Cgroup) -> int | None:
    for one in own.dirs:
        if "pids" in one.controllers:
            with suppress(NotFound):
                return int(pairs(one.read("pids.events")).get("max", 0))
    return None
