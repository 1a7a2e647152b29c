"""One cgroup directory in one hierarchy: a descriptor, and its files by name."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import partial
from itertools import starmap

from ..errors import InvalidValue, syscall_error
from ..kernel.fd import Fd, close_all, put

__all__ = ["Directory"]

OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_SIZE = 1 << 16


def _check(file: str) -> None:
    if "/" in file or file in ("", ".", ".."):
        raise InvalidValue(f"{file!r} is not the name of a file in a cgroup")


def _delegated() -> list[str]:
    """The kernel's own list (cgroups(7), /sys/kernel/cgroup/delegate), or the three that it always had."""
    try:
        with open("/sys/kernel/cgroup/delegate") as file:
            return file.read().split()
    except OSError:
        return ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"]


class Directory(Fd):
    """Owns the descriptor of a cgroup directory.

    Attributes:
        controllers: the controllers whose files it has, by the kernel's names for its version ("blkio" in v1).
        version: 1 or 2.
        path: where it was when it was opened, for messages.
    """

    __slots__ = ("controllers", "path", "version")

    def __init__(self, fd: int, controllers: tuple[str, ...], version: int, path: str) -> None:
        super().__init__(fd)
        self.controllers, self.version, self.path = controllers, version, path

    def reopen(self, name: str, dir_fd: int | None) -> None:
        """Own the descriptor of a directory by its name, without a moment in which nobody does."""
        for self._fd in starmap(partial(os.open, dir_fd=dir_fd), ((name, OPEN),)):
            pass

    @property
    def key(self) -> tuple[str, ...]:
        """The controllers of its hierarchy in v1, which no other hierarchy has; nothing in v2."""
        return self.controllers if self.version == 1 else ()

    def open(self, file: str, flags: int = os.O_RDONLY) -> int:
        """Open one of its files; the caller closes the descriptor."""
        _check(file)
        try:
            return os.open(file, flags | os.O_CLOEXEC, dir_fd=self.fileno())
        except OSError as error:
            raise self._error(error, "open", file) from None

    def read(self, file: str, *, above: bool = False) -> str:
        """The text of one of its files, or of the group directly above it, without the last newline."""
        fds: list[int] = []
        try:
            fd = self._open(fds, file, os.O_RDONLY, above)
            text = os.read(fd, _SIZE)
            while len(text) % _SIZE == 0 and (more := os.read(fd, _SIZE)):
                text += more
        except OSError as error:
            raise self._error(error, "read" if fds else "open", file) from None
        finally:
            close_all(fds)
        return text.decode(errors="replace").rstrip("\n")

    def write(self, file: str, value: str | int, *, above: bool = False) -> None:
        """Write one of its files, or of the group directly above it, in one write(2)."""
        fds: list[int] = []
        try:
            os.write(self._open(fds, file, os.O_WRONLY, above), str(value).encode())
        except OSError as error:
            raise self._error(error, "write", file, f"the value was {str(value)!r}") from None
        finally:
            close_all(fds)

    def _open(self, fds: list[int], file: str, flags: int, above: bool) -> int:
        """``above`` goes by way of the directory itself: nothing is looked up from the root."""
        _check(file)
        name = f"../{file}" if above else file
        return put(fds, partial(os.open, dir_fd=self.fileno()), name, flags | os.O_CLOEXEC)

    def has(self, file: str) -> bool:
        """Whether the kernel has this file here."""
        try:
            os.stat(file, dir_fd=self.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def delegate(self, uid: int, gid: int) -> None:
        """Give it to a user, with the files by which groups below are made and filled; its limits stay ours."""
        os.fchown(self.fileno(), uid, gid)
        names = _delegated() if self.version == 2 else ("cgroup.procs", "tasks")
        for name in names:
            with suppress(FileNotFoundError):  # the list is of all that the kernel has
                os.chown(name, uid, gid, dir_fd=self.fileno(), follow_symlinks=False)

    def _error(self, error: OSError, syscall: str, file: str, hint: str | None = None) -> Exception:
        number = error.errno or errno.EIO
        if number == errno.ENODEV:
            hint = "the cgroup has been removed"
        return syscall_error(number, syscall, f"{self.path}/{file}", hint)

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}"
        return f"<Directory {self.path!r} v{self.version} {','.join(self.controllers) or 'core'} {state}>"
