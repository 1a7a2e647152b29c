"""Being woken by the monitor of a container when its log has grown or its state has changed, instead of looking often.

The monitor writes one byte to each subscriber, and none to one that has not read the last yet: a wakeup says that there
is something to look at, not what, and whoever takes it before he looks misses nothing. The end of the connection is the
end of the monitor.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self

from .. import spawn
from .._container_errors import ContainerNotFound, MonitorLost, WrongState

if TYPE_CHECKING:
    from .container import Container

    class Monitor(Protocol):
        """What is asked of a connection to a monitor: see control.py."""

        def fileno(self) -> int: ...
        def subscribe(self) -> None: ...
        def close(self) -> None: ...


__all__ = ["Wakeups"]

_LOOK = 0.05  # seconds
_SIZE = 1 << 12  # more than any message has that is not asked for


class Wakeups:
    """A subscription. ``open`` says whether the monitor was there when it was last asked; without one it never is."""

    __slots__ = ("_container", "monitor", "open")

    def __init__(self, monitor: Monitor | None, container: Container | None = None) -> None:
        """``monitor`` is this object's from here on."""
        self.monitor, self.open, self._container = monitor, monitor is not None, container
        if monitor is not None:
            try:
                monitor.subscribe()
            except (BrokenPipeError, ConnectionError, MonitorLost, WrongState):
                self.open = False

    @classmethod
    def of(cls, container: Container) -> Self:
        """At the monitor of a container, if it has one now."""
        from .control import Control

        try:
            return cls(Control(container.directory.fileno()), container)
        except (MonitorLost, WrongState):
            return cls(None, container)

    def alive(self) -> bool:
        """Whether there is a monitor, also one that takes no more than the 64 connections that it has."""
        if self.open or self._container is None:
            return self.open
        from .state import is_alive

        try:
            return is_alive(self._container.directory.fileno())
        except (ContainerNotFound, FileNotFoundError):
            return False

    def fileno(self) -> int:
        """Readable when there is a wakeup, and from the monitor's end on. -1 without a monitor."""
        return -1 if self.monitor is None else self.monitor.fileno()

    def take(self) -> None:
        """Take what there is without waiting, so that the next one is a new one."""
        while self.open:
            try:
                # Not os.read(): the descriptor itself may be one that waits.
                message = _receive(self.fileno())
            except BlockingIOError:
                return
            except ConnectionError:
                message = b""
            self.open = bool(message)

    def wait(self, timeout: float | None) -> None:
        """Until there is a wakeup, and take it; at most ``timeout`` seconds, and not long when nobody will wake us."""
        if not self.open:
            time.sleep(_LOOK if timeout is None else min(timeout, _LOOK))
        elif spawn.poll([self.fileno()], timeout):
            self.take()

    async def wait_async(self, timeout: float | None) -> None:
        """:meth:`wait` for asyncio."""
        import asyncio

        from ..kernel.loop import readable

        if not self.open:
            await asyncio.sleep(_LOOK if timeout is None else min(timeout, _LOOK))
            return
        with suppress(TimeoutError):
            await readable(self.fileno(), timeout)
        self.take()

    def close(self) -> None:
        """Idempotent."""
        self.open = False
        monitor, self.monitor = self.monitor, None
        if monitor is not None:
            monitor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _receive(fd: int) -> bytes:
    own = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd)
    try:
        return own.recv(_SIZE, socket.MSG_DONTWAIT)
    finally:
        own.detach()
