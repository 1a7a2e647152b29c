"""One owner for one descriptor, closed once."""

from __future__ import annotations

import os
from typing import Any, Self

from ..errors import ClosedHandle

__all__ = ["Fd"]


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
            import warnings

            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__}: a kernel handle has no meaning in another process")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"
