"""What happens to a control group, told when it happens: as a wait, an iterator, or a callback."""

from __future__ import annotations

import errno
import os
import select
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from ..errors import ClosedHandle, InvalidValue, NotFound, Unsupported
from ..kernel.fd import Fd
from .event_sources import HEARTBEAT, Source, Sources, Trigger
from .event_values import Event, EventKind, MemoryPressure, PressureTrigger, Wanted

if TYPE_CHECKING:
    from threading import Thread

    from .directory import Directory

__all__ = ["Event", "EventKind", "Events", "MemoryPressure", "PressureTrigger", "Watch"]


class Events(Fd):
    """What happens to a group from now on: to be waited for, iterated over, or called back about (:class:`Watch`).

    ``for`` and ``async for`` end when the group has been removed. ``fileno()`` is readable when there is news, for
    select, poll and event loops (call ``wait(0)`` then); pressure triggers alone do not make it readable. One thread or
    task waits at a time. Close it, or use it as a context manager.

    Attributes:
        kinds: the kinds of which it tells.
    """

    __slots__ = ("_epoll", "_poller", "_queue", "_sources", "_triggers", "_wanted", "kinds")

    def __init__(self, directories: Sequence[Directory], wanted: Sequence[Wanted]) -> None:
        self._queue: deque[Event] = deque()
        self._sources: list[Source] = []
        self._triggers: dict[int, Trigger] = {}
        self._epoll = select.epoll()
        super().__init__(self._epoll.fileno())
        try:
            self._open(Sources(directories), wanted)
        except BaseException:
            self.close()
            raise
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)
        for fd in self._triggers:
            self._poller.register(fd, select.POLLPRI)

    def _open(self, files: Sources, wanted: Sequence[Wanted]) -> None:
        asked = {EventKind(one) for one in wanted if isinstance(one, str)}
        if EventKind.PRESSURE in asked:
            raise InvalidValue("pressure needs a threshold: give a PressureTrigger, or on v1 a MemoryPressure")
        missing = set(asked) if wanted else set(EventKind) - {EventKind.PRESSURE}
        every = frozenset(missing)
        for source in files.open(missing, explicit=bool(wanted)):
            self._sources.append(source)
        if asked and missing:
            raise Unsupported(f"the kernel does not tell of {', '.join(sorted(missing))} in this group: {_WHY}")
        self._wanted = every - missing
        for one in wanted:
            if not isinstance(one, str):
                trigger = files.trigger(one)
                self._sources.append(trigger)
                if isinstance(trigger, Trigger):
                    self._triggers[trigger.fd] = trigger
        self.kinds = self._wanted | ({EventKind.PRESSURE} if len(asked) < len(set(wanted)) else frozenset())
        for source in self._sources:
            if source.look is None and source.fd not in self._triggers:
                self._epoll.register(source.fd, source.mask)

    def wait(self, timeout: float | None = None) -> Event | None:
        """The next event; None when none has come after ``timeout`` seconds.

        Raises NotFound (ENODEV) when the group has been removed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (event := self._next()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            pause = self._pause()
            self._poll(pause if left is None else min(pause, left))
        return event

    def _next(self) -> Event | None:
        """From what has been read, or else from the files, without waiting."""
        self.fileno()
        if not self._queue:
            now = time.monotonic()
            try:
                for source in self._sources:
                    trigger = getattr(source, "trigger", None)
                    self._queue.extend(
                        Event(kind, count, total, now, trigger)
                        for kind, count, total in source.take()
                        if trigger is not None or kind in self._wanted
                    )
            except OSError as error:
                if error.errno != errno.ENODEV or self._queue:
                    raise
                fields = {"errno": errno.ENODEV, "syscall": "pread", "hint": "the cgroup has been removed"}
                raise NotFound(fields) from None
        return self._queue.popleft() if self._queue else None

    def _pause(self) -> float:
        return min((source.look for source in self._sources if source.look is not None), default=HEARTBEAT)

    def _poll(self, seconds: float) -> None:
        """Wait for news, and note which triggers have fired: polling tells it once."""
        for fd, ready in self._poller.poll(seconds * 1000):
            if fd in self._triggers and ready & select.POLLPRI:
                self._triggers[fd].fired = True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        try:
            event = self.wait()
        except (NotFound, ClosedHandle):
            raise StopIteration from None
        assert event is not None  # noqa: S101  it waits without end
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        from ..kernel.loop import readable

        try:
            while (event := self._next()) is None:
                windows = [trigger.trigger.window / 2 for trigger in self._triggers.values()]
                with suppress(TimeoutError):
                    await readable(self.fileno(), min(self._pause(), *windows, HEARTBEAT))
                self._poll(0)
        except (NotFound, ClosedHandle):
            raise StopAsyncIteration from None
        return event

    def watch(self, callback: Callable[[Event], object]) -> Watch:
        """Call ``callback`` for each event, in a thread of its own, which then owns this handle."""
        return Watch(self, callback)

    def close(self) -> None:
        """Idempotent."""
        self._fd = -1
        self._epoll.close()
        while self._sources:
            self._sources.pop().close()

    def __repr__(self) -> str:
        return f"<Events {'closed' if self._fd < 0 else ', '.join(sorted(self.kinds))}>"


_WHY = "its controller is not there, or only cgroup v2 has such an event"


class Watch:
    """A thread that calls back for each event of a group. It ends with the group, or with :meth:`close`.

    An exception of the callback goes to threading.excepthook, and the watch goes on.
    """

    __slots__ = ("_callback", "_events", "_lock", "_stop", "_stopping", "_thread")

    def __init__(self, events: Events, callback: Callable[[Event], object]) -> None:
        import threading

        self._events, self._callback = events, callback
        self._lock, self._stopping = allocate_lock(), False
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        events._epoll.register(self._stop, select.EPOLLIN)
        self._thread: Thread = threading.Thread(target=self._run, name="ck-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        events = self._events
        try:
            while not self._stopping:
                event = events._next()
                if event is None:
                    events._poll(events._pause())
                else:
                    self._call(event)
        except NotFound:
            pass  # the group has been removed
        finally:
            with self._lock:
                stop, self._stop = self._stop, -1
                os.close(stop)
            events.close()

    def _call(self, event: Event) -> None:
        try:
            self._callback(event)
        except Exception as error:
            import threading

            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread)))

    def close(self) -> None:
        """End the thread and close the events. Idempotent; a callback may do it too, and is then the last."""
        import threading

        self._stopping = True
        if threading.current_thread() is self._thread:
            return
        with self._lock:
            if self._stop >= 0:
                os.eventfd_write(self._stop, 1)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
