"""Where the microseconds of a start went."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .plan import Code, Op, Stage

__all__ = ["Event", "Timeline"]

_TIME = struct.Struct("=II")
_WHO = {
    Stage.JOIN: "helper",
    Stage.OUTSIDE: "helper",
    Stage.EARLY: "first process",
    Stage.INSIDE: "first process",
    Stage.PROGRAM: "program",
    Stage.BESIDE: "helper",
}
_MARKS = {
    "compiled": ("caller", "compile the plan"),
    "helper": ("caller", "start the helper"),
    "started": ("caller", "wait until the program runs"),
    "exited": ("program", "run"),
}


class Event(NamedTuple):
    """One step: who did it, what, and when, in nanoseconds since the call."""

    who: str
    what: str
    start: int
    end: int

    @property
    def duration(self) -> int:
        """Nanoseconds from its start to its end."""
        return self.end - self.start


class Timeline(Sequence[Event]):
    """The steps of a start in order of time, as :class:`Event` values. ``print()`` it, or :meth:`to_svg`.

    All times are CLOCK_MONOTONIC nanoseconds since the call began. The steps of the helper and of the first process
    overlap: they work at the same time. The last event, once the program has been waited for, is its run.
    """

    def __init__(self, ops: Sequence[Op], times: bytes, t0: int, marks: Sequence[tuple[str, int]]) -> None:
        self._ops, self._times, self._t0, self._marks = ops, times, t0, marks
        self._events: list[Event] | None = None

    def _all(self) -> list[Event]:
        if self._events is None:
            begin = self._marks[0][1]
            events = [
                Event(*_MARKS[name], before - begin, at - begin)
                for (name, at), (_, before) in zip(self._marks[1:], self._marks, strict=False)
                if name in _MARKS
            ]
            shift = self._t0 - begin
            for op, (start, end) in zip(self._ops, _TIME.iter_unpack(self._times), strict=True):
                if start and op.code == Code.EXEC:  # nobody is left to note its end: the program runs
                    end = self.start_ns - shift
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
        """Nanoseconds from the call until the program ran."""
        return next((at for name, at in self._marks if name == "started"), self._marks[-1][1]) - self._marks[0][1]

    @property
    def total_ns(self) -> int:
        """Nanoseconds from the call until the program ended, or ran as long as it has not been waited for."""
        return self._marks[-1][1] - self._marks[0][1]

    def __repr__(self) -> str:
        return f"<Timeline of {len(self)} steps, started after {self.start_ns / 1000:.0f} us>"

    def folded(self, share: float = 0.01) -> list[Event]:
        """The events, with each row of short ones told as one: those below ``share`` of the time of the start."""
        rows: list[list[Event]] = []
        for event in self:
            short = event.duration < share * self.start_ns
            if short and rows and rows[-1][-1].who == event.who and rows[-1][-1].duration < share * self.start_ns:
                rows[-1].append(event)
            else:
                rows.append([event])
        return [row[0] if len(row) == 1 else _together(row) for row in rows]

    def __str__(self) -> str:
        """A waterfall for a terminal of 100 columns, short steps folded. Iterate for every step."""
        scale = max(self.start_ns, 1)
        lines = [f"{'start us':>8} {'took us':>8}  {'':{_BAR}}  {'who':13}  step"]
        for event in self.folded():
            left = min(_BAR * event.start // scale, _BAR - 1)
            bar = " " * left + ("█" * max(1, _BAR * min(event.end, scale) // scale - left))
            if event.start >= scale:
                bar = " " * (_BAR - 1) + "▶"  # the program's own time has no place on the scale of its start
            what = event.what if len(event.what) <= _WORDS else event.what[: _WORDS - 3] + "..."
            times = f"{event.start / 1000:8.0f} {event.duration / 1000:8.0f}"
            lines.append(f"{times}  {bar:{_BAR}}  {event.who:13}  {what}")
        return "\n".join(lines)

    def to_svg(self, width: int = 1000, *, fold: float = 0.0) -> str:
        """The waterfall as a picture; ``fold`` as the ``share`` of :meth:`folded`, by default every step."""
        from .svg import waterfall

        return waterfall(self, self.folded(fold), width)


_BAR, _WORDS = 20, 44


def _together(row: list[Event]) -> Event:
    first, last = row[0], row[-1]
    return Event(first.who, f"{len(row)} steps: {first.what}, ...", first.start, last.end)


def told(ops: Sequence[Op]) -> list[Op]:
    """The operations as a result that is pickled keeps them: their words, not the environment and files in them."""
    return [Op(op.code, op.stage, op.words) for op in ops]
