"""Figures of a group over time: an even stream of snapshots, and a series that is kept, summed up and drawn."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, NamedTuple, Self

from ..errors import ClosedHandle, InvalidValue, NotFound
from .stats import CgroupStats, Rates

if TYPE_CHECKING:
    from threading import Event, Thread

__all__ = ["Recording", "Sample", "StatsSeries", "StatsStream", "Summary"]


class Sample(NamedTuple):
    """A snapshot, and the rates since the one before."""

    stats: CgroupStats
    rates: Rates


class StatsStream:
    """A snapshot every ``interval`` seconds, for ``for`` and for ``async for``; the first after one interval.

    It ends when the group has been removed or its handle closed. The pace is kept: a consumer that is late for one
    sample misses it, and gets the next one in time.
    """

    __slots__ = ("_due", "_interval", "_last", "_read")

    def __init__(self, read: Callable[[], CgroupStats], interval: float) -> None:
        if not interval > 0:
            raise InvalidValue(f"interval={interval!r} must be more than 0 seconds")
        self._read, self._interval = read, interval
        self._last = read()
        self._due = time.monotonic() + interval

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sample:
        time.sleep(self._pause())
        sample = self._take()
        if sample is None:
            raise StopIteration
        return sample

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sample:
        import asyncio

        await asyncio.sleep(self._pause())
        sample = self._take()
        if sample is None:
            raise StopAsyncIteration
        return sample

    def _pause(self) -> float:
        late = time.monotonic() - self._due
        if late > 0:
            self._due += ceil(late / self._interval) * self._interval
        return max(self._due - time.monotonic(), 0.0)

    def _take(self) -> Sample | None:
        now = read_unless_gone(self._read)
        if now is None:
            return None
        last, self._last = self._last, now
        return Sample(now, now.since(last))


def read_unless_gone(read: Callable[[], CgroupStats]) -> CgroupStats | None:
    """None when the group has been removed, or its handle closed."""
    try:
        return read()
    except ClosedHandle:
        return None
    except NotFound as error:
        if error.errno != errno.ENODEV:
            raise
        return None


class Summary(NamedTuple):
    """One figure over a series: the least, the mean over time, the most, and the last."""

    minimum: float
    mean: float
    maximum: float
    last: float


class StatsSeries:
    """Snapshots in the order of time.

    Attributes:
        samples: the snapshots, a list to which more may be appended.
    """

    __slots__ = ("samples",)

    def __init__(self, samples: Iterable[CgroupStats] = ()) -> None:
        self.samples: list[CgroupStats] = list(samples)

    def rates(self) -> list[Rates]:
        """The rates between neighbours: one less than there are snapshots."""
        return [later.since(earlier) for earlier, later in pairwise(self.samples)]

    def rows(self) -> list[dict[str, float | None]]:
        """A row of plain figures for each snapshot but the first, rates among them: for csv.DictWriter, or as the
        argument of pandas.DataFrame()."""
        return [
            {**stats.flat(), **{f"rate.{name}": value for name, value in rates._asdict().items()}}
            for stats, rates in zip(self.samples[1:], self.rates(), strict=True)
        ]

    def summary(self) -> dict[str, Summary]:
        """``cpu`` (CPUs), ``memory`` (bytes), ``pids``, ``read_bytes``, ``write_bytes`` (per second): those known."""
        rates = self.rates()
        columns: dict[str, list[tuple[float, float | None]]] = {
            "cpu": [(rate.seconds, rate.cpu) for rate in rates],
            "memory": [(1.0, stats.memory.current) for stats in self.samples],
            "pids": [(1.0, stats.pids.current) for stats in self.samples],
            "read_bytes": [(rate.seconds, rate.read_bytes) for rate in rates],
            "write_bytes": [(rate.seconds, rate.write_bytes) for rate in rates],
        }
        return {name: found for name, column in columns.items() if (found := _summary(column)) is not None}

    def to_svg(self, width: int = 900) -> str:
        """Charts of processor, memory, i/o, processes and pressure over time as an SVG picture."""
        from .chart import charts

        return charts(self.samples, self.rates(), width)

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        seconds = self.samples[-1].time - self.samples[0].time if self.samples else 0.0
        return f"<StatsSeries of {len(self.samples)} snapshots, {seconds:.1f} s>"


def _summary(column: list[tuple[float, float | None]]) -> Summary | None:
    known = [(weight, value) for weight, value in column if value is not None]
    if not known:
        return None
    values = [value for _, value in known]
    weights = sum(weight for weight, _ in known)
    return Summary(min(values), sum(w * v for w, v in known) / weights, max(values), values[-1])


class Recording:
    """A series that a thread fills while a block runs: ``with group.record() as series: ...``.

    The last snapshot is taken when the block ends, if the group is there then.
    """

    __slots__ = ("_interval", "_read", "_stop", "_thread", "series")

    def __init__(self, read: Callable[[], CgroupStats], interval: float) -> None:
        if not interval > 0:
            raise InvalidValue(f"interval={interval!r} must be more than 0 seconds")
        self._read, self._interval = read, interval
        self.series = StatsSeries()
        self._thread: Thread | None = None
        self._stop: Event | None = None

    def __enter__(self) -> StatsSeries:
        import threading

        self.series.samples.append(self._read())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(self._stop,), name="ck-record", daemon=True)
        self._thread.start()
        return self.series

    def _fill(self, stop: Event) -> None:
        while not stop.wait(self._interval) and self._add():
            pass

    def _add(self) -> bool:
        now = read_unless_gone(self._read)
        if now is not None:
            self.series.samples.append(now)
        return now is not None

    def __exit__(self, *exc: object) -> None:
        if self._stop is not None and self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._add()
