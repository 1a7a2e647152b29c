"""The least that a transfer needs of a store: blobs and layers as files and directories, without a database.

For tests of transfers alone, by root; the store's own tests are its own.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from containerkit.errors import ContentMismatch
from containerkit.images.digest import Digest
from containerkit.layers.apply import Applied, apply
from containerkit.mounttree import MountTree
from containerkit.overlayfs import OverlayFS


class PlainIngest:
    present = False

    def __init__(self, path: Path, digest: Digest, size: int | None) -> None:
        self.path, self.digest, self.size = path, digest, size
        self.part = path.with_name(path.name + ".part")
        self.fd = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o600)
        self.offset = os.lseek(self.fd, 0, os.SEEK_END)

    def fileno(self) -> int:
        return self.fd

    def write(self, data: bytes) -> None:
        os.write(self.fd, data)

    def commit(self) -> None:
        found = Digest.of(self.part.read_bytes())
        if found != self.digest or self.part.stat().st_size != self.size:
            raise ContentMismatch(f"{found} instead of {self.digest}")
        self.part.rename(self.path)
        os.close(self.fd)

    def abort(self, keep: bool) -> None:
        os.close(self.fd)
        if not keep:
            self.part.unlink()


class PlainStaged:
    def __init__(self, store: PlainStore, path: Path, below: Sequence[Digest] | None) -> None:
        self.store, self.path = store, path
        (path / "upper").mkdir(parents=True)
        (path / "work").mkdir()
        self.tree: MountTree | None = None
        if below:
            lower = [store.path(key) for key in reversed(below)]
            self.tree = OverlayFS(lower, upper=path / "upper", work=path / "work").mount()
            self.fd = self.tree.open("/", os.O_RDONLY | os.O_DIRECTORY)
        else:
            self.fd = os.open(path / "upper", os.O_RDONLY | os.O_DIRECTORY)

    def keep(self, key: Digest, diff_id: Digest, applied: Applied) -> None:
        assert applied.diff_id == diff_id
        self.store.path(key).parent.mkdir(exist_ok=True)
        (self.path / "upper").rename(self.store.path(key))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            if self.tree is not None:
                self.tree.close()
            shutil.rmtree(self.path)


class PlainStore:
    """Blobs, layers and the unpacking of both in one."""

    stacks = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0
        self.lock = threading.Lock()
        for name in ("blobs", "layers", "staging"):
            (directory / name).mkdir(parents=True, exist_ok=True)

    def blob(self, digest: Digest) -> Path:
        return self.directory / "blobs" / digest.hex

    def path(self, key: Digest) -> Path:
        return self.directory / "layers" / key.hex

    def left(self) -> list[str]:
        """What only something that is under way may have."""
        return [
            *os.listdir(self.directory / "staging"),
            *(name for name in os.listdir(self.directory / "blobs") if name.endswith(".part")),
        ]

    # blobs
    def open(self, digest: Digest) -> int:
        return os.open(self.blob(digest), os.O_RDONLY)

    def ingest(self, digest: Digest, size: int | None, lease: Any) -> PlainIngest:
        return PlainIngest(self.blob(digest), digest, size)

    # layers
    def stage(self, lease: Any, *, below: Sequence[Digest] | None = None) -> PlainStaged:
        with self.lock:
            self.count += 1
            path = self.directory / "staging" / str(self.count)
        return PlainStaged(self, path, below)

    def exist(self, paths: Sequence[bytes], below: Sequence[Digest]) -> bool:
        return all(any(os.path.lexists(os.fsencode(self.path(key)) + b"/" + path) for key in below) for path in paths)

    def apply(self, source: int, target: int, onto: bool, progress: Callable[[int], None]) -> Applied:
        with open(source, "rb", 0, closefd=False) as stream:
            return apply(stream, target, onto=onto, progress=progress)


class PlainBlobs:
    """``has`` means another thing for blobs and for layers."""

    def __init__(self, store: PlainStore) -> None:
        self.open, self.ingest = store.open, store.ingest
        self._store = store

    def has(self, digest: Digest, lease: Any) -> bool:
        return self._store.blob(digest).exists()


class PlainLayers:
    def __init__(self, store: PlainStore) -> None:
        self.stage, self.exist, self.stacks = store.stage, store.exist, store.stacks
        self._store = store

    def has(self, key: Digest, lease: Any) -> bool:
        return self._store.path(key).exists()

    def unpacking(self, diff_id: Digest) -> AbstractContextManager[None]:
        return nullcontext()
