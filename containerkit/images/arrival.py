"""A blob on its way into the store, which can be read while it grows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from fcntl import F_SETPIPE_SZ, fcntl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .descriptor import Descriptor

__all__ = ["Arrival", "Stopped"]

_PIPE = 1 << 20  # what an ordinary user may have (pipe(7), /proc/sys/fs/pipe-max-size)
_SEND = 16 << 20
_POLL = 0.1  # seconds between two looks at whether another part has failed


class Stopped(Exception):
    """Another part of the same transfer has failed; that error is the one to tell."""


class Arrival:
    """One thread receives it: begin(), advance() and end(). Others wait for it, or follow it.

    ``check`` raises when there is nothing to wait for any more.
    """

    def __init__(self, descriptor: Descriptor, check: Callable[[], None]) -> None:
        self.descriptor = descriptor
        self.received: Future[None] = Future()
        self._check = check
        self._changed = threading.Condition()
        self._fd, self._there = -1, 0

    # ---- the receiver ------------------------------------------------------------------------------------------------

    def begin(self, fd: int, there: int) -> None:
        """The file ``fd`` grows from now on, and has ``there`` bytes already."""
        # Not a copy of the descriptor: that would keep the lock of the ingest when it has ended, for which another
        # program may wait while we wait for a layer that it unpacks.
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        with self._changed:
            self._fd, self._there = own, there
            self._changed.notify_all()

    def advance(self, there: int) -> None:
        """So many bytes are in the file now."""
        with self._changed:
            self._there = there
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        """It is in the store; or it will not be."""
        with self._changed:
            if error is None:
                self.received.set_result(None)
            else:
                self.received.set_exception(error)
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody follows any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # ---- the others --------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until it is in the store, whole and verified. Raises Stopped when it will not be; the error is in
        ``received``."""
        self._until(self.received.done)
        if self.received.exception() is not None:
            raise Stopped

    def growing(self) -> bool:
        """Wait until it begins; whether it still grows then."""
        self._until(lambda: self._fd >= 0 or self.received.done())
        return not self.received.done()

    def _until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            while not self._changed.wait_for(condition, _POLL):
                self._check()

    @contextmanager
    def followed(self) -> Iterator[int]:
        """A pipe that brings all of it, from the beginning, as it comes. It ends early when the rest does not come."""
        source, sink = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):
            fcntl(sink, F_SETPIPE_SZ, _PIPE)
        left = threading.Event()
        sender = threading.Thread(target=self._send, args=(sink, left), name="ck-send")
        sender.start()
        try:
            yield source
        finally:
            left.set()
            os.close(source)
            sender.join()

    def _send(self, sink: int, left: threading.Event) -> None:
        sent = 0
        try:
            while not left.is_set():
                there, last = self._more(sent)
                while sent < there:
                    sent += os.sendfile(sink, self._fd, sent, min(there - sent, _SEND))
                if last:
                    return
        except BrokenPipeError:
            pass  # the reader has seen enough; it says why
        finally:
            os.close(sink)

    def _more(self, sent: int) -> tuple[int, bool]:
        """How much there is now, and whether more will come; looks again after a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._there > sent or self.received.done(), _POLL)
            return self._there, self.received.done()
