"""Reading layers as overlayfs would show them, without mounting anything: by descriptor, for any user.

For one directory of an image that is to be copied (the first use of a volume). Layers were written by strangers: names
are looked up one at a time, links are resolved within the layers, and nothing is followed out of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ..kernel import calls
from .copy import _Copy, _dress
from .walk import Found

__all__ = ["MergedDirectory", "copy_merged", "resolve"]

_OPAQUE = "user.overlay.opaque"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RESOLVE = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_XDEV | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS
_LINKS_MAX = 40  # as the kernel (path_resolution(7))


class MergedDirectory:
    """One directory, as descriptors of it in the layers that have it, the topmost first; owns them."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    @classmethod
    def root(cls, lowers: Sequence[int]) -> MergedDirectory:
        """Of layers, by descriptors that stay the caller's."""
        self = cls([])
        try:
            for fd in lowers:
                self.fds.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except BaseException:
            self.close()
            raise
        return self

    def find(self, name: str) -> tuple[int, os.stat_result] | None:
        """What is seen of a name: in which directory, and its status; None for what is not there, or hidden."""
        for fd in self.fds:
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                return None if Found(b"", name, fd, status).is_whiteout else (fd, status)
        return None

    def enter(self, name: str) -> MergedDirectory:
        """A directory in it: of all layers down to one that hides what is below."""
        found = MergedDirectory([])
        try:
            for fd in self.fds:
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    break
                found.fds.append(calls.openat2(fd, name, _OPEN, resolve=_RESOLVE))
                if _is_opaque(found.fds[-1]):
                    break
        except BaseException:
            found.close()
            raise
        return found

    def walk(self, above: bytes = b"") -> Iterator[Found]:
        """Everything in it, each directory before what is in it, names in the order of their bytes."""
        names = {name for fd in self.fds for name in os.listdir(fd)}
        for name in sorted(names, key=os.fsencode):
            seen = self.find(name)
            if seen is None:
                continue
            path = above + os.fsencode(name)
            yield Found(path, name, *seen)
            if stat.S_ISDIR(seen[1].st_mode):
                child = self.enter(name)
                try:
                    yield from child.walk(path + b"/")
                finally:
                    child.close()

    def is_empty(self) -> bool:
        """Whether nothing is seen in it."""
        return next(iter(self.walk()), None) is None

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def resolve(lowers: Sequence[int], path: str) -> MergedDirectory | None:
    """The directory that ``path`` means to a program whose root are these layers, the topmost first; None when it is
    not there, or no directory. The caller closes it."""
    above = [MergedDirectory.root(lowers)]
    todo, links = path.split("/"), 0
    try:
        while todo:
            part = todo.pop(0)
            if part == ".." and len(above) > 1:
                above.pop().close()
            if part in ("", ".", ".."):
                continue
            seen = above[-1].find(part)
            if seen is None:
                return None
            directory, status = seen
            if stat.S_ISDIR(status.st_mode):
                above.append(above[-1].enter(part))
            elif stat.S_ISLNK(status.st_mode) and links < _LINKS_MAX:
                links += 1
                target = os.readlink(part, dir_fd=directory)
                todo = target.split("/") + todo
                while target.startswith("/") and len(above) > 1:
                    above.pop().close()
            else:
                return None
        return above.pop()
    finally:
        for each in above:
            each.close()


def copy_merged(lowers: Sequence[int], path: str, target: int) -> bool:
    """Copy what layers show in a directory to another one, an empty one, which gets the same attributes.

    As :func:`copy_tree`. False when there is no such directory; then nothing is done.
    """
    source = resolve(lowers, path)
    if source is None:
        return False
    copy = _CopyOfMerged(target)
    try:
        for found in source.walk():
            copy.add(found)
        copy.leave(0)
        _dress(source.fds[0], target, os.fstat(source.fds[0]))
        _plain(target)
    finally:
        copy.close()
        source.close()
    return True


class _CopyOfMerged(_Copy):
    """Without overlayfs's own marks: the copy is no layer."""

    def _enter(self, found: Found, directory: int) -> None:
        super()._enter(found, directory)
        _plain(self._stack[-1][1])


def _plain(directory: int) -> None:
    for name in os.listxattr(directory):
        if name.startswith("user.overlay."):
            os.removexattr(directory, name)
