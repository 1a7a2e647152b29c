"""Layers: unpacked trees, each alone in a directory, which overlayfs stacks."""

from __future__ import annotations

import base64
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from .._image_errors import StoreError
from ..errors import ClosedHandle
from ..kernel import calls
from ..mounttree import MountTree
from ..overlayfs import OverlayFS
from .database import Connection, Database
from .home import Home
from .leases import Lease, is_alive
from .locks import lock
from .trash import Trash

__all__ = ["Applied", "Layers", "Staged", "unique"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
TREE = "d"
"""The tree's name in the directory of its layer. That directory is ours; the tree's own may belong to another id."""


_WORK = "w"
_IN_TREE = calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS


class Applied(Protocol):
    """What is to be known of an unpacked tree."""

    @property
    def files(self) -> int: ...
    @property
    def inodes(self) -> int: ...


class Layers:
    """The layers of a store.

    A layer's key is its diff_id; or its chain id, when the tree depends on those below it. Where it is has a short name
    of its own, so that the paths of many layers fit what overlayfs takes.
    """

    def __init__(self, home: Home, database: Database, trash: Trash) -> None:
        self._home, self._database, self._trash = home, database, trash

    def has(self, key: str, lease: Lease | None = None) -> bool:
        """Whether it is there; with ``lease``, it then stays there as long as the lease."""
        if lease is not None:
            lease.hold("layer", key)
        with self._database.read() as rows:
            return self._row_is_good(rows, key)

    def path(self, key: str) -> str:
        """The directory of its tree. Raises StoreError when it is not there."""
        return self.paths((key,))[0]

    def paths(self, keys: Sequence[str]) -> list[str]:
        """The directories of the trees, in the order of ``keys``. Raises StoreError when one is not there."""
        with self._database.read() as rows:
            found = [rows.execute("SELECT name FROM layers WHERE key = ?", (key,)).fetchone() for key in keys]
        for key, row in zip(keys, found, strict=True):
            if row is None:
                raise StoreError(f"the store has no layer {key}")
        return [self.place(row[0]) for row in found]

    @property
    def directory(self) -> str:
        """What holds the directories of all layers."""
        return f"{self._home.path}/layers"

    def place(self, name: str) -> str:
        """The directory of a tree, by the layer's short name."""
        return f"{self._home.path}/layers/{name}/{TREE}"

    def open(self, key: str) -> int:
        """A descriptor of its tree, which the caller closes."""
        place = os.path.relpath(self.path(key), f"{self._home.path}/layers")
        return os.open(place, _DIRECTORY, dir_fd=self._home.directory("layers"))

    @contextmanager
    def unpacking(self, diff_id: str) -> Iterator[None]:
        """While nobody else unpacks the same layer: so that the work is not done twice."""
        held = lock(self._home.directory("staging"), f"lock-{diff_id.replace(':', '-')}")
        try:
            yield
        finally:
            held.close(unlink=True)

    stacks = False
    """Whether a layer can only be made upon those below it."""

    def stage(self, lease: Lease, below: Sequence[str] | None = None) -> Staged:
        """A directory to unpack a layer into.

        With ``below``, the keys of the layers below it from the lowest on, it is a tree of those, and what changes in
        it becomes the layer; an overlay is mounted for that, which needs root.
        """
        return Staged(self._home, self._database, self._trash, lease, [self.path(key) for key in below or ()])

    def exist(self, paths: Sequence[bytes], below: Sequence[str]) -> bool:
        """Whether each path is in one of these layers, as anything but a hidden name."""
        if not paths:
            return True
        trees = [self.open(key) for key in below]
        try:
            return all(any(_is_in(tree, path) for tree in trees) for path in paths)
        finally:
            for tree in trees:
                os.close(tree)

    def _row_is_good(self, rows: Connection, key: str) -> bool:
        row = rows.execute("SELECT lease FROM layers WHERE key = ?", (key,)).fetchone()
        return row is not None and (row[0] is None or is_alive(self._home, row[0]))


class Staged:
    """A layer that is being unpacked, in ``staging/``. What is not kept is deleted when it is closed.

    Attributes:
        fd: the directory to unpack into.
    """

    def __init__(self, home: Home, database: Database, trash: Trash, lease: Lease, below: Sequence[str]) -> None:
        self._home, self._database, self._trash, self._lease = home, database, trash, lease
        self._short = base64.b32encode(os.urandom(5)).decode().lower()
        self._name = f"{lease.id}.{self._short}"
        self._fd = -1
        self._tree: MountTree | None = None
        self._kept = False
        staging = home.directory("staging")
        os.mkdir(self._name, 0o700, dir_fd=staging)
        try:
            os.mkdir(f"{self._name}/{TREE}", dir_fd=staging)
            self._fd = os.open(f"{self._name}/{TREE}", _DIRECTORY, dir_fd=staging)
            os.fchmod(self._fd, 0o755)  # whatever the umask is: it is the image's root
            if below:
                self._tree = self._merged(staging, below)
                os.close(self._fd)
                self._fd = -1
                self._fd = self._tree.open("/", _DIRECTORY)
        except BaseException:
            self.close()
            raise

    def _merged(self, staging: int, below: Sequence[str]) -> MountTree:
        os.mkdir(f"{self._name}/{_WORK}", 0o700, dir_fd=staging)
        place = f"{self._home.path}/staging/{self._name}"
        overlay = OverlayFS(unique(reversed(below)), f"{place}/{TREE}", f"{place}/{_WORK}")
        return overlay.mount()

    @property
    def fd(self) -> int:
        if self._fd < 0:
            raise ClosedHandle("the staged layer is closed")
        return self._fd

    def keep(self, key: str, diff_id: str, applied: Applied, *, driver: str = "overlay") -> bool:
        """Make it the layer of this key, unless there is one by now: then False, and that one is held.

        It is on the device when an image that uses it is; see :mod:`containerkit.storage`.
        """
        if self._fd < 0 or self._kept:
            raise ClosedHandle("the staged layer is closed")
        self._release()
        with self._database.write(durable=False) as rows:
            self._lease.hold_in(rows, "layer", key)
            row = rows.execute("SELECT lease FROM layers WHERE key = ?", (key,)).fetchone()
            if row is not None:
                if row[0] is None or is_alive(self._home, row[0]):
                    return False
                rows.execute("DELETE FROM layers WHERE key = ?", (key,))
            os.rename(
                self._name,
                self._short,
                src_dir_fd=self._home.directory("staging"),
                dst_dir_fd=self._home.directory("layers"),
            )
            self._kept = True
            rows.execute(
                "INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, diff_id, driver, self._short, applied.files, applied.inodes, self._lease.id,
                 time.time()),
            )  # fmt: skip
        return True

    def replace(self, key: str) -> None:
        """Put it in the place of a layer whose tree was lost. Its content must be on the device already."""
        self._release()
        with self._database.write() as rows:
            os.rename(
                self._name,
                self._short,
                src_dir_fd=self._home.directory("staging"),
                dst_dir_fd=self._home.directory("layers"),
            )
            self._kept = True
            os.fsync(self._home.directory("layers"))
            rows.execute("UPDATE layers SET name = ? WHERE key = ?", (self._short, key))

    def close(self) -> None:
        """Delete it unless it was kept. Idempotent."""
        self._release()
        if not self._kept:
            self._kept = True
            self._trash.take(self._home.directory("staging"), self._name)

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.close()  # which unmounts it, before anything is renamed
            with suppress(FileNotFoundError):
                self._trash.take(self._home.directory("staging"), f"{self._name}/{_WORK}")

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def unique(paths: Iterable[str]) -> tuple[str, ...]:
    """Layers from the topmost on, each once: overlayfs refuses a directory that is there twice (ELOOP), and what is
    there again further down is wholly covered by itself."""
    return tuple(dict.fromkeys(paths))


def _is_in(tree: int, path: bytes) -> bool:
    try:
        fd = calls.openat2(tree, path, os.O_PATH | os.O_NOFOLLOW, resolve=_IN_TREE)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        return not (stat.S_ISCHR(found.st_mode) and found.st_rdev == 0)
    finally:
        os.close(fd)
