"""A process that does nothing but keep namespaces alive."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Self

from . import spawn
from .errors import StatusLost
from .kernel.fd import Fd
from .plan import Plan

__all__ = ["Holder"]

# How long to wait, in seconds, for the end of one that was killed. It takes a few milliseconds, but PID 1 of a
# pid namespace ends only after everything else in it was reaped, and that may be up to other code.
_PATIENCE = 0.5
_ending: list[int] = []  # pidfds of those that were killed and could not be reaped yet


class Holder:
    """The first process of a plan in Mode.HOLD: it reaps, and ends with the handle or with its owner.

    In a fork of the program it is the parent's to end: there close() closes copies of descriptors only.
    """

    __slots__ = ("_maker", "_started")

    def __init__(self, plan: Plan) -> None:
        """Start it. Raises SpawnError, and then nothing is left."""
        _reap_late()
        self._maker = os.getpid()
        self._started = spawn.Started()  # nothing yet: as when it is closed
        try:
            with Fd.opening(os.open, "/dev/null", os.O_RDWR | os.O_CLOEXEC) as null:
                starting = spawn.Starting(plan, (null.fileno(),) * 3)
                starting.drive()
                self._started = starting.started
                starting.hand_over()
        except BaseException:
            self.close()
            raise
        finally:
            plan.close()

    @property
    def ours(self) -> bool:
        """Whether it runs and was started by this very process, not by one that this is a fork of."""
        return self._started.first >= 0 and os.getpid() == self._maker

    def take_namespace(self) -> int:
        """A descriptor of the namespace that the plan's NAMESPACES operation opened; the caller's to close."""
        return self._started.namespaces.pop()

    def take_pidfd(self) -> int:
        """A copy of its pidfd; the caller's to close."""
        return os.dup(self._started.first)

    def close(self) -> None:
        """Kill and reap it: a pid namespace that it made ends with everything in it. Idempotent."""
        started = self._started
        if self.ours:
            spawn.kill(started.first, signal.SIGKILL)
            if not _reap(started.first, _PATIENCE):
                _ending.append(self.take_pidfd())
        started.close()  # not before it is reaped: whatever interrupts this, __del__ comes back to it
        _reap_late()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_started"):
            self.close()


def _reap(pidfd: int, timeout: float) -> bool:
    if not spawn.poll([pidfd], timeout):
        return False
    with suppress(StatusLost):  # if the host program reaped it, it is gone, which is what counts
        spawn.wait_status(pidfd)
    return True


def _reap_late() -> None:
    for _ in range(len(_ending)):
        pidfd = _ending.pop(0)
        if _reap(pidfd, 0):
            os.close(pidfd)
        else:
            _ending.append(pidfd)
