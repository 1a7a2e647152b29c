"""An image of a store, and the hold on it that a start has."""

from __future__ import annotations

import time
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .._image_errors import ImageNotFound
from ..overlayfs import OverlayFS
from ..storage.layers import unique
from ..storage.locks import Lock, lock
from .config import History, ImageConfig
from .digest import Digest
from .manifest import Manifest, parse
from .reference import Reference

if TYPE_CHECKING:
    from ..store import Store
    from .removal import Removed

__all__ = ["Held", "Image", "lock_name"]


# Values of bytes, which never change. A deep image's configuration takes a millisecond, more than all else of a start.
_parse = lru_cache(maxsize=16)(parse)
_parse_config = lru_cache(maxsize=16)(ImageConfig.parse)


class Row(NamedTuple):
    """What finds an image again."""

    serial: int
    id: str
    manifest: str
    created: float


class Image:
    """An image in a store: what it says of itself, what it is called, and where its layers are.

    It stays valid while the store is open and the image is in it; ``names`` and ``layers`` are asked each time. To use
    its files, :meth:`hold` it: that alone keeps others from removing it meanwhile.

    Attributes:
        id: the digest of its configuration, as docker counts.
        created: seconds since 1970 by its own word, 0 when it does not say.
    """

    def __init__(self, store: Store, row: Row) -> None:
        self._store, self._row = store, row
        self.id = Digest(row.id)
        self.created = row.created

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest that it came with; of several, that of the name it was asked for by."""
        with self._store.database.read() as rows:
            row = rows.execute(
                "SELECT raw, media_type FROM manifests WHERE digest = ?", (self._row.manifest,)
            ).fetchone()
        if row is None:
            raise self._gone()
        found = _parse(row[0], row[1])
        assert isinstance(found, Manifest)  # noqa: S101  add() takes no other
        return found

    @cached_property
    def config(self) -> ImageConfig:
        with self._store.database.read() as rows:
            row = rows.execute("SELECT config FROM images WHERE serial = ?", (self._row.serial,)).fetchone()
        if row is None:
            raise self._gone()
        return _parse_config(row[0])

    @property
    def names(self) -> list[str]:
        """``repository:tag``, and ``repository@digest`` where that was asked for; complete, sorted."""
        with self._store.database.read() as rows:
            found = rows.execute(
                "SELECT name FROM names JOIN manifests ON manifest = digest WHERE image = ? ORDER BY name", (self.id,)
            )
            return [name for (name,) in found]

    @property
    def digests(self) -> list[str]:
        """How registries know it, as ``repository@digest``; of its manifest, or of the index that led to it."""
        with self._store.database.read() as rows:
            found = rows.execute(
                "SELECT repository, repository_digests.digest FROM repository_digests "
                "JOIN manifests ON manifest = manifests.digest WHERE image = ? ORDER BY 1, 2",
                (self.id,),
            )
            return [f"{repository}@{digest}" for repository, digest in found]

    @property
    def layers(self) -> tuple[str, ...]:
        """The keys of its layers in the store, the lowest first."""
        with self._store.database.read() as rows:
            found = rows.execute("SELECT layer FROM image_layers WHERE image = ? ORDER BY position", (self.id,))
            return tuple(key for (key,) in found)

    @property
    def size(self) -> int:
        """Bytes of its files when unpacked; layers that it shares with others are counted in full."""
        with self._store.database.read() as rows:
            row = rows.execute(
                "SELECT coalesce(sum(size), 0) FROM layers "
                "WHERE key IN (SELECT layer FROM image_layers WHERE image = ?)",
                (self.id,),
            ).fetchone()
        return int(row[0])

    @property
    def history(self) -> tuple[History, ...]:
        """The steps that made it, the oldest first."""
        return self.config.history

    def inspect(self) -> dict[str, Any]:
        """All of it as ``docker image inspect`` says it."""
        from .inspect import inspect

        return inspect(self)

    def tag(self, reference: str | Reference) -> None:
        """Give it another name, which it may take from another image."""
        self._store.images.tag(self, reference)

    def remove(self, *, force: bool = False) -> Removed:
        """Remove it with all its names. Raises InUse while something holds it, or, without ``force``, when it has names
        in several repositories."""
        return self._store.images.remove(self.id, force=force)

    def hold(self) -> Held:
        """Keep it in the store while something runs from it. Raises ImageNotFound when it was removed meanwhile."""
        held = lock(self._store.home.directory("images"), lock_name(self.id), shared=True)
        try:
            return Held(self._root(), held)
        except BaseException:
            held.close()
            raise

    def _root(self) -> OverlayFS:
        """The trees of its layers, the topmost first; asked for after the lock was taken."""
        with self._store.database.read() as rows:
            found = rows.execute(
                "SELECT layers.name FROM images LEFT JOIN image_layers ON image = id "
                "LEFT JOIN layers ON key = layer WHERE serial = ? ORDER BY position DESC",
                (self._row.serial,),
            ).fetchall()
        if not found:
            raise self._gone()
        if found == [(None,)]:  # no layers at all: overlayfs needs one
            return OverlayFS(f"{self._store.path}/empty")
        layers = self._store.layers
        return OverlayFS(unique(layers.place(name) for (name,) in found), within=layers.directory)

    def _gone(self) -> ImageNotFound:
        return ImageNotFound(f"the image {self.id.short} was removed from the store {self._store.path}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (self.id, self._store.path) == (other.id, other._store.path)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Image {self.id.short}, created {time.strftime('%Y-%m-%d', time.gmtime(self.created))}>"


class Held:
    """An image in use: ``root`` is its files, which nobody removes until :meth:`close`, or the end of the program."""

    def __init__(self, root: OverlayFS, held: Lock) -> None:
        self.root = root
        self._lock = held

    def close(self) -> None:
        """Idempotent."""
        self._lock.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def lock_name(image: str) -> str:
    """The file in ``images/`` that is locked, shared, by whoever uses the image."""
    return image.replace(":", "-")
