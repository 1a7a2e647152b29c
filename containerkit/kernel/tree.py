"""Directories that a container has filled: made for one start, and deleted without ever leaving them.

Deleting goes by descriptor and one name at a time, because the tree was written by someone who may want something
else deleted: no link is followed, no mount is entered (``shutil.rmtree`` follows a bind mount and deletes what it
shows), and no depth of nesting exhausts the stack or the descriptors.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from . import calls
from .calls import StrPath

__all__ = ["TemporaryTree", "remove"]

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RESOLVE = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_XDEV | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS

SECONDS = 60.0
"""How long a deletion in the background may take, and with it the end of the interpreter."""


def remove(parent: int, name: StrPath, *, seconds: float = SECONDS) -> list[str]:
    """Delete a directory below the descriptor ``parent`` with all that is in it; one that is missing is fine.

    Returns what could not be deleted, by name: a mount point in this mount namespace or a file of a foreign owner, and
    everything that was left after ``seconds``. The directory itself then stays, too.
    """
    try:
        top = _open(parent, name)
    except FileNotFoundError:
        return []
    try:
        left = _empty(top, time.monotonic() + seconds)
    finally:
        os.close(top)
    if not left:
        os.rmdir(name, dir_fd=parent)
    return left


def _empty(top: int, deadline: float) -> list[str]:
    """Every directory that is found moves up to ``top`` before it is looked at: two descriptors do for any depth."""
    prefix = f".ck-{os.urandom(8).hex()}-"
    left: set[str] = set()
    lifted = 0
    while names := [name for name in os.listdir(top) if name not in left]:
        for name in names:
            if time.monotonic() > deadline:
                return sorted({*left, *os.listdir(top)})
            try:
                if not _unlink(top, name):
                    lifted = _flatten(top, name, prefix, lifted)
            except OSError:
                left.add(name)
    return sorted(left)


def _flatten(top: int, name: str, prefix: str, lifted: int) -> int:
    """Delete one directory of ``top``: its files at once, its directories by moving them up."""
    directory = _open(top, name)
    try:
        for child in os.listdir(directory):
            if not _unlink(directory, child):
                lifted += 1
                _move(directory, child, top, f"{prefix}{lifted}")
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=top)
    return lifted


def _unlink(directory: int, name: str) -> bool:
    """False for a directory; a name that is gone is as good as deleted."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        return False
    return True


def _move(directory: int, name: str, top: int, new: str) -> None:
    try:
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)
    except PermissionError:  # its ".." changes, so the directory itself must be writable (rename(2))
        os.close(_open(directory, name))
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)


def _open(parent: int, name: StrPath) -> int:
    """A directory to delete from. The owner may have to give himself the right; EXDEV when it is a mount point."""
    try:
        fd = calls.openat2(parent, name, _OPEN, resolve=_RESOLVE)
    except PermissionError:
        held = calls.openat2(parent, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_RESOLVE)
        try:
            os.chmod(f"/proc/self/fd/{held}", 0o700)  # an O_PATH descriptor has no fchmod(2)
        finally:
            os.close(held)
        fd = calls.openat2(parent, name, _OPEN, resolve=_RESOLVE)
    if os.fstat(fd).st_mode & 0o300 != 0o300:
        with suppress(PermissionError):
            os.fchmod(fd, 0o700)
    return fd


_PREFIX = "ck-layer-"


class TemporaryTree:
    """A directory of the caller's in ``$TMPDIR``, for the life of one sandbox.

    ``close()`` returns at once; a thread deletes the tree, and the interpreter's end waits for it (threads that are not
    daemons), for at most :data:`SECONDS`. What a killed program has left is deleted at the same time: a lock on the
    directory (flock(2)), which ends with the program, tells it from one that is in use.
    """

    __slots__ = ("_lock", "_maker", "_parent", "path")

    def __init__(self, *names: str) -> None:
        """Make it, with an empty directory for each name."""
        self._maker = os.getpid()
        self._parent = self._lock = -1
        self.path, self._lock = _make_locked()
        try:
            self._parent = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for name in names:
                os.mkdir(name, 0o755, dir_fd=self._lock)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete it, off the caller's path. Idempotent; in a fork of the program the tree is the parent's."""
        parent, lock = self._parent, self._lock
        self._parent = self._lock = -1
        if parent < 0 or self._maker != os.getpid():
            for fd in (parent, lock):
                if fd >= 0:
                    os.close(fd)
            return
        import threading

        thread = threading.Thread(target=_delete, args=(parent, lock, self.path), name="ck-delete")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or no thread may be added
            _delete(parent, lock, self.path)


def _make_locked() -> tuple[str, int]:
    """A new directory and a descriptor that holds its lock."""
    import tempfile

    while True:
        path = os.path.abspath(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            fd = os.open(path, _OPEN | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody who was clearing up was quicker than we
        if _try_lock(fd) and os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)


def _try_lock(fd: int) -> bool:
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _delete(parent: int, lock: int, path: str) -> None:
    """The lock is held to the end: else somebody who clears up would delete it at the same time."""
    try:
        left = remove(parent, os.path.basename(path))
        with suppress(OSError):
            _delete_forgotten(parent)
    finally:
        os.close(lock)
        os.close(parent)
    if left:
        import warnings

        warnings.warn(f"{path!r} was not deleted: {len(left)} things in it are in use", ResourceWarning, stacklevel=2)


def _delete_forgotten(parent: int) -> None:
    """What programs of this user have left that were killed before they could delete it."""
    for name in os.listdir(parent):
        if not name.startswith(_PREFIX):
            continue
        try:
            fd = os.open(name, _OPEN | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_uid == os.geteuid() and _try_lock(fd):
                remove(parent, name)
        finally:
            os.close(fd)
