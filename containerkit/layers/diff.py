"""What an overlay has changed, from its upper directory alone: the same lines as ``docker diff``.

docker compares the whole merged tree with the whole image. Here only what is in the upper directory is looked at, and
for each such name the layers below are asked once, by descriptor: the cost grows with the changes, not with the image.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, TypeAlias

from ..errors import SyscallError
from ..kernel import calls
from .walk import Found, walk

__all__ = ["Change", "Lower", "diff"]

_OPAQUE = "user.overlay.opaque"
_RESOLVE = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS
_CAPABILITY = "security.capability"


class Change(NamedTuple):
    """One path that differs from the image; ``str()`` is docker's line ("C /etc").

    Attributes:
        kind: "A" for added, "C" for changed, "D" for deleted.
        path: absolute, inside the root; bytes that are no UTF-8 as surrogates (os.fsdecode).
        size: bytes that the upper layer holds of it: 0 for directories and what is deleted.
    """

    kind: Literal["A", "C", "D"]
    path: str
    size: int

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


_Found: TypeAlias = dict[bytes, tuple[Literal["A", "C", "D"], int]]


def diff(upper: int, lowers: Sequence[int], *, without: Collection[bytes] = ()) -> list[Change]:
    """The changes in an overlay's upper directory against its lower ones (the topmost first), sorted by path.

    All are descriptors of directories. A directory in which something changed is there too, as "C"; a directory that
    is gone is one line. What was only opened for writing, or restored to what it was, is no change; a file whose time
    changed is one. ``without`` are paths, like "etc/hosts", that do not count.
    """
    lower = Lower(lowers)
    found: _Found = {}
    cut: set[bytes] = set()
    opened = os.open(f"/proc/self/fd/{upper}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for each in walk(opened):
            if each.path not in without:
                _look(each, lower, found, cut)
    finally:
        os.close(opened)
    for path in list(found):
        _name_directories(path, found)
    return [Change(kind, f"/{os.fsdecode(path)}", size) for path, (kind, size) in sorted(found.items())]


def _look(each: Found, lower: Lower, found: _Found, cut: set[bytes]) -> None:
    before = lower.status(each.path)
    if each.is_whiteout:
        if before is not None:
            found[each.path] = ("D", 0)
        return
    is_file = stat.S_ISREG(each.status.st_mode)
    size = each.status.st_size if is_file else 0
    if before is None:
        found[each.path] = ("A", size)
    elif _differs(each, before, lower):
        found[each.path] = ("C", size)
    if not stat.S_ISDIR(each.status.st_mode):
        return
    # What is in a directory that hides the one below hides what is below that, too, without a mark of its own.
    if each.path.rpartition(b"/")[0] in cut or _is_opaque(each):
        cut.add(each.path)
        if before is not None and stat.S_ISDIR(before.st_mode):
            for name in lower.names(each.path):
                if not _has(each, name):
                    found[each.path + b"/" + name] = ("D", 0)


def _name_directories(path: bytes, found: _Found) -> None:
    """Each directory above a change is changed, unless it is new itself."""
    while (path := path.rpartition(b"/")[0]) and path not in found:
        found[path] = ("C", 0)


def _differs(each: Found, before: os.stat_result, lower: Lower) -> bool:
    """docker's rule: mode, owner and device, and for all but directories size and time; and capabilities."""
    now = each.status
    if (now.st_mode, now.st_uid, now.st_gid, now.st_rdev) != (
        before.st_mode,
        before.st_uid,
        before.st_gid,
        before.st_rdev,
    ):
        return True
    if stat.S_ISDIR(now.st_mode):
        return False
    if now.st_size != before.st_size or not _same_time(now.st_mtime_ns, before.st_mtime_ns):
        return True
    return stat.S_ISREG(now.st_mode) and _capability(each) != lower.capability(each.path)


def _same_time(a: int, b: int) -> bool:
    """A time without a fraction of a second may have lost it in an archive."""
    if a % 1_000_000_000 and b % 1_000_000_000:
        return a == b
    return a // 1_000_000_000 == b // 1_000_000_000


def _capability(each: Found) -> bytes:
    fd = os.open(each.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=each.directory)
    try:
        return os.getxattr(fd, _CAPABILITY)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _is_opaque(each: Found) -> bool:
    fd = os.open(each.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=each.directory)
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError:
        return False
    finally:
        os.close(fd)


def _has(each: Found, name: bytes) -> bool:
    try:
        fd = os.open(each.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=each.directory)
    except OSError:
        return False
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)
    return not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)


class Lower:
    """The layers below, as overlayfs merges them (overlayfs.rst, "Merged directories")."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = layers

    def status(self, path: bytes) -> os.stat_result | None:
        found = self._find(path)
        return None if found is None else found[1]

    def capability(self, path: bytes) -> bytes:
        found = self._find(path)
        if found is None:
            return b""
        try:
            fd = calls.openat2(found[0], path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, resolve=_RESOLVE)
        except OSError:
            return b""
        try:
            return os.getxattr(fd, _CAPABILITY)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def names(self, path: bytes) -> Iterator[bytes]:
        """What a merged directory shows."""
        hidden: set[bytes] = set()
        for layer in self._visible(path):
            try:
                fd = calls.openat2(layer, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_RESOLVE)
            except OSError:
                return
            try:
                for name in os.listdir(fd):
                    raw = os.fsencode(name)
                    if raw in hidden:
                        continue
                    hidden.add(raw)
                    status = os.stat(raw, dir_fd=fd, follow_symlinks=False)
                    if not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0):
                        yield raw
            finally:
                os.close(fd)

    def _visible(self, path: bytes) -> Iterator[int]:
        """The layers whose directory of this path is part of the merged one, the topmost first."""
        for layer in self._layers:
            status, opaque = _at(layer, path)
            if status is not None:
                if not stat.S_ISDIR(status.st_mode):
                    return
                yield layer
            if opaque:
                return

    def _find(self, path: bytes) -> tuple[int, os.stat_result] | None:
        for layer in self._layers:
            status, opaque = _at(layer, path)
            if status is not None:
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    return None
                return layer, status
            if opaque:
                return None
        return None


def _at(layer: int, path: bytes) -> tuple[os.stat_result | None, bool]:
    """What a layer has at a path, and whether it hides what is below there."""
    try:
        fd = calls.openat2(layer, path, os.O_PATH | os.O_NOFOLLOW, resolve=_RESOLVE)
    except SyscallError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None, error.errno != errno.ENOENT or _hides(layer, path)
    try:
        status = os.fstat(fd)
        return status, _hides(layer, path) or (stat.S_ISDIR(status.st_mode) and _marked(fd))
    finally:
        os.close(fd)


def _hides(layer: int, path: bytes) -> bool:
    """Whether a directory above the path is opaque in this layer, or is no directory."""
    while path := path.rpartition(b"/")[0]:
        try:
            fd = calls.openat2(layer, path, os.O_PATH | os.O_NOFOLLOW, resolve=_RESOLVE)
        except SyscallError:
            continue
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode) or _marked(fd):
                return True
        finally:
            os.close(fd)
    return False


def _marked(fd: int) -> bool:
    with suppress(OSError):
        return os.getxattr(f"/proc/self/fd/{fd}", _OPAQUE) == b"y"
    return False
