"""The lock of a container, for who acts on it: a monitor holds it as long as the container runs.

Others hold it for moments: who starts the container, until the monitor has it; who removes it, or clears away what a
run has left. And who only asks whether it is held, holds it shared meanwhile. So a lock that cannot be had says little;
that a monitor answers at its socket says that the container runs.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._container_errors import MonitorLost, WrongState
from ..storage.locks import Lock, try_lock
from .control import Control
from .state import LOCK, is_alive

if TYPE_CHECKING:
    from .container import Container

__all__ = ["await_end", "is_awaited", "possess", "possessed", "wait_until_free"]

_FIRST, _LONGEST = 0.0002, 0.01  # seconds between two attempts
_LOOK = 0.5  # seconds between two looks at a lock that a dying monitor may still hold
_PATIENCE = 30.0  # seconds that a start may take


def possess(container: Container) -> Lock | None:
    """Its lock, which keeps everybody else from starting or removing it; None when it has a monitor.

    Waits for those who hold it for a moment. Raises ContainerNotFound when its directory is gone.
    """
    directory = container.directory.fileno()
    deadline, pause = time.monotonic() + _PATIENCE, _FIRST
    while True:
        try:
            held = try_lock(directory, LOCK)
        except FileNotFoundError:
            raise container.gone() from None
        if held is not None or _has_monitor(directory) or time.monotonic() > deadline:
            return held
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST)


def _has_monitor(directory: int) -> bool:
    try:
        Control(directory).close()
    except (WrongState, MonitorLost):
        return False
    return True


def await_end(container: Container) -> None:
    """Keep an ended container that is to be removed, until this object is closed: its output is still to be read.

    Another lock, on the directory itself: it keeps nobody from anything but that.
    """
    fcntl.flock(container.directory.fileno(), fcntl.LOCK_SH)


def is_awaited(container: Container) -> bool:
    """Whether some program still waits for its end. For an object whose directory nobody else uses."""
    try:
        fcntl.flock(container.directory.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(container.directory.fileno(), fcntl.LOCK_UN)
    return False


@contextmanager
def possessed(container: Container) -> Iterator[Lock | None]:
    """Its lock, which a monitor holds as long as it runs; None when it has one."""
    lock = possess(container)
    if lock is None:
        yield None
        return
    try:
        yield lock
    finally:
        lock.close()


def wait_until_free(container: Container, timeout: float | None) -> bool:
    """Until nobody has its lock; a monitor that has just ended may have it for a moment more."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.0005
    while is_alive(container.directory.fileno()):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, _LOOK)
    return True
