"""Doing ahead what the consumer of a stream will need next: decompressing in one thread, hashing in another.

Both work outside the interpreter's lock (inflating, and hashing more than 2 KiB), so on two processors the maker of
files waits for neither.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["ahead"]

_DEPTH = 4  # pieces of 1 MiB


class _Stopped(Exception):
    """The consumer is gone."""


@contextmanager
def ahead(pieces: Iterator[bytes], digest: _Hash) -> Iterator[Iterator[bytes]]:
    """The same pieces, made in a thread; at the end of the block ``digest`` has all that were taken.

    An error of ``pieces`` is raised where the next would be taken. Leaving the block stops the threads.
    """
    made: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
    counted: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
    stop = threading.Event()

    def put(item: bytes | BaseException | None) -> None:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
        raise _Stopped

    def make() -> None:
        try:
            for piece in pieces:
                put(piece)
            put(None)
        except _Stopped:
            pass
        except BaseException as error:  # raised where it can be dealt with
            with suppress(_Stopped):
                put(error)

    def count() -> None:
        while (piece := counted.get()) is not None:
            digest.update(piece)

    def take() -> Iterator[bytes]:
        while (piece := made.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            counted.put(piece)
            yield piece

    threads = [threading.Thread(target=target, name=f"ck-{target.__name__}", daemon=True) for target in (make, count)]
    for thread in threads:
        thread.start()
    try:
        yield take()
    finally:
        stop.set()
        counted.put(None)
        for thread in threads:
            thread.join()
