"""Blobs: content by its digest, as registries and archives have it; and how it comes in."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._image_errors import ContentMismatch, StoreError
from ..errors import ClosedHandle, InvalidValue, syscall_error
from .database import Connection, Database
from .home import Home
from .leases import Lease, is_alive
from .locks import Lock, lock

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Blobs", "Ingest"]

_CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


class Blobs:
    """The blobs of a store. A digest is the text of a :class:`~containerkit.images.digest.Digest`."""

    def __init__(self, home: Home, database: Database) -> None:
        self._home, self._database = home, database
        self._directory = home.directory("blobs")

    def has(self, digest: str, lease: Lease | None = None) -> bool:
        """Whether it is there; with ``lease``, it then stays there as long as the lease."""
        if lease is not None:
            lease.hold("blob", digest)
        with self._database.read() as rows:
            row = rows.execute("SELECT lease FROM blobs WHERE digest = ?", (digest,)).fetchone()
        return row is not None and (row[0] is None or is_alive(self._home, row[0]))

    def size(self, digest: str) -> int:
        """Bytes. Raises StoreError when it is not there."""
        with self._database.read() as rows:
            row = rows.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise StoreError(f"the store has no blob {digest}")
        return int(row[0])

    def open(self, digest: str) -> int:
        """A descriptor to read from, which the caller closes. Raises StoreError when it is not there."""
        return self.open_file(digest, self.size(digest))

    def open_file(self, digest: str, size: int) -> int:
        """The file of a blob of this size. Raises StoreError when that is lost, SyscallError when it may not be."""
        try:
            fd = os.open(_place(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            raise StoreError(f"the blob {digest} has lost its file; Store.fsck() repairs") from None
        except OSError as error:
            raise syscall_error(error.errno or 0, "open", digest, "a blob of the store") from None
        if os.fstat(fd).st_size != size:
            os.close(fd)
            raise StoreError(f"the blob {digest} has not its {size} bytes any more; Store.fsck() repairs")
        return fd

    def put(self, data: bytes, lease: Lease) -> str:
        """Store some bytes; their digest."""
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        with Ingest(self._home, self._database, name, len(data), lease) as ingest:
            if not ingest.present:
                ingest.restart()
                ingest.write(data)
                ingest.commit()
        return name

    def ingest(self, digest: str, size: int | None, lease: Lease) -> Ingest:
        """Begin to store content, or go on where a killed program has stopped.

        Waits while somebody else stores the same: what they come to is then :attr:`Ingest.present`.
        """
        return Ingest(self._home, self._database, digest, size, lease)


class Ingest:
    """Content on its way into the store: written to a file in ``ingest/`` and hashed meanwhile.

    Attributes:
        present: the store has it already, and the lease holds it: there is nothing to write or commit.
        offset: bytes that are there; a download goes on from here.
    """

    def __init__(self, home: Home, database: Database, digest: str, size: int | None, lease: Lease) -> None:
        _place(digest)
        self.digest, self.size, self._lease = digest, size, lease
        self._home, self._database = home, database
        self.present, self.offset = False, 0
        self._hasher = _hasher(digest)
        self._blob = -1
        lease.hold("blob", digest)
        self._lock: Lock | None = lock(home.directory("ingest"), digest.replace(":", "-"))
        try:
            self._blob = self._find()
            if self._blob >= 0:
                self.present, self.offset = True, os.fstat(self._blob).st_size
                self._unlock(unlink=True)
            else:
                self._resume()
        except BaseException:
            self._end()
            raise

    def fileno(self) -> int:
        """The file, to be read with pread(2) up to :attr:`offset` while it grows."""
        fd = self._blob if self._lock is None else self._lock.fd
        if fd < 0:
            raise ClosedHandle(f"the ingest of {self.digest} has ended")
        return fd

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises ContentMismatch when it becomes longer than it should: nothing of it is kept then."""
        fd = self.fileno()
        if self.size is not None and self.offset + len(data) > self.size:
            self._end(unlink=True)
            raise ContentMismatch(f"{self.digest} goes on after the {self.size} bytes of its descriptor")
        left = memoryview(data)
        try:
            while len(left):
                done = os.write(fd, left)
                self._hasher.update(left[:done])
                self.offset += done
                left = left[done:]
        except OSError as error:
            raise syscall_error(
                error.errno or 0, "write", f"{self._home.path}/ingest", "what has come is kept, to go on from there"
            ) from None

    def restart(self) -> None:
        """Forget what has come: the source cannot go on from :attr:`offset`."""
        os.ftruncate(self.fileno(), 0)
        os.lseek(self.fileno(), 0, os.SEEK_SET)
        self.offset, self._hasher = 0, _hasher(self.digest)

    def commit(self) -> None:
        """Make it a blob. Raises ContentMismatch: too short (what is there is kept), or of another digest (it is not).

        The blob is on the device when an image that uses it is; see :mod:`containerkit.storage`.
        """
        self.fileno()
        if self.present:
            self._end()
            return
        if self.size is not None and self.offset != self.size:
            self._end()
            raise ContentMismatch(f"{self.digest} ends after {self.offset} bytes: its descriptor says {self.size}")
        if self._hasher.hexdigest() != _hex(self.digest):
            self._end(unlink=True)
            raise ContentMismatch(f"what should be {self.digest} has the digest {self._hasher.hexdigest()}")
        try:
            with self._database.write(durable=False) as rows:
                os.rename(
                    self.digest.replace(":", "-"),
                    _place(self.digest),
                    src_dir_fd=self._home.directory("ingest"),
                    dst_dir_fd=self._home.directory("blobs"),
                )
                self._record(rows, self.offset)
        finally:
            self._end()

    def abort(self, keep: bool = True) -> None:
        """End without a blob; what has come is kept to go on from, unless told otherwise. Idempotent."""
        self._end(unlink=not keep)

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    # ---- within ------------------------------------------------------------------------------------------------------

    def _end(self, *, unlink: bool = False) -> None:
        self._unlock(unlink=unlink)
        fd, self._blob = self._blob, -1
        if fd >= 0:
            os.close(fd)

    def _unlock(self, *, unlink: bool) -> None:
        held, self._lock = self._lock, None
        if held is not None:
            held.close(unlink=unlink)

    def _find(self) -> int:
        """A descriptor of the blob if there is one; else -1. One whose row was lost, or belongs to a dead lease, is one
        again if its content is right."""
        try:
            fd = os.open(
                _place(self.digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._home.directory("blobs")
            )
        except FileNotFoundError:
            return -1
        try:
            if self._has_row() or self._adopt(fd):
                found, fd = fd, -1
                return found
        finally:
            if fd >= 0:
                os.close(fd)
        return -1

    def _has_row(self) -> bool:
        with self._database.read() as rows:
            row = rows.execute("SELECT lease FROM blobs WHERE digest = ?", (self.digest,)).fetchone()
        return row is not None and (row[0] is None or is_alive(self._home, row[0]))

    def _adopt(self, fd: int) -> bool:
        hasher, size = _hasher(self.digest), 0
        for piece in _pieces(fd):
            hasher.update(piece)
            size += len(piece)
        if hasher.hexdigest() != _hex(self.digest) or self.size not in (None, size):
            return False
        with self._database.write(durable=False) as rows:
            if not os.fstat(fd).st_nlink:
                return False  # collected meanwhile
            self._record(rows, size)
        return True

    def _record(self, rows: Connection, size: int) -> None:
        rows.execute(
            "INSERT INTO blobs VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE "
            "SET size = excluded.size, lease = CASE WHEN lease IS NULL THEN NULL ELSE excluded.lease END",
            (self.digest, size, self._lease.id, time.time()),
        )
        self._lease.hold_in(rows, "blob", self.digest)

    def _resume(self) -> None:
        fd = self.fileno()
        for piece in _pieces(fd):
            self._hasher.update(piece)
            self.offset += len(piece)
        if self.size is not None and self.offset > self.size:
            self.restart()


def _place(digest: str) -> str:
    """Its name below ``blobs/``. Anything that is not a digest would be a path of someone else's choice."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidValue(f"{digest[:150]!r} is not a digest")
    return digest.replace(":", "/")


def _hasher(digest: str) -> _Hash:
    return hashlib.new(digest.partition(":")[0], usedforsecurity=False)


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


def _pieces(fd: int) -> Iterator[bytes]:
    while piece := os.read(fd, _CHUNK):
        yield piece
