"""How a container is: what its monitor has written down, and what the lock of its directory says of the monitor.

The record is ``struct mon_state`` of ``_native/monitor/monitor.h``, in the file ``state`` of the container's directory.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from .._container_errors import MonitorLost
from ..completed import Usage
from ..storage.locks import held_by_others

__all__ = ["EXITED", "Record", "Status", "is_alive", "read_record"]

STARTING, RUNNING, RESTARTING, EXITED = 1, 2, 3, 4
STOP_REQUESTED, FAILED = 1, 2
_HEALTH = (None, "starting", "healthy", "unhealthy")
_MAGIC = 0x4E4D4B43
_RECORD = struct.Struct("=IIII iiii IIII Iii I QQ 9Q 100x I".replace(" ", ""))
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 1000

LOCK, STATE = "lock", "state"


class Record(NamedTuple):
    """What the monitor wrote last. Times in ns since 1970; ``usage`` as in spawn.Exit, of the last run."""

    status: int
    flags: int
    monitor_pid: int
    first_pid: int
    program_pid: int
    exit_status: int
    reason: int
    restarts: int
    health: int
    health_streak: int
    error_op: int
    errno: int
    sysno: int
    log_number: int
    started_ns: int
    finished_ns: int
    usage: tuple[int, ...]

    @property
    def exit_code(self) -> int:
        """As docker counts: 128 and the signal's number for a program that a signal ended."""
        signal = self.exit_status & 0x7F
        return 128 + signal if signal else self.exit_status >> 8 & 0xFF

    @property
    def failed(self) -> bool:
        """Whether its last start failed."""
        return bool(self.flags & FAILED)

    def used(self) -> Usage:
        """What the last run used, by PID 1's account."""
        user, system, maxrss, minflt, majflt, inblock, oublock, voluntary, involuntary = self.usage
        seconds = user / 1e6, system / 1e6
        wall = max(0, self.finished_ns - self.started_ns) / 1e9
        return Usage(
            wall, sum(seconds), *seconds, maxrss * 1024, minflt, majflt, inblock, oublock, voluntary, involuntary
        )


class Status(NamedTuple):
    """How a container is, at one moment.

    Attributes:
        status: "created", "running", "paused", "restarting", "exited", or "dead": its monitor was killed, or the
            machine went down, while it ran.
        pid: of its PID 1, as the host sees it; 0 when it does not run.
        exit_code: of the last run; None before the first one ended.
        started, finished: seconds since 1970; None when that has not been.
        restarts: how often its policy has started it again.
        health: None without a health check; "starting", "healthy", "unhealthy".
        error: why it could not be started; None when it could.
        oom_killed: whether the kernel killed in it for its memory limit.
    """

    status: str
    pid: int = 0
    exit_code: int | None = None
    started: float | None = None
    finished: float | None = None
    restarts: int = 0
    health: str | None = None
    error: str | None = None
    oom_killed: bool = False

    @property
    def running(self) -> bool:
        """Whether it has processes, paused ones too."""
        return self.status in ("running", "paused")


def read_record(directory: int) -> Record | None:
    """The record in a container's directory; None before its first start.

    Raises MonitorLost when it is not one: somebody else has written there.
    """
    try:
        fd = os.open(STATE, _FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        for _ in range(_TRIES):
            raw = os.pread(fd, _RECORD.size, 0)
            if not raw:
                return None
            if len(raw) == _RECORD.size:
                values = _RECORD.unpack(raw)
                if values[0] == values[-1]:  # else the monitor was writing
                    break
        else:
            values = ()
    finally:
        os.close(fd)
    if not values or values[1] != _MAGIC:
        raise MonitorLost("the state of a container is damaged: remove the container with force=True")
    return Record._make((*values[2:18], values[18:27]))


def is_alive(directory: int) -> bool:
    """Whether a monitor has the container: it runs, or waits to be started again, or is about to."""
    return held_by_others(directory, LOCK)


def health_name(record: Record) -> str | None:
    return _HEALTH[record.health] if record.health < len(_HEALTH) else None
