"""One program under a supervisor: takes its calls from the listener and gives the answers back."""

from __future__ import annotations

import errno
import inspect
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import BadAddress, CallGone, InvalidValue
from ..kernel import unotify
from .supervisor import Answer, Call, Supervisor

if TYPE_CHECKING:
    import asyncio

__all__ = ["Supervision"]


class Supervision:
    """From the start of a program to its end.

    It owns the listener from :meth:`attach` on. The last of its threads closes it when the kernel says that no process
    is left which has the filter; :meth:`close` makes that happen earlier.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._in_loop = inspect.iscoroutinefunction(supervisor.handle)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._maker = os.getpid()
        self._listener = self._wake = -1
        self._poller = select.poll()
        self._threads: list[threading.Thread] = []
        self._left = 0  # threads that have ended
        self._turn, self._lock = threading.Lock(), threading.Lock()

    def use_loop(self) -> None:
        """The program is started from the running event loop, which will not be blocked by it."""
        if self._in_loop:
            import asyncio

            self._loop = asyncio.get_running_loop()

    def attach(self, listener: int) -> None:
        """Begin. The descriptor is ours from here on. Doing so twice with the same one changes nothing."""
        if self._listener == listener:
            return
        self._listener = listener
        unotify.wake_up_in_turn(listener)
        if not self._in_loop:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poller.register(listener, select.POLLIN)
            self._poller.register(self._wake, select.POLLIN)
            for number in range(max(1, self._supervisor.threads)):
                thread = threading.Thread(target=self._serve, name=f"ck-supervisor-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        elif self._loop is None:
            raise InvalidValue("a supervisor with `async def handle` is for programs started with containerkit.aio")
        else:
            self._loop.add_reader(listener, self._take)

    def close(self) -> None:
        """End: calls that still wait, or come later, fail with ENOSYS. Waits for a handler that is under way."""
        if self._maker == os.getpid():
            if self._wake >= 0:
                with suppress(OSError):
                    os.eventfd_write(self._wake, 1)
            for thread in self._threads:
                if thread.ident is not None and thread is not threading.current_thread():
                    thread.join()
            for task in tuple(self._tasks):
                task.cancel()
            self._forget()
        self._release()

    def _release(self) -> None:
        with self._lock:
            fds = self._listener, self._wake
            self._listener = self._wake = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    # ---- threads

    def _serve(self) -> None:
        try:
            while True:
                with self._turn:
                    call = self._next()
                if call is None:
                    break
                self._answer(call, self._decide(call))
        finally:
            with self._lock:
                self._left += 1
                last = self._left == len(self._threads)
            if last:
                self._release()

    def _next(self) -> Call | None:
        """The next call; None at the end."""
        listener, wake = self._listener, self._wake
        if listener < 0:
            return None
        while True:
            events = dict(self._poller.poll())
            if wake in events:
                return None
            if events[listener] & select.POLLIN:
                if call := self._receive(listener):
                    return call
            elif events[listener]:  # hung up: nobody has the filter any more
                return None

    def _receive(self, listener: int) -> Call | None:
        notification = unotify.receive(listener)
        return None if notification is None else Call(listener, notification)

    def _decide(self, call: Call) -> Answer | None:
        return self._guard(call, lambda: self._supervisor.handle(call))

    # ---- the event loop

    def _take(self) -> None:
        """The listener can be read, or has hung up."""
        events = select.poll()
        events.register(self._listener, select.POLLIN)
        happened = dict(events.poll(0)).get(self._listener, 0)
        if happened & select.POLLIN:
            if (call := self._receive(self._listener)) and self._loop:
                task = self._loop.create_task(self._handle(call))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        elif happened:
            self._forget()
            self._release()

    def _forget(self) -> None:
        if self._loop is not None and self._listener >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._listener)

    async def _handle(self, call: Call) -> None:
        answer: Answer | None = Answer.deny()
        try:
            decided: Any = self._supervisor.handle(call)
            answer = _checked(await decided)
        except Exception as error:
            answer = self._denied(call, error)
        finally:
            self._answer(call, answer)

    # ---- answers

    def _guard(self, call: Call, decide: Callable[[], Any]) -> Answer | None:
        try:
            return _checked(decide())
        except BaseException as error:  # whatever it is, somebody waits for an answer
            return self._denied(call, error)

    def _denied(self, call: Call, error: BaseException) -> Answer | None:
        if isinstance(error, CallGone):
            return None
        if isinstance(error, BadAddress):
            return Answer.deny(errno.EFAULT)
        self._tell(call, error)
        return Answer.deny()

    def _tell(self, call: Call, error: BaseException) -> None:
        try:
            self._supervisor.failed(call, error)
        except Exception as second:
            Supervisor.failed(self._supervisor, call, second)

    def _answer(self, call: Call, answer: Answer | None) -> None:
        if answer is not None and self._listener == call._listener:
            with suppress(CallGone):
                self._send(call, answer)
        call._close()
        if answer is not None:
            try:
                answer._close()
            except Exception as error:  # of the handler's file object, or a number that was not open
                self._tell(call, error)

    def _send(self, call: Call, answer: Answer) -> None:
        try:
            answer._send(call._listener, call._id)
        except CallGone:
            raise
        except Exception as error:  # a descriptor that is closed, a number that the program may not have
            self._tell(call, error)
            Answer.deny()._send(call._listener, call._id)


def _checked(answer: Any) -> Answer:
    if not isinstance(answer, Answer):
        raise TypeError(f"handle() must return an Answer, not {answer!r}")
    return answer
