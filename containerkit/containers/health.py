"""Health checks: what a start hands to the monitor, which runs the test with none of us there, and what came of it.

The test is a program in the running container, as one of execs.py is, but by a plan that is made before there is a
container: where a namespace goes in it there is an empty place, in which the monitor puts those that the first process
has sent it. So the test has the walls, the control group, the user and the environment of the container's program.
"""

from __future__ import annotations

import errno
import os
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from ..launch import Launch, compile_launch

if TYPE_CHECKING:
    from ..plan import Plan
    from .container import Container
    from .spec import ContainerSpec

__all__ = ["HealthResult", "compile_health", "health_log"]

_EMPTY_PLACE = -1
_RESULT = struct.Struct("=QQiIII4096s")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class HealthResult(NamedTuple):
    """One check.

    ``exit_code`` is None for a test that was killed for its time, or could not be started: ``error`` says which.
    ``output`` is the beginning of what it wrote, to both of its outputs.
    """

    start_ns: int
    """Nanoseconds since 1970 (CLOCK_REALTIME)."""
    end_ns: int
    exit_code: int | None
    output: str
    error: str | None = None

    @property
    def start(self) -> datetime:
        """In UTC, to the microsecond."""
        return datetime.fromtimestamp(self.start_ns // 1000 / 1e6, UTC)

    @property
    def end(self) -> datetime:
        """In UTC, to the microsecond."""
        return datetime.fromtimestamp(self.end_ns // 1000 / 1e6, UTC)


def compile_health(spec: ContainerSpec, launch: Launch) -> Plan | None:
    """The plan of a container's health check, by that of its program; None when it has none. The caller closes it."""
    if spec.health is None:
        return None
    kinds = [kind for kind, which in launch.namespaces.items() if which == "new"]
    test = Launch(
        spec.health.test,
        join=[(kind, _EMPTY_PLACE) for kind in kinds],
        over=launch.mounts,
        over_root=launch.root,
        host_root=launch.maps_host_root,
        security=launch.security,
        env=launch.env,
        cwd=launch.cwd,
        user=launch.user,
        rlimits=launch.rlimits,
        cgroup=launch.cgroup,
        init=False,
        account=launch.account,
    )
    return compile_launch(test, None)


def health_log(container: Container) -> list[HealthResult]:
    """What came of the latest checks since its latest start, at most five, the oldest first."""
    try:
        fd = os.open("health", _FLAGS, dir_fd=container.directory.fileno())
    except FileNotFoundError:
        return []
    try:
        raw = os.read(fd, _RESULT.size * 16)
    finally:
        os.close(fd)
    found = [_RESULT.unpack_from(raw, at) for at in range(0, len(raw) - _RESULT.size + 1, _RESULT.size)]
    return [_result(*values) for values in sorted(found)]


def _result(start: int, end: int, code: int, err: int, _: int, length: int, output: bytes) -> HealthResult:
    error = None
    if err == errno.ETIMEDOUT:
        error = "it was killed: it took longer than its timeout"
    elif err:
        error = f"it could not be started: {os.strerror(err)}"
    elif code < 0:
        error = "whoever was to start it was killed"
    text = output[:length].decode(errors="replace")
    return HealthResult(start, end, None if code < 0 else code, text, error)
