"""One call: create a container, start it, wait for its end, read what it said, and remove it if that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from .._container_errors import ContainerNotFound
from ..completed import Outcome, Usage
from ..errors import ContainerkitError, ProcessFailed, TimeoutExpired
from . import life
from .group import usage
from .logs import logs_of
from .possession import await_end
from .wakeups import Wakeups

if TYPE_CHECKING:
    from .container import Container

__all__ = ["Ran", "run"]

_SIGNALED = 128


class Ran(NamedTuple):
    """How a container that was run once has ended, and what it said.

    ``returncode`` counts as docker does: 128 and the signal's number for a program that a signal ended. ``stdout`` and
    ``stderr`` are what its log still has, at most ``log_files`` times ``log_max_size``; with a terminal everything is
    in ``stdout``. ``container`` is there no more when it was to be removed.
    """

    container: Container
    args: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    outcome: Outcome
    usage: Usage | None
    oom: str | None = None
    """What the kernel did about its limit of memory, in words; None when it had no need to."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.outcome is Outcome.EXITED and self.returncode == 0

    def check_returncode(self) -> None:
        """Raise ProcessFailed unless :attr:`ok`."""
        if not self.ok:
            raise ProcessFailed(self)  # type: ignore[arg-type]  # it has all that this error looks at


def run(container: Container, *, remove: bool, timeout: float | None, check: bool) -> Ran:
    """Start a new container, and wait for its end. See Containers.run()."""
    with _not_left_running(container, remove):
        await_end(container)
        container.start()
        late = _wait(container, timeout)
        ran = _result(container, late)
    if check:
        ran.check_returncode()
    return ran


async def run_async(create: Callable[[], Container], *, remove: bool, timeout: float | None, check: bool) -> Ran:
    """The same for asyncio, whose loop waits for the end."""
    container = await asyncio.to_thread(create)
    with _not_left_running(container, remove):
        await_end(container)
        await asyncio.to_thread(container.start)
        late = not await _ends(container, timeout)
        if late:
            await asyncio.to_thread(container.stop)
        ran = await asyncio.to_thread(_result, container, late)
    if check:
        ran.check_returncode()
    return ran


async def _ends(container: Container, timeout: float | None) -> bool:
    with Wakeups.of(container) as monitor:
        try:
            async with asyncio.timeout(timeout):
                while monitor.open:
                    await monitor.wait_async(None)
        except TimeoutError:
            return False
    return True


@contextmanager
def _not_left_running(container: Container, remove: bool) -> Iterator[None]:
    """What could not be started, or is not waited for any more, is not left behind."""
    try:
        yield
    except BaseException:
        with suppress(ContainerkitError):
            container.remove(force=True, volumes=True)
        raise
    if remove:
        with suppress(ContainerNotFound):
            container.remove(force=True, volumes=True)


def _wait(container: Container, timeout: float | None) -> bool:
    """Whether it took too long, and was stopped."""
    try:
        life.wait(container, timeout, keep=True)
    except TimeoutExpired:
        container.stop()
        return True
    return False


def _result(container: Container, late: bool) -> Ran:
    code = life.wait(container, keep=True)
    status = container.status
    out, err = _said(container)
    oom = str(status.oom_killed) if status.oom_killed else None
    return Ran(container, container.spec.args, code, out, err, _outcome(code, late, status), usage(container), oom)


def _outcome(code: int, late: bool, status: Any) -> Outcome:
    if late:
        return Outcome.TIMEOUT
    if status.oom_killed and code != 0:
        return Outcome.OOM
    return Outcome.SIGNALED if code > _SIGNALED else Outcome.EXITED


def _said(container: Container) -> tuple[str, str]:
    parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    for line in logs_of(container):
        parts[line.stream].append(line.data)
    out, err = (b"".join(parts[name]).decode("utf-8", "replace") for name in ("stdout", "stderr"))
    return out, err
