"""A volume of a store."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from .._container_errors import VolumeNotFound
from ..errors import syscall_error
from ..kernel.fd import Fd
from . import trees
from .row import TREE, Row, find, open_tree, users

if TYPE_CHECKING:
    from ..layers.compression import Compression
    from ..layers.pack import Packed
    from ..layers.usage import TreeUsage
    from ..store import Store

__all__ = ["Volume"]

_NOT_EMPTY = "a volume is restored when it is new and empty: create another one, and restore into that"


class Volume:
    """A directory with a name, which containers share and which outlives them.

    It stays valid while the store is open and the volume is in it.

    Attributes:
        name: its name; 64 hexadecimal digits when nobody has given it one.
        anonymous: it has no name of its own, and goes with the container that it was made for, or with
            ``volumes.prune()``.
        labels: texts by name.
        options: ``size``, the most bytes that it may hold; ``snapshot``, the volume that it is a read-only copy of.
        created: seconds since 1970.
    """

    def __init__(self, store: Store, row: Row) -> None:
        self._store, self._row = store, row
        self.name, self.anonymous, self.created = row.name, row.anonymous, row.created
        self.labels: Mapping[str, str] = json.loads(row.labels)
        self.options: Mapping[str, Any] = json.loads(row.options)

    @property
    def path(self) -> str:
        """The directory with its files. Their owners are as containers see them for root, and this user or one of his
        subordinate ids for others; programs in a container may change all of it, and put links into it. Empty for a
        volume of bounded size: its files are in a file system of its own, and :meth:`backup` reads them."""
        return f"{self._store.path}/volumes/{self.name}/{TREE}"

    @property
    def read_only(self) -> bool:
        """Whether it is a snapshot, which containers see read-only, whatever they ask for."""
        return "snapshot" in self.options

    @property
    def users(self) -> list[str]:
        """Names of the containers that have it among their mounts, running or not."""
        with self._store.database.read() as rows:
            return [name for _, name in users(rows, self.name)]

    @property
    def in_use(self) -> bool:
        """Whether a container has it among its mounts."""
        return bool(self.users)

    def usage(self) -> TreeUsage:
        """What its files take on disk: bytes, and inodes. All of it is walked."""
        with closing(self._open()) as tree:
            return trees.size(self._store, tree.fileno())

    def inspect(self) -> dict[str, Any]:
        """All of it as ``docker volume inspect`` says it, with ``UsageData`` as ``docker system df -v`` has it."""
        self._check()
        return {
            "CreatedAt": datetime.fromtimestamp(self.created, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "Driver": "local",
            "Labels": dict(self.labels) or None,
            "Mountpoint": self.path,
            "Name": self.name,
            "Options": {name: str(value) for name, value in self.options.items()} or None,
            "Scope": "local",
            "UsageData": {"RefCount": len(self.users), "Size": self.usage().size},
        }

    # ---- as a whole --------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove it with all that is in it. Raises InUse while a container has it, or something is mounted in it."""
        self._store.volumes.remove(self.name)

    def backup(self, file: BinaryIO, *, compression: Compression | None = None) -> Packed:
        """Write its files as a tar archive to a binary file; owners as containers see them.

        Programs may go on writing: each file gets into it as it is read. No link is followed.
        """
        with closing(self._open()) as tree:
            return trees.pack(self._store, tree.fileno(), file, compression)

    def restore(self, file: BinaryIO) -> None:
        """Fill it from an archive that :meth:`backup` has written, or any tar archive, compressed or not.

        The archive is read in a process apart, as a stranger's. A kill at any moment leaves the volume empty, or whole.
        Raises Exists unless the volume is new and empty; InvalidLayer for what no honest program writes.
        """
        try:
            with trees.filling(self._store, self.name) as new:
                if new is None:
                    raise syscall_error(errno.EEXIST, "restore", self.name, _NOT_EMPTY)
                trees.unpack(self._store, file, new)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise syscall_error(errno.EEXIST, "restore", self.name, _NOT_EMPTY) from None
            raise

    def clone(self, name: str) -> Volume:
        """A copy that goes its own way, with the same labels; data is shared where the file system can (reflinks).

        Raises NameTaken.
        """
        return self._store.volumes._copy(self, name, {})

    def snapshot(self, name: str) -> Volume:
        """A copy of it as it is now, which containers see read-only. :meth:`clone` the snapshot to go back to it.

        Raises NameTaken.
        """
        return self._store.volumes._copy(self, name, {"snapshot": self.name})

    def _open(self) -> Fd:
        self._check()
        return Fd(open_tree(self._store.home, self.name))

    def _check(self) -> None:
        with self._store.database.read() as rows:
            row = find(rows, self.name)
        if row is None or row.created != self.created:
            raise VolumeNotFound(f"the volume {self.name!r} was removed from the store {self._store.path}")

    def __fspath__(self) -> str:
        return self.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Volume) and (self._row[0], self.created, self._store.path) == (
            other._row[0],
            other.created,
            other._store.path,
        )

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<Volume {self.name[:12] if self.anonymous else self.name}>"
