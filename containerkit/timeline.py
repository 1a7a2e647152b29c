"""Where the microseconds of a start went."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .plan import Op, Stage

__all__ = ["Event", "Timeline"]

_TIME = struct.Struct("=II")
_WHO = {
    Stage.JOIN: "helper",
    Stage.OUTSIDE: "helper",
    Stage.EARLY: "first process",
    Stage.INSIDE: "first process",
    Stage.PROGRAM: "program",
}


class Event(NamedTuple):
    """One step: who did it, what, and when, in nanoseconds since the call."""

    who: str
    what: str
    start: int
    end: int

    @property
    def duration(self) -> int:
        return self.end - self.start


class Timeline(Sequence[Event]):
    """The steps of a start in order of time, as :class:`Event` values. ``print()`` it, or :meth:`to_svg`.

    All times are CLOCK_MONOTONIC nanoseconds since the call began. The steps of the helper and of the first process
    overlap: they work at the same time.
    """

    def __init__(self, ops: Sequence[Op], times: bytes, t0: int, marks: Sequence[tuple[str, int]]) -> None:
        self._ops, self._times, self._t0, self._marks = ops, times, t0, marks
        self._events: list[Event] | None = None

    def _all(self) -> list[Event]:
        if self._events is None:
            begin = self._marks[0][1]
            events = [
                Event("caller", name, before - begin, at - begin)
                for (name, at), (_, before) in zip(self._marks[1:], self._marks, strict=False)
                if name != "begin"
            ]
            shift = self._t0 - begin
            for op, (start, end) in zip(self._ops, _TIME.iter_unpack(self._times), strict=True):
                if end:
                    events.append(Event(_WHO[op.stage], op.words, start + shift, end + shift))
            self._events = sorted(events, key=lambda event: (event.start, event.end))
        return self._events

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (told(self._ops), self._times, self._t0, self._marks)

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index: int) -> Event:  # type: ignore[override]
        return self._all()[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._all())

    @property
    def start_ns(self) -> int:
        """From the call until the program ran."""
        return next((at for name, at in self._marks if name == "started"), self._marks[-1][1]) - self._marks[0][1]

    @property
    def total_ns(self) -> int:
        """From the call until the last mark: the end of the program once it has been waited for."""
        return self._marks[-1][1] - self._marks[0][1]

    def __repr__(self) -> str:
        return f"<Timeline of {len(self)} steps, started after {self.start_ns / 1000:.0f} us>"

    def __str__(self) -> str:
        """A waterfall for the terminal: one line for each step, times in microseconds."""
        total = max(self.total_ns, 1)
        lines = [f"{'start us':>9} {'took us':>9}  {'':40}  step"]
        for event in self:
            left = 40 * event.start // total
            width = max(1, 40 * event.end // total - left)
            bar = (" " * left + "█" * width)[:40]
            lines.append(f"{event.start / 1000:9.1f} {event.duration / 1000:9.1f}  {bar:40}  {event.who}: {event.what}")
        return "\n".join(lines)

    def to_svg(self, width: int = 1000) -> str:
        """The waterfall as a picture."""
        from .svg import waterfall

        return waterfall(self, width)


def told(ops: Sequence[Op]) -> list[Op]:
    """The operations as a result that is pickled keeps them: their words, not the environment and files in them."""
    return [Op(op.code, op.stage, op.words) for op in ops]
