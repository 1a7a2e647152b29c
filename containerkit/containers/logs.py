"""What a container has said: its output as lines, each of one stream and with the time at which it began."""

from __future__ import annotations

import asyncio
import os
import time as _time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import InvalidValue
from ..kernel.fd import Fd
from .log_files import FRAME_MAX, MARK, STDERR, STDOUT, LogFiles

if TYPE_CHECKING:
    from .container import Container

__all__ = ["LINE_MAX", "LogLine", "Logs", "Moment", "follow", "follow_async", "logs", "logs_of", "open_log"]

LINE_MAX = 1 << 20
"""Bytes of a line that are waited for; what is longer comes in pieces, so that no output fills our memory."""

Moment = datetime | timedelta | float
"""A time with its zone, or how long ago, or seconds since 1970."""

_FIRST, _LONGEST = 0.001, 0.05  # seconds between two looks at files in which there is nothing new
_WOKEN = 1.0  # as long when somebody wakes us
_STREAMS: dict[int, Literal["stdout", "stderr"]] = {STDOUT: "stdout", STDERR: "stderr"}


class LogLine(NamedTuple):
    """A line that a container wrote, byte for byte.

    ``data`` ends with its newline; without one it is the last that was written before the program ended, or a piece of
    a line of more than ``LINE_MAX`` bytes. It is whatever the program wrote: escape it before a terminal shows it.
    """

    time_ns: int
    """When its first byte came, in nanoseconds since 1970 (CLOCK_REALTIME)."""
    stream: Literal["stdout", "stderr"]
    data: bytes

    @property
    def text(self) -> str:
        """Without the newline, as UTF-8; what is not becomes U+FFFD."""
        return self.data.removesuffix(b"\n").decode("utf-8", "replace")

    @property
    def time(self) -> datetime:
        """When it began, in UTC, to the microsecond."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.time_ns // 1000)

    def stamped(self) -> bytes:
        """The line after its time, as ``docker logs --timestamps`` writes it (RFC 3339, nanoseconds)."""
        seconds, nanoseconds = divmod(self.time_ns, 10**9)
        date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        return f"{date:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z ".encode() + self.data


def logs(
    directory: int,
    *,
    stdout: bool = True,
    stderr: bool = True,
    since: Moment | None = None,
    until: Moment | None = None,
    tail: int | None = None,
) -> Iterator[LogLine]:
    """The lines that are there now, in the order in which they were finished.

    Args:
        directory: a descriptor of the directory of the log files; it must stay open while this is iterated.
        since, until: only lines that began then or later; then or before. A datetime with its zone, a timedelta (so
            long ago), or seconds since 1970.
        tail: only the last so many of those. Only the end of the log is read for it, and of what lies before it, in
            the same file, the headers.

    Raises InvalidValue for a time without zone and a negative ``tail``.
    """
    return _Reading(directory, stdout, stderr, since, until, tail).now()


def follow(
    directory: int,
    *,
    alive: Callable[[], bool],
    wait: Callable[[float], object] | None = None,
    stdout: bool = True,
    stderr: bool = True,
    since: Moment | None = None,
    until: Moment | None = None,
    tail: int | None = None,
) -> Iterator[LogLine]:
    """As :func:`logs`, and then each line when it is written, until the container has ended or ``until`` has come.

    ``alive`` says whether somebody may still write. A line that is not finished comes when it is, or at the end.
    ``wait`` is called when there is nothing new, and returns when there is, or after so many seconds; without it new
    lines are seen after 1 ms to 50 ms, the later the longer there were none. Who is slower than the log is rotated
    misses what has been removed meanwhile.
    """
    reading = _Reading(directory, stdout, stderr, since, until, tail)
    return _follow(reading, alive, wait or _time.sleep, _LONGEST if wait is None else _WOKEN)


def _follow(
    reading: _Reading, alive: Callable[[], bool], wait: Callable[[float], object], longest: float
) -> Iterator[LogLine]:
    pause = _FIRST
    for lines in reading.on(alive):
        if lines is None:
            wait(pause)
            pause = min(pause * 2, longest)
        else:
            pause = _FIRST
            yield from lines


async def follow_async(
    directory: int,
    *,
    alive: Callable[[], bool],
    wait: Callable[[float], Awaitable[object]] | None = None,
    stdout: bool = True,
    stderr: bool = True,
    since: Moment | None = None,
    until: Moment | None = None,
    tail: int | None = None,
) -> AsyncIterator[LogLine]:
    """:func:`follow` for asyncio."""
    pause, longest = _FIRST, _LONGEST if wait is None else _WOKEN
    for lines in _Reading(directory, stdout, stderr, since, until, tail).on(alive):
        if lines is None and wait is not None:
            await wait(pause)
        else:
            await asyncio.sleep(pause if lines is None else 0)
        pause = min(pause * 2, longest) if lines is None else _FIRST
        for line in lines or ():
            yield line


# ---- of a container --------------------------------------------------------------------------------------------------


class Logs:
    """The lines of a container's log, for ``for`` and for ``async for``; each iteration begins anew."""

    __slots__ = ("_container", "_follows", "_options")

    def __init__(self, container: Container, follows: bool, options: dict[str, Any]) -> None:
        self._container, self._follows, self._options = container, follows, options
        _Reading(-1, **options)  # what is wrong with the options is told now

    def __iter__(self) -> Iterator[LogLine]:
        with open_log(self._container) as directory:
            if not self._follows:
                yield from logs(directory.fileno(), **self._options)
                return
            from .wakeups import Wakeups

            with Wakeups.of(self._container) as woken:
                yield from follow(directory.fileno(), alive=woken.alive, wait=woken.wait, **self._options)

    async def __aiter__(self) -> AsyncIterator[LogLine]:
        with open_log(self._container) as directory:
            if not self._follows:
                for line in logs(directory.fileno(), **self._options):
                    yield line
                return
            from .wakeups import Wakeups

            with Wakeups.of(self._container) as woken:
                lines = follow_async(directory.fileno(), alive=woken.alive, wait=woken.wait_async, **self._options)
                async for line in lines:
                    yield line

    def text(self, *, timestamps: bool = False) -> str:
        """All of it, as UTF-8; what is not becomes U+FFFD. With ``timestamps`` each line comes after its time."""
        return self.data(timestamps=timestamps).decode("utf-8", "replace")

    def data(self, *, timestamps: bool = False) -> bytes:
        """All of it, byte for byte."""
        return b"".join(line.stamped() if timestamps else line.data for line in self)


def logs_of(
    container: Container,
    *,
    follow: bool = False,
    stdout: bool = True,
    stderr: bool = True,
    since: Moment | None = None,
    until: Moment | None = None,
    tail: int | None = None,
) -> Logs:
    """What a container has said, in all of its lives, as lines; with a terminal all of it is ``stdout``.

    It can be iterated, also by ``async for``, as often as wanted; ``text()`` and ``data()`` give it as one piece.

    Args:
        follow: go on with each new line until the container has ended, also through restarts by its policy, or until
            ``until`` has come. A monitor wakes whoever follows: between two lines nothing is done.
        since, until: only lines that began then or later; then or before. A datetime with its zone, a timedelta (so
            long ago), or seconds since 1970.
        tail: only the last so many of those.

    Raises InvalidValue for a time without zone and a negative ``tail``; iterating raises ContainerNotFound when it was
    removed.
    """
    options = {"stdout": stdout, "stderr": stderr, "since": since, "until": until, "tail": tail}
    return Logs(container, follow, options)


def open_log(container: Container) -> Fd:
    """The directory of its log files. Raises ContainerNotFound when it was removed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return Fd.opening(_open_at, container.directory.fileno(), flags)
    except FileNotFoundError:
        raise container.gone() from None


def _open_at(directory: int, flags: int) -> int:
    return os.open("log", flags, dir_fd=directory)


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Reading:
    """One reader's wishes, and the two ways to go through the files."""

    def __init__(
        self, directory: int, stdout: bool, stderr: bool, since: Moment | None, until: Moment | None, tail: int | None
    ) -> None:
        if tail is not None and tail < 0:
            raise InvalidValue(f"tail={tail} must not be negative: it is how many lines")
        self._streams = {number for number, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted}
        self._since, self._until = _nanoseconds(since, "since"), _nanoseconds(until, "until")
        self._directory, self._tail = directory, tail

    def now(self) -> Iterator[LogLine]:
        with LogFiles(self._directory) as files:
            if self._tail is not None:
                yield from self._last(files, self._tail, finished=True)[0]
            else:
                lines = _Lines(self._streams)
                yield from filter(self._asked_for, lines.until(files, files.end(), finished=True))

    def on(self, alive: Callable[[], bool]) -> Iterator[list[LogLine] | None]:
        """What is there, and then what is new at each step. None: nothing was written since."""
        with LogFiles(self._directory) as files:
            lines = _Lines(self._streams)
            if self._tail is not None:
                last, lines = self._last(files, self._tail, finished=False)
                yield last
            writing = True
            while True:
                # Asked first: what was written before the end is read after it.
                writing = writing and alive() and not self._over(_time.time_ns())
                frames = files.take()
                if frames and not self._over(frames[0].time):
                    yield [line for frame in frames for line in lines.feed(*frame) if self._asked_for(line)]
                elif writing and not frames:
                    yield None
                else:
                    yield [*filter(self._asked_for, lines.rest())]
                    return

    def _last(self, files: LogFiles, count: int, *, finished: bool) -> tuple[list[LogLine], _Lines]:
        """The last lines, and what has been begun after them. ``files`` then stands at the end.

        One that was begun before them, and never finished, may not be among them: for that all would have to be read.
        A window is read from its start to the end of the log; and one that is twice as long when that had too few
        lines, or one of which we cannot know that it has its beginning: the first of each stream.
        """
        end = files.end()
        kept: deque[tuple[LogLine, bool]] = deque(maxlen=count)
        lines = _Lines(self._streams)
        for number, offset, first in _doubling(files.backwards()):
            files.seek(number, offset)
            kept.clear()
            lines, seen = _Lines(self._streams), set[str]()
            for line in lines.until(files, end, finished=finished):
                if self._asked_for(line):
                    kept.append((line, first or line.stream in seen))
                seen.add(line.stream)
            if len(kept) == count and all(whole for _, whole in kept) and (first or lines.begun() <= seen):
                break
        return [line for line, _ in kept], lines

    def _over(self, time: int) -> bool:
        return self._until is not None and time > self._until

    def _asked_for(self, line: LogLine) -> bool:
        return (self._since is None or line.time_ns >= self._since) and not self._over(line.time_ns)


def _doubling(places: Iterable[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """The first, second, fourth... of them, and the very first of the log."""
    wanted, place = 1, None
    for count, place in enumerate(places, 1):
        if count == wanted:
            yield place
            place, wanted = None, wanted * 2
    if place is not None:
        yield place


class _Lines:
    """Puts the lines of each stream together from the frames, which interleave."""

    def __init__(self, streams: set[int]) -> None:
        self._streams = streams
        self._open: dict[int, tuple[int, bytearray]] = {}

    def feed(self, time: int, stream: int, data: bytes) -> list[LogLine]:
        """Those that this frame finishes: 0.8 us a line, and with the rest of the way some 100 MB/s."""
        ended = self.rest() if stream == MARK else []  # no line goes on in another life of the program
        if stream not in self._streams:
            return ended
        name = _STREAMS[stream]
        *whole, last = data.split(b"\n")
        finished = [LogLine(time, name, part + b"\n") for part in whole]
        began, head = time, bytearray()
        if stream in self._open and (whole or last):
            began, head = self._open.pop(stream)
            if whole:
                finished[0] = LogLine(began, name, bytes(head) + finished[0].data)
                began, head = time, bytearray()
        if last:
            head += last
            if len(head) > LINE_MAX - FRAME_MAX:
                finished.append(LogLine(began, name, bytes(head)))
            else:
                self._open[stream] = (began, head)
        return finished

    def until(self, files: LogFiles, end: tuple[int, int], *, finished: bool) -> Iterator[LogLine]:
        """Those up to a place in the files; with the one that ends there if it is ``finished``."""
        while files.place < end and (frames := files.take()):
            for frame in frames:
                yield from self.feed(*frame)
        if finished:
            yield from self.rest()

    def begun(self) -> set[str]:
        """The streams of which a line is not finished."""
        return {_STREAMS[stream] for stream in self._open}

    def rest(self) -> list[LogLine]:
        """What is not finished and will not be."""
        begun = sorted((began, stream, bytes(head)) for stream, (began, head) in self._open.items())
        self._open.clear()
        return [LogLine(began, _STREAMS[stream], head) for began, stream, head in begun]


def _nanoseconds(moment: Moment | None, what: str) -> int | None:
    if moment is None:
        return None
    if isinstance(moment, timedelta):
        return _time.time_ns() - moment // timedelta(microseconds=1) * 1000
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidValue(f"{what}={moment!r} has no time zone: write datetime.now(UTC), or .astimezone()")
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    return int(moment * 10**9)
