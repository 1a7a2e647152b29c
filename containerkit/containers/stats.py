"""What a running container uses: the figures of its control group, and what people read in them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Self

from ..errors import Unsupported

if TYPE_CHECKING:
    from ..cgroup.cgroup import Cgroup
    from ..cgroup.series import Sample
    from ..cgroup.stats import CgroupStats, Rates
    from .container import Container
    from .state import Status

__all__ = ["ContainerStats", "StatsOfContainer", "group_of", "stats", "stats_stream"]


class ContainerStats(NamedTuple):
    """What a container uses at one time. A figure that the kernel does not have for it is None."""

    time: float
    """Seconds of time.monotonic()."""
    cpu_percent: float | None
    """Of one processor since the one before; of a first one, over its whole life: 150 is one and a half."""
    memory_usage: int | None
    """Bytes; without the cache that goes first when memory runs short, as ``docker stats`` shows it."""
    memory_limit: int | None
    """Bytes; None for no limit."""
    pids: int | None
    """Processes and threads."""
    read_bytes: int | None
    """What it has read from block devices."""
    write_bytes: int | None
    cgroup: CgroupStats
    """All of the figures."""
    rates: Rates | None
    """What changed since the one before, per second; None in a first one."""

    @property
    def memory_percent(self) -> float | None:
        """Of its limit."""
        if self.memory_usage is None or not self.memory_limit:
            return None
        return 100 * self.memory_usage / self.memory_limit


_RUNS = ("running", "paused", "restarting")


def stats(container: Container) -> ContainerStats:
    """What it uses now, without waiting for a second look.

    Raises WrongState when it does not run, Unsupported when it has no control group of its own: it was created without
    limits that need one, or for a user who may have none.
    """
    status = _running(container)
    with group_of(container) as group:
        found = group.stats()
    age = max(time.time() - status.started, 1e-3) if status.started else None
    percent = None if found.cpu.usage is None or age is None else 100 * found.cpu.usage / age
    return _values(container.spec.limits.memory_max, found, None, percent)


def stats_stream(container: Container, interval: float = 1.0) -> StatsOfContainer:
    """What it uses every ``interval`` seconds, with rates, until it has ended; for ``for`` and for ``async for``.

    The first comes after one interval; who is late for one misses it. Raises as :func:`stats` does, and InvalidValue
    for an interval that is not more than 0.
    """
    return StatsOfContainer(container, interval)


class StatsOfContainer:
    """A stream of :class:`ContainerStats`. It keeps the group's files open until it ends or is closed."""

    __slots__ = ("_container", "_group", "_limit", "_stream")

    def __init__(self, container: Container, interval: float) -> None:
        _running(container)
        self._container, self._limit = container, container.spec.limits.memory_max
        self._group = group_of(container)
        try:
            self._stream = self._group.stats_stream(interval)
        except BaseException:
            self._group.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ContainerStats:
        sample = next(self._stream, None)
        found = self._take(sample)
        if found is None:
            raise StopIteration
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ContainerStats:
        found = self._take(await anext(self._stream, None))
        if found is None:
            raise StopAsyncIteration
        return found

    def _take(self, sample: Sample | None) -> ContainerStats | None:
        """The group may be there for a while when nobody runs in it any more."""
        if sample is None or self._container.status.status not in _RUNS:
            self.close()
            return None
        percent = None if sample.rates.cpu is None else 100 * sample.rates.cpu
        return _values(self._limit, sample.stats, sample.rates, percent)

    def close(self) -> None:
        """Idempotent."""
        self._group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def group_of(container: Container) -> Cgroup:
    """A handle of its control group, which the caller closes."""
    from .group import group

    found = group(container)
    if found is None:
        raise Unsupported(
            f"the container {container.name} has no control group on this machine, and without one nothing counts what "
            "it uses: `containerkit doctor` says what would give it one"
        )
    return found


def _running(container: Container) -> Status:
    status = container.status
    if status.status not in _RUNS:
        from .running import not_running

        raise not_running(container, status.status)
    return status


def _values(limit: int | None, found: CgroupStats, rates: Rates | None, percent: float | None) -> ContainerStats:
    total = found.io_total
    memory = found.memory
    return ContainerStats(
        found.time,
        percent,
        memory.current if memory.working_set is None else memory.working_set,
        limit,
        found.pids.current,
        None if total is None else total.read_bytes,
        None if total is None else total.write_bytes,
        found,
        rates,
    )
