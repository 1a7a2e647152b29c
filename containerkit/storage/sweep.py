"""Garbage collection: rows that nothing needs, and files that have no row.

Rows go first, in one transaction: of leases whose program has ended, and of blobs and layers that neither an image nor
a live lease needs. Then, in a second transaction, which keeps everybody from adding rows meanwhile, what has no row is
renamed into the trash. A kill in between leaves files without rows, which the next sweep finds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from .database import Connection, Database
from .home import Home
from .leases import is_alive
from .locks import try_lock
from .trash import Trash

__all__ = ["Swept", "sweep"]

PARTIAL_DAYS = 7
"""How long a partial download is kept to go on from."""

_NOT_NEEDED = """
    FROM {table} AS it WHERE NOT EXISTS (SELECT 1 FROM {users} WHERE {column} = it.{key})
    AND NOT EXISTS (SELECT 1 FROM lease_items WHERE kind = '{kind}' AND lease_items.key = it.{key})
"""
UNUSED_BLOBS = _NOT_NEEDED.format(
    table="blobs", users="manifest_blobs", column="manifest_blobs.digest", key="digest", kind="blob"
)
UNUSED_LAYERS = _NOT_NEEDED.format(
    table="layers", users="image_layers", column="image_layers.layer", key="key", kind="layer"
)


class Swept(NamedTuple):
    """What a collection has removed: numbers, and the bytes of blobs and layers."""

    leases: int = 0
    blobs: int = 0
    layers: int = 0
    leftovers: int = 0
    size: int = 0


def sweep(home: Home, database: Database, trash: Trash, *, partial: bool = False) -> Swept:
    """Collect once; ``partial`` takes partial downloads too, however new. The trash is not emptied here."""
    with database.write() as rows:
        swept = _rows(home, rows)
    with database.write(durable=False) as rows:
        return swept._replace(leftovers=_leftovers(home, rows, trash, partial) - swept.blobs - swept.layers)


def _rows(home: Home, rows: Connection) -> Swept:
    dead = [lease for (lease,) in rows.execute("SELECT id FROM leases") if not is_alive(home, lease)]
    rows.executemany("DELETE FROM leases WHERE id = ?", [(lease,) for lease in dead])
    blobs, blob_bytes = rows.execute(f"SELECT count(*), coalesce(sum(size), 0) {UNUSED_BLOBS}").fetchone()
    layers, layer_bytes = rows.execute(f"SELECT count(*), coalesce(sum(size), 0) {UNUSED_LAYERS}").fetchone()
    if blobs:
        rows.execute(f"DELETE FROM blobs WHERE digest IN (SELECT it.digest {UNUSED_BLOBS})")  # noqa: S608
    if layers:
        rows.execute(f"DELETE FROM layers WHERE key IN (SELECT it.key {UNUSED_LAYERS})")  # noqa: S608
    return Swept(len(dead), blobs, layers, 0, blob_bytes + layer_bytes)


def _leftovers(home: Home, rows: Connection, trash: Trash, partial: bool) -> int:
    known = {name for (name,) in rows.execute("SELECT name FROM layers")}
    found = _take_all(trash, home.directory("layers"), lambda name: name not in known)
    known = {digest for (digest,) in rows.execute("SELECT digest FROM blobs")}
    for algorithm in ("sha256", "sha512"):
        directory = os.open(algorithm, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=home.directory("blobs"))
        try:
            for name in os.listdir(directory):
                if f"{algorithm}:{name}" not in known:
                    trash.take(directory, name)
                    found += 1
        finally:
            os.close(directory)
    live = {lease for (lease,) in rows.execute("SELECT id FROM leases")}
    found += _take_all(
        trash,
        home.directory("staging"),
        lambda name: not name.startswith("lock-") and name.partition(".")[0] not in live,
    )
    images = {image.replace(":", "-") for (image,) in rows.execute("SELECT id FROM images")}
    _unlock(home.directory("staging"), lambda name: name.startswith("lock-"))
    _unlock(home.directory("images"), lambda name: name not in images)
    _unlock(home.directory("leases"), lambda name: name not in live)
    found += _unlock(home.directory("ingest"), lambda name: partial or _is_old(home.directory("ingest"), name))
    return found


def _take_all(trash: Trash, directory: int, is_left: Callable[[str], bool]) -> int:
    names = [name for name in os.listdir(directory) if is_left(name)]
    for name in names:
        trash.take(directory, name)
    return len(names)


def _unlock(directory: int, is_left: Callable[[str], bool]) -> int:
    """Delete locks, and locked files, that nobody holds."""
    count = 0
    for name in os.listdir(directory):
        if is_left(name):
            held = try_lock(directory, name)
            if held is not None:
                held.close(unlink=True)
                count += 1
    return count


def _is_old(directory: int, name: str) -> bool:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime < time.time() - PARTIAL_DAYS * 86400
    except FileNotFoundError:
        return False
