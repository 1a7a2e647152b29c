"""What happens to containers, volumes and images: a log of the store that anybody may follow, across programs.

``events/log`` has a line of JSON for each, written with one write(2) at its end, by whoever has done it: a program of
ours, or the monitor of a container. When it is long it becomes ``events/log.1``, and that one's content is gone. A line
that cannot be written (no room) is lost, because what it tells of has been done; one that is torn is passed over.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time as _time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ..kernel.fd import Fd
from .labels import has_labels
from .moments import Moment, nanoseconds

if TYPE_CHECKING:
    from .home import Home

__all__ = ["LINE_MAX", "StoreEvent", "events", "events_async", "record"]

LINE_MAX = 4096
"""Bytes of a line, at most."""
ROTATE = 4 << 20
"""Bytes after which a new file is begun."""

_LOG, _OLDER = "log", "log.1"
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_VALUE = 256
_CHUNK = 1 << 18
_FIRST, _LONGEST = 0.001, 0.05  # seconds between two looks at a file in which there is nothing new


Known = Callable[[str], dict[str, str]]
"""What the events of a container say of it, by its id; nothing of one that is gone."""


class StoreEvent(NamedTuple):
    """Something that was done.

    ``type`` is "container", "volume" or "image"; ``action`` docker's word: "create", "start", "die", "stop", "kill",
    "destroy"...; ``id`` of what it was done to; ``attributes`` have its name, and what else there is to know.
    """

    time_ns: int
    """Nanoseconds since 1970 (CLOCK_REALTIME)."""
    type: str
    action: str
    id: str
    attributes: dict[str, str]

    @property
    def time(self) -> datetime:
        """In UTC, to the microsecond."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.time_ns // 1000)

    def to_json(self) -> dict[str, Any]:
        """As ``docker events --format json`` has it."""
        return {
            "Type": self.type,
            "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": dict(self.attributes)},
            "scope": "local",
            "time": self.time_ns // 10**9,
            "timeNano": self.time_ns,
        }


# ---- writing ---------------------------------------------------------------------------------------------------------


def record(home: Home, type: str, action: str, id: str, attributes: dict[str, object]) -> None:
    """Tell what was done. Does not raise: it has been done."""
    line = _line(type, action, id, {name: str(value)[:_LONGEST_VALUE] for name, value in attributes.items()})
    with suppress(OSError):
        directory = home.directory("events")
        with Fd.opening(_open_log, directory) as log:
            os.write(log.fileno(), line)
            if os.fstat(log.fileno()).st_size > ROTATE:
                _rotate(directory, log.fileno())


def _open_log(directory: int) -> int:
    return os.open(_LOG, _APPEND, 0o600, dir_fd=directory)


def _line(type: str, action: str, id: str, attributes: dict[str, str]) -> bytes:
    content = {"time": _time.time_ns(), "type": type, "action": action, "id": id, "attributes": attributes}
    line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
    if len(line) > LINE_MAX:
        return _line(type, action, id, {name: attributes[name] for name in ("name", "image") if name in attributes})
    return line


def _rotate(directory: int, log: int) -> None:
    """By one of those who see that it is time; the others find another file in its place."""
    fcntl.flock(log, fcntl.LOCK_EX)
    if os.path.samestat(os.stat(_LOG, dir_fd=directory, follow_symlinks=False), os.fstat(log)):
        os.rename(_LOG, _OLDER, src_dir_fd=directory, dst_dir_fd=directory)


# ---- reading ---------------------------------------------------------------------------------------------------------


def events(
    home: Home,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    follow: bool = False,
    type: str | Sequence[str] = (),
    action: str | Sequence[str] = (),
    container: str | Sequence[str] = (),
    volume: str | Sequence[str] = (),
    image: str | Sequence[str] = (),
    label: str | Sequence[str] = (),
    known: Known | None = None,
) -> Iterator[StoreEvent]:
    """See Store.events(). ``known`` says what there is to know of a container that has been there before."""
    reading = _Reading(home, since, until, follow, _Wanted.of(type, action, container, volume, image, label), known)
    return _now(reading) if not follow else _follow(reading)


def events_async(
    home: Home,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    follow: bool = False,
    type: str | Sequence[str] = (),
    action: str | Sequence[str] = (),
    container: str | Sequence[str] = (),
    volume: str | Sequence[str] = (),
    image: str | Sequence[str] = (),
    label: str | Sequence[str] = (),
    known: Known | None = None,
) -> AsyncIterator[StoreEvent]:
    """:func:`events` for asyncio."""
    wanted = _Wanted.of(type, action, container, volume, image, label)
    return _follow_async(_Reading(home, since, until, follow, wanted, known))


def _now(reading: _Reading) -> Iterator[StoreEvent]:
    with reading:
        for found in iter(reading.take, []):
            yield from found


def _follow(reading: _Reading) -> Iterator[StoreEvent]:
    with reading:
        pause = _FIRST
        while not reading.over:
            found = reading.take()
            yield from found
            if not found:
                _time.sleep(pause)
            pause = _FIRST if found else min(pause * 2, _LONGEST)


async def _follow_async(reading: _Reading) -> AsyncIterator[StoreEvent]:
    with reading:
        pause = _FIRST
        while not reading.over:
            found = reading.take()
            for event in found:
                yield event
            if not found and not reading.follow:
                return
            await asyncio.sleep(0 if found else pause)
            pause = _FIRST if found else min(pause * 2, _LONGEST)


class _Wanted(NamedTuple):
    """Of each kind of filter one must fit, of the labels all."""

    types: Sequence[str]
    actions: Sequence[str]
    things: Sequence[tuple[str, str]]
    labels: Sequence[str]

    @classmethod
    def of(cls, type: Any, action: Any, container: Any, volume: Any, image: Any, label: Any) -> _Wanted:
        kinds = (("container", container), ("volume", volume), ("image", image))
        things = [(kind, one) for kind, given in kinds for one in _several(given)]
        return cls(_several(type), _several(action), things, _several(label))

    def takes(self, event: StoreEvent) -> bool:
        if (self.types and event.type not in self.types) or (self.actions and event.action not in self.actions):
            return False
        if self.things and not any(_is_about(event, *thing) for thing in self.things):
            return False
        return not self.labels or has_labels(event.attributes, self.labels)


def _several(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else tuple(given)


def _is_about(event: StoreEvent, kind: str, text: str) -> bool:
    """By id, the beginning of one, or name; of an image also what was made from it."""
    if event.type == kind:
        return event.id.removeprefix("sha256:").startswith(text.removeprefix("sha256:")) or (
            event.attributes.get("name") == text
        )
    return kind == "image" and event.attributes.get("image") == text


class _Reading:
    """A place in the log. Opened at once, so that nothing is missed that is done after events() was called."""

    def __init__(
        self,
        home: Home,
        since: Moment | None,
        until: Moment | None,
        follow: bool,
        wanted: _Wanted,
        known: Known | None = None,
    ) -> None:
        self._since, self._until = nanoseconds(since, "since"), nanoseconds(until, "until")
        self._home, self.follow, self._wanted = home, follow, wanted
        self._known, self._attributes = known, dict[str, dict[str, str]]()
        self._file: Fd | None = None
        self._rest = b""
        self._last = 0
        if follow and since is None:
            self._skip()

    @property
    def over(self) -> bool:
        """Whether ``until`` has come."""
        return self._until is not None and max(self._last, _time.time_ns()) > self._until

    def take(self) -> list[StoreEvent]:
        """Some of what is new; nothing when there is nothing new."""
        while data := self._read():
            *lines, self._rest = (self._rest + data).split(b"\n")
            found = [self._with_name(event) for line in lines if (event := _parse(line)) is not None]
            if found:
                self._last = found[-1].time_ns
            asked = [event for event in found if self._is_asked_for(event)]
            if asked:
                return asked
        return []

    def _with_name(self, event: StoreEvent) -> StoreEvent:
        """A monitor, which tells of starts and ends, knows an id and nothing else: the name may change meanwhile."""
        if event.type != "container":
            return event
        if event.action in ("create", "rename"):
            said = {**self._attributes.get(event.id, {}), **event.attributes}
            said.pop("oldName", None)
            self._attributes[event.id] = said
            return event
        if event.id not in self._attributes:
            self._attributes[event.id] = self._known(event.id) if self._known is not None else {}
        attributes = {**self._attributes[event.id], **event.attributes}
        if event.action == "destroy":
            del self._attributes[event.id]
        return event._replace(attributes=attributes)

    def _is_asked_for(self, event: StoreEvent) -> bool:
        if (self._since is not None and event.time_ns < self._since) or (
            self._until is not None and event.time_ns > self._until
        ):
            return False
        return self._wanted.takes(event)

    def _read(self) -> bytes:
        while True:
            if self._file is not None and (data := os.read(self._file.fileno(), _CHUNK)):
                return data
            if not self._next():
                return b""

    def _next(self) -> bool:
        """Go on in the next file. Ours stays open until then, so that no other can have its inode number."""
        older, newest = self._is_ours(_OLDER), self._is_ours(_LOG)
        if newest:
            return False
        names = (_LOG,) if older else (_OLDER, _LOG)
        for name in names:
            try:
                file = Fd.opening(_open_read, name, self._home.directory("events"))
            except FileNotFoundError:
                continue
            self.close()
            self._file, self._rest = file, b""
            return True
        return False

    def _is_ours(self, name: str) -> bool:
        if self._file is None:
            return False
        try:
            there = os.stat(name, dir_fd=self._home.directory("events"), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._file.fileno()))

    def _skip(self) -> None:
        """To the end of what there is."""
        while self._next():
            pass
        if self._file is not None:
            os.lseek(self._file.fileno(), 0, os.SEEK_END)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._file = None


def _open_read(name: str, directory: int) -> int:
    return os.open(name, _READ, dir_fd=directory)


def _parse(line: bytes) -> StoreEvent | None:
    try:
        content = json.loads(line)
        attributes = {str(name): str(value) for name, value in content.get("attributes", {}).items()}
        return StoreEvent(int(content["time"]), content["type"], content["action"], content["id"], attributes)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
