"""Locks that are files: they end with their owner, whatever becomes of it (flock(2))."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

__all__ = ["Lock", "held_by_others", "held_shared", "lock", "try_lock"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Lock:
    """A locked file, by descriptor. Whoever has it exclusively may unlink it: those who waited look again."""

    __slots__ = ("_directory", "_maker", "fd", "name")

    def __init__(self, directory: int, name: str, fd: int) -> None:
        self._directory, self.name, self.fd, self._maker = directory, name, fd, os.getpid()

    @property
    def is_ours(self) -> bool:
        """False in a fork of the program that took it."""
        return self._maker == os.getpid()

    def close(self, *, unlink: bool = False) -> None:
        """Idempotent. In a fork of the program, the lock stays the parent's."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        if unlink and self.is_ours:
            with suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self._directory)
        os.close(fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def lock(directory: int, name: str, *, shared: bool = False) -> Lock:
    """Wait for it."""
    found = _lock(directory, name, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    assert found is not None  # noqa: S101  it has waited
    return found


def try_lock(directory: int, name: str) -> Lock | None:
    """Exclusively, or None when somebody else has it."""
    return _lock(directory, name, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(directory: int, name: str, how: int) -> Lock | None:
    while True:
        fd = os.open(name, _FLAGS, 0o600, dir_fd=directory)
        try:
            fcntl.flock(fd, how)
            if _is_named(fd, directory, name):
                return Lock(directory, name, fd)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # unlinked, or renamed, by the one that we waited for


def _is_named(fd: int, directory: int, name: str) -> bool:
    try:
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def held_by_others(directory: int, name: str) -> bool:
    """Whether somebody has it exclusively; asked with a shared lock, so that those who ask do not meet each other."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def held_shared(directory: int, name: str) -> bool:
    """Whether anybody has it, shared or not. For that moment :func:`try_lock` of others fails."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
