"""A process that does nothing but keep namespaces alive."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Self

from . import spawn
from .errors import StatusLost
from .plan import Plan

__all__ = ["Holder"]


class Holder:
    """The first process of a plan in Mode.HOLD: it reaps, and ends when the handle is closed or its owner
    ends.

    In a fork of the program it is the parent's to end: closing there closes nothing but copies of
    descriptors.
    """

    __slots__ = ("_maker", "_started")

    def __init__(self, plan: Plan) -> None:
        """Start it. Raises SpawnError, and then nothing is left."""
        self._maker = os.getpid()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._started = spawn.start(plan, (null, null, null))
        finally:
            os.close(null)
            plan.close()

    def fileno(self) -> int:
        """Its pidfd; -1 once it is closed."""
        return self._started.first

    def take_namespace(self) -> int:
        """A descriptor of the namespace that the plan's NAMESPACES operation opened; the caller's to close."""
        return self._started.namespaces.pop()

    def close(self) -> None:
        """Kill and reap it: a pid namespace that it made ends with everything in it. Idempotent."""
        started = self._started
        try:
            if started.first >= 0 and os.getpid() == self._maker:
                spawn.kill(started.first, signal.SIGKILL)
                with suppress(StatusLost):  # if the host program reaped it, it is gone, which is what counts
                    spawn.wait_status(started.first)
        finally:
            started.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
