"""What the store knows of a volume, and where its files are."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .._container_errors import VolumeNotFound
from .._image_errors import StoreError

if TYPE_CHECKING:
    from ..storage.database import Connection
    from ..storage.home import Home
    from ..store import Store

__all__ = [
    "TREE",
    "Row",
    "all_rows",
    "find",
    "insert",
    "make",
    "make_directories",
    "open_directory",
    "open_tree",
    "users",
]

TREE = "d"
"""The tree's name in the directory of its volume. That directory is ours; the tree's own may belong to another id."""

_SELECT = "SELECT name, anonymous, labels, options, copied, created FROM volumes"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Row(NamedTuple):
    """``labels`` and ``options`` are JSON objects; ``copied`` says that the first use is over."""

    name: str
    anonymous: bool
    labels: str
    options: str
    copied: bool
    created: float

    @classmethod
    def new(
        cls,
        name: str,
        *,
        anonymous: bool = False,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Row:
        return cls(name, anonymous, _json(labels or {}), _json(options or {}), False, time.time())


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def find(rows: Connection, name: str) -> Row | None:
    row = rows.execute(f"{_SELECT} WHERE name = ?", (name,)).fetchone()
    return None if row is None else Row(row[0], bool(row[1]), row[2], row[3], bool(row[4]), row[5])


def all_rows(rows: Connection) -> list[Row]:
    found = rows.execute(f"{_SELECT} ORDER BY name").fetchall()
    return [Row(row[0], bool(row[1]), row[2], row[3], bool(row[4]), row[5]) for row in found]


def insert(rows: Connection, row: Row) -> None:
    rows.execute("INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?)", row)


def users(rows: Connection, name: str) -> list[tuple[str, str]]:
    """The containers that are to see the volume, running or not: ids and names."""
    return rows.execute(
        "SELECT DISTINCT containers.id, containers.name FROM volume_uses JOIN containers ON container = id "
        "WHERE volume = ? ORDER BY containers.name",
        (name,),
    ).fetchall()


# ---- on disk ---------------------------------------------------------------------------------------------------------


def make_directories(parent: int, name: str) -> None:
    """The directory of a volume and its empty tree, which is everybody's to read, as docker's is."""
    os.mkdir(name, 0o700, dir_fd=parent)
    os.mkdir(f"{name}/{TREE}", 0o755, dir_fd=parent)
    fd = os.open(f"{name}/{TREE}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fchmod(fd, 0o755)  # whatever the umask is
    finally:
        os.close(fd)


def make(store: Store, rows: Connection, row: Row) -> None:
    """A new volume. Within the transaction: what has its name and no row then is what a killed program has left."""
    volumes = store.home.directory("volumes")
    store.trash.take(volumes, row.name)
    make_directories(volumes, row.name)
    insert(rows, row)


def open_directory(home: Home, name: str) -> int:
    """A descriptor of the volume's directory, which the caller closes."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=home.directory("volumes"))
    except FileNotFoundError:
        raise VolumeNotFound(f"the volume {name!r} was removed from the store {home.path} meanwhile") from None


def open_tree(home: Home, name: str) -> int:
    """A handle (O_PATH) of its tree: an ordinary user may not even read the directory, when it belongs to one of his
    subordinate ids. Of a volume of bounded size it is a mount, which ends with its last handle."""
    directory = open_directory(home, name)
    try:
        if has_image(directory):
            from .images import mount_shared

            return mount_shared(directory).detach()
        return os.open(TREE, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise StoreError(
            f"the volume {name!r} of the store {home.path} has no files ({error.strerror}): remove it"
        ) from None
    finally:
        os.close(directory)


def has_image(directory: int) -> bool:
    """Whether it is a volume of bounded size, whose files are in an image; by its directory."""
    try:
        os.stat("image", dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
