"""Trees into archives: the changes in an overlay's upper directory as a layer, or a whole tree as a root file system.

The same content gives the same bytes, whatever the order of directories, the names of the host's users or the time.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from ..errors import InvalidValue, Unsupported
from ..value import Value, frozen
from .compression import Compression, compressor
from .entry import Entry, Kind
from .tarwriter import TarWriter, Writable
from .walk import Found, entry_of, walk

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Ids", "Packed", "Packing", "pack_layer", "pack_tree", "source_date"]

Ids = tuple[Callable[[int], int], Callable[[int], int]]
"""What becomes of a user's number, and of a group's."""

_OPAQUE = "user.overlay.opaque"
_REDIRECT = "user.overlay.redirect"


@frozen(kw_only=True)
class Packed(Value):
    """What was written.

    Attributes:
        diff_id: the digest of the archive before compression, "sha256:...".
        digest: that of what was written, "sha256:...".
        size: bytes written. diff_size: bytes of the archive.
        entries: files, directories, whiteouts and all else in it. files: bytes of the files' content.
        left_out: sockets, for which tar has no form.
    """

    diff_id: str
    digest: str
    size: int
    diff_size: int
    entries: int
    files: int
    left_out: int


def source_date(given: int | None) -> int | None:
    """The latest time that may stand in an archive: ``given``, or ``$SOURCE_DATE_EPOCH``, in seconds since 1970.

    Raises InvalidValue for what is no such number (reproducible-builds.org, "SOURCE_DATE_EPOCH").
    """
    if given is None:
        text = os.environ.get("SOURCE_DATE_EPOCH", "")
        if not text:
            return None
        if not text.isdecimal():
            raise InvalidValue(f"SOURCE_DATE_EPOCH={text!r} must be a number of seconds since 1970")
        given = int(text)
    if not 0 <= given < 1 << 40:
        raise InvalidValue(f"source_date_epoch={given!r} must be a number of seconds since 1970")
    return given


def pack_layer(
    upper: int,
    out: Writable,
    *,
    compression: Compression | None = None,
    level: int | None = None,
    source_date_epoch: int | None = None,
    without: Collection[bytes] = (),
) -> Packed:
    """Write the upper directory of an overlay, which the descriptor is of, as a layer (OCI image-spec, layer.md).

    Devices 0:0 become whiteouts and opaque directories get a mark, each before what is beside it. Extended attributes
    of users, capabilities and access lists are kept. A file that changes meanwhile gets into it as it was read; for
    changes of several files that belong together, freeze the processes first (:meth:`Cgroup.freeze`). ``without`` are
    paths, like "etc/hosts", that are left out.

    Raises InvalidValue for a directory with a redirect, which overlayfs makes only where it is told to.
    """
    return _pack(upper, out, compression, level, source_date_epoch, layer=True, without=without)


def pack_tree(
    tree: int,
    out: Writable,
    *,
    compression: Compression | None = None,
    level: int | None = None,
    source_date_epoch: int | None = None,
) -> Packed:
    """Write a whole tree, which the descriptor is of, as an archive. What is mounted in it is refused (EXDEV)."""
    return _pack(tree, out, compression, level, source_date_epoch, layer=False)


def _pack(
    root: int,
    out: Writable,
    compression: Compression | None,
    level: int | None,
    epoch: int | None,
    *,
    layer: bool,
    without: Collection[bytes] = (),
) -> Packed:
    sink = _Sink(out, compression, level)
    limit = source_date(epoch)
    tar = TarWriter(sink)
    opened = os.open(f"/proc/self/fd/{root}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        packing = Packing(tar, limit, layer, _inside())
        for found in walk(opened):
            if found.path not in without:
                packing.add(found)
    finally:
        os.close(opened)
    tar.finish()
    return sink.packed(tar, packing.left_out)


class Packing:
    """Adds what is found in a tree to an archive, later names of a file as hard links. ``ids`` are what becomes of its
    owners."""

    def __init__(self, tar: TarWriter, limit: int | None, layer: bool, ids: Ids) -> None:
        self._tar, self._layer = tar, layer
        self._uid, self._gid = ids
        self._limit = None if limit is None else limit * 1_000_000_000
        self._first: dict[tuple[int, int], bytes] = {}
        self.left_out = 0

    def add(self, found: Found) -> None:
        status = found.status
        if self._layer and found.is_whiteout:
            self._mark(_beside(found.path, b".wh."))
            return
        linked = self._first.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
        if linked is not None and not stat.S_ISDIR(status.st_mode):
            self._tar.add(
                Entry(
                    found.path,
                    Kind.HARDLINK,
                    mode=stat.S_IMODE(status.st_mode),
                    uid=self._uid(status.st_uid),
                    gid=self._gid(status.st_gid),
                    mtime_ns=self._time(status),
                    link=linked,
                )
            )
            return
        entry, fd = entry_of(found, self._time(status))
        try:
            if entry is None:
                self.left_out += stat.S_ISSOCK(status.st_mode)
                return
            if status.st_nlink > 1:
                self._first[status.st_dev, status.st_ino] = found.path
            entry.uid, entry.gid = self._uid(entry.uid), self._gid(entry.gid)
            self._tar.add(entry, fd)
        finally:
            if fd >= 0:
                os.close(fd)
        if self._layer and entry.kind is Kind.DIRECTORY:
            self._opaque(found)

    def _opaque(self, found: Found) -> None:
        fd = os.open(found.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.directory)
        try:
            own = set(os.listxattr(fd))
            if _REDIRECT in own:
                raise InvalidValue(
                    f"{os.fsdecode(found.path)!r} was renamed with redirect_dir=on: mount the overlay without, and copy"
                )
            if _OPAQUE in own and os.getxattr(fd, _OPAQUE) == b"y":
                self._mark(found.path + b"/.wh..wh..opq")
        finally:
            os.close(fd)

    def _mark(self, path: bytes) -> None:
        """An empty file with the same attributes always: a whiteout has none of its own."""
        self._tar.add(Entry(path, Kind.FILE))

    def _time(self, status: os.stat_result) -> int:
        return status.st_mtime_ns if self._limit is None else min(status.st_mtime_ns, self._limit)


def _inside() -> Ids:
    """From owners on disk to those that programs saw. Root's are the same, because an idmapped mount lies between; an
    ordinary user's own id is root inside, and the ids behind it are his ranges in /etc/subuid and /etc/subgid."""
    if os.geteuid() == 0:
        return (lambda uid: uid), (lambda gid: gid)
    from ..idmap import IdMap

    try:
        ids = IdMap.subordinate()
    except Unsupported:
        ids = IdMap.single()
    return partial(_mapped, ids.uid), partial(_mapped, ids.gid)


def _mapped(extents: tuple[tuple[int, int, int], ...], number: int) -> int:
    for inside, outside, count in extents:
        if outside <= number < outside + count:
            return inside + number - outside
    raise InvalidValue(f"id {number} owns something in the tree, and is none of this user's (/etc/subuid, /etc/subgid)")


def _beside(path: bytes, prefix: bytes) -> bytes:
    parent, slash, last = path.rpartition(b"/")
    return parent + slash + prefix + last


class _Sink:
    """Hashes what is written before and after compression."""

    def __init__(self, out: Writable, compression: Compression | None, level: int | None) -> None:
        self._out, self._compressor = out, compressor(compression, level)
        self._plain = compression is None
        self._diff: _Hash = hashlib.sha256()
        self._digest: _Hash = hashlib.sha256()
        self._size = self._diff_size = 0

    def write(self, data: bytes, /) -> None:
        self._diff.update(data)
        self._diff_size += len(data)
        if self._plain:
            self._write(data)
        elif found := self._compressor.compress(data):
            self._put(found)

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._size += len(data)
        self._write(data)

    def _write(self, data: bytes) -> None:
        view: memoryview | bytes = data
        while view:
            written = self._out.write(bytes(view))
            if not isinstance(written, int) or written >= len(view):
                return
            view = memoryview(view)[written:]

    def packed(self, tar: TarWriter, left_out: int) -> Packed:
        if not self._plain:
            self._put(self._compressor.flush())
        digest, size = (self._diff, self._diff_size) if self._plain else (self._digest, self._size)
        return Packed(
            diff_id=f"sha256:{self._diff.hexdigest()}",
            digest=f"sha256:{digest.hexdigest()}",
            size=size,
            diff_size=self._diff_size,
            entries=tar.entries,
            files=tar.content,
            left_out=left_out,
        )
