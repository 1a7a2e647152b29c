"""One owner for one descriptor, closed once.

Python runs signal handlers between two instructions, and a handler may raise: KeyboardInterrupt. Right after a call its
result has no owner yet, so ``fd = os.open(...)`` loses a descriptor now and then. :func:`put` and :meth:`Fd.opening`
call and store without an instruction in between, and :func:`close_all` forgets a number without a call before the one
that closes it. CPython looks for signals after calls, at the start of functions and at the end of a loop's body, and
nowhere else; tests/faults/interrupts.py tries all these moments.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import chain, starmap
from typing import Any, Self

from ..errors import ClosedHandle

__all__ = ["Fd", "close_all", "put", "put_pair"]


def put(fds: list[int], call: Callable[..., int], *args: Any) -> int:
    """Append what a call opens to ``fds``, and return it."""
    fds.extend(starmap(call, (args,)))
    return fds[-1]


def put_pair(fds: list[int], call: Callable[..., Iterable[int]], *args: Any) -> None:
    """Append both descriptors that a call opens: a pipe, a terminal."""
    fds.extend(chain.from_iterable(starmap(call, (args,))))


def close_all(fds: list[int]) -> None:
    """Close and forget each. May be interrupted and called again: no number is closed twice."""
    while fds:
        fd, fds[-1] = fds[-1], -1
        if fd >= 0:
            os.close(fd)
        del fds[-1]


class Fd:
    """Owns a file descriptor.

    ``close()`` may be called twice; after it, or after ``detach()``, ``fileno()`` raises :class:`ClosedHandle` instead
    of returning a number that may meanwhile belong to someone else. Forgotten ones are closed with a ResourceWarning. A
    process forked from this one has its own copies, and closing those closes nothing here.
    """

    __slots__ = ("__weakref__", "_fd")

    _fd: int

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def opening(cls, call: Callable[..., int], *args: Any) -> Self:
        """The owner of what a call opens."""
        self = cls.__new__(cls)
        for self._fd in starmap(call, (args,)):
            pass
        return self

    def fileno(self) -> int:
        """The number, for a call that is made now. Raises ClosedHandle when closed."""
        if self._fd < 0:
            raise ClosedHandle(f"{self!r} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        # Swapped first: whatever happens next, no second call can close the number again (close(2), NOTES).
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """Give the number away: the caller closes it."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            try:
                import warnings

                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__}: a kernel handle has no meaning in another process")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"
