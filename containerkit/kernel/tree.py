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


class TemporaryTree:
    """A directory of the caller's in ``$TMPDIR``, for the life of one sandbox.

    ``close()`` returns at once; a thread deletes the tree, and the interpreter's end waits for it (threads that are not
    daemons), for at most :data:`SECONDS`. A program that is killed leaves the directory for the system's own cleaning.
    """

    __slots__ = ("_maker", "_parent", "path")

    def __init__(self, *names: str) -> None:
        """Make it, with an empty directory for each name."""
        import tempfile

        self._maker = os.getpid()
        self._parent = -1
        self.path = os.path.abspath(tempfile.mkdtemp(prefix="ck-"))
        try:
            self._parent = os.open(os.path.dirname(self.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            for name in names:
                os.mkdir(os.path.join(self.path, name), 0o755)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete it, off the caller's path. Idempotent; in a fork of the program the tree is the parent's."""
        parent, self._parent = self._parent, -1
        if parent < 0:
            return
        if self._maker != os.getpid():
            os.close(parent)
            return
        import threading

        thread = threading.Thread(target=_delete, args=(parent, self.path), name="ck-delete")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or no thread may be added
            _delete(parent, self.path)


def _delete(parent: int, path: str) -> None:
    try:
        left = remove(parent, os.path.basename(path))
    finally:
        os.close(parent)
    if left:
        import warnings

        warnings.warn(f"{path!r} was not deleted: {len(left)} things in it are in use", ResourceWarning, stacklevel=2)
