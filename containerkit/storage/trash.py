"""What is not needed any more: renamed out of the way at once, deleted later, off the caller's path."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from ..errors import ContainerkitError
from ..kernel import tree
from .home import Home

__all__ = ["Trash", "remove_tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Remove = Callable[[int, str], list[str]]
"""Deletes a directory below a descriptor, as :func:`kernel.tree.remove` does."""


class Trash:
    """``trash/`` of a store. What a killed program has left in it is deleted by the next one that empties it.

    ``remove`` deletes what this user alone cannot: trees with files of his subordinate ids.
    """

    def __init__(self, home: Home, remove: Remove = tree.remove) -> None:
        self._home, self._remove = home, remove
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._busy = self._more = False

    def take(self, directory: int, name: str) -> str:
        """Out of ``directory`` into the trash; a name that is gone is fine. :meth:`empty` deletes it.

        Returns its name there, for :meth:`delete`.
        """
        new = os.urandom(8).hex()
        with suppress(FileNotFoundError):
            os.rename(name, new, src_dir_fd=directory, dst_dir_fd=self._home.directory("trash"))
        return new

    def delete(self, name: str) -> None:
        """Delete one of its entries now, which pays for what takes less time than a thread does to start."""
        with suppress(OSError):  # what is left is for the next who empties it
            _delete(self._home.directory("trash"), name, self._remove)

    def empty(self) -> None:
        """Delete what is in it, in a thread; the end of the interpreter waits for it."""
        with self._guard:
            if self._busy and self._thread is not None and self._thread.is_alive():  # not in a fork of the program
                self._more = True  # it may be past what has come now
                return
            if not os.listdir(self._home.directory("trash")):
                return
            self._thread = threading.Thread(target=self._empty_until_done, name="ck-trash")
            self._busy = True
            try:
                self._thread.start()
                return
            except RuntimeError:  # the interpreter is ending, or no thread may be added
                self._thread, self._busy = None, False
        self.empty_now()

    def _empty_until_done(self) -> None:
        while True:
            try:
                self.empty_now()
            finally:
                with self._guard:
                    again, self._more = self._more, False
                    self._busy = again
            if not again:
                return

    def empty_now(self) -> list[str]:
        """Delete what is in it; what could not be deleted, by name."""
        trash = self._home.directory("trash")
        left = []
        for name in sorted(os.listdir(trash)):
            try:
                if not _delete(trash, name, self._remove):
                    left.append(name)
            except FileNotFoundError:
                continue
            except OSError:
                left.append(name)
        return left

    def wait(self) -> None:
        """Until the thread has done what it can. More may come meanwhile: then once more."""
        with self._guard:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _delete(trash: int, name: str, remove: Remove) -> bool:
    """One entry; the lock keeps two programs from deleting the same tree in each other's way."""
    with suppress(IsADirectoryError):
        os.unlink(name, dir_fd=trash)
        return True
    fd = os.open(name, _DIRECTORY, dir_fd=trash)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True  # somebody else is at it
        return not remove(trash, name)
    finally:
        os.close(fd)


def remove_tree(parent: int, name: str) -> list[str]:
    """As :func:`kernel.tree.remove`, and also what an ordinary user's containers have left with his subordinate ids:
    by a process that has these ids, where he has any."""
    left = tree.remove(parent, name)
    if not left or os.geteuid() == 0:
        return left
    from ..idmap import IdMap
    from ..tree_process import TreeProcess

    with (
        suppress(ContainerkitError),
        TreeProcess([os.readlink(f"/proc/self/fd/{parent}")], idmap=IdMap.subordinate()) as worker,
    ):
        return worker.remove(parent, name)
    return left
