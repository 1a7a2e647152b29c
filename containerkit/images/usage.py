"""What takes how much room in a store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from ..storage.locks import held_shared
from .digest import Digest
from .image import lock_name

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["DiskUsage", "ImageUsage", "disk_usage"]


class ImageUsage(NamedTuple):
    """One image. ``size`` is of its layers when unpacked, of which ``shared`` bytes are other images' as well."""

    id: Digest
    names: tuple[str, ...]
    size: int
    shared: int
    in_use: bool

    @property
    def unique(self) -> int:
        """Bytes that only this image has."""
        return self.size - self.shared


class DiskUsage(NamedTuple):
    """Bytes: of unpacked layers, each once; of blobs, as they were received; of partial downloads; of what containers
    have written; of volumes. ``reclaimable`` are those of ``images.prune(all=True)`` and ``collect(partial=True)``
    together."""

    images: tuple[ImageUsage, ...]
    layers: int
    blobs: int
    partial: int
    reclaimable: int
    containers: int = 0
    volumes: int = 0


def disk_usage(store: Store) -> DiskUsage:
    """See Store.disk_usage()."""
    from ..storage.sweep import UNUSED_BLOBS, UNUSED_LAYERS

    with store.database.read() as rows:
        sizes = dict(rows.execute("SELECT key, size FROM layers").fetchall())
        users = dict(rows.execute("SELECT layer, count(DISTINCT image) FROM image_layers GROUP BY layer").fetchall())
        blobs = rows.execute("SELECT coalesce(sum(size), 0) FROM blobs").fetchone()[0]
        unused = sum(
            rows.execute(f"SELECT coalesce(sum(size), 0) {which}").fetchone()[0]
            for which in (UNUSED_BLOBS, UNUSED_LAYERS)
        )
        made = {image for (image,) in rows.execute("SELECT DISTINCT image FROM containers")}
    images = []
    for image in store.images.list():
        layers = set(image.layers)
        images.append(
            ImageUsage(
                image.id,
                tuple(image.names),
                sum(sizes.get(key, 0) for key in layers),
                sum(sizes.get(key, 0) for key in layers if users.get(key, 0) > 1),
                image.id in made or held_shared(store.home.directory("images"), lock_name(image.id)),
            )
        )
    partial = _partial(store)
    could = store.images.prune(all=True, dry_run=True).size
    return DiskUsage(tuple(images), sum(sizes.values()), blobs, partial, could + unused + partial)


def _partial(store: Store) -> int:
    directory = store.home.directory("ingest")
    found = 0
    for entry in os.scandir(directory):
        found += entry.stat(follow_symlinks=False).st_size
    return found
