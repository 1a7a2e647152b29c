"""A path that was looked at, and the file that it led to then."""

from __future__ import annotations

import os

__all__ = ["HeldPath"]


class HeldPath:
    """What ``fd`` is of, and its path for words and for who must open it again; owns the descriptor.

    Whoever is told to mount it gets this very file or directory, whatever the path leads to by then. Closed when it is
    forgotten: it lives as long as the value that it is a part of.
    """

    __slots__ = ("_fd", "_path")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._path = os.readlink(f"/proc/self/fd/{fd}")

    def fileno(self) -> int:
        """The descriptor (O_PATH will do)."""
        return self._fd

    def __fspath__(self) -> str:
        return self._path

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return repr(self._path)
