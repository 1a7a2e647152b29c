"""Looking for damage in a store, and repairing it.

A crash leaves no damage, only leftovers: dead leases, files without rows, what was being unpacked. They are swept. What
is looked for here is what should not happen: a disk that lost something, a hand that was in the store. Each repair is
one transaction, or one rename and one transaction, so that a repair that is killed can be run again:

* a layer without its tree is unpacked again from its blob; where that fails, the images that need it are removed;
* a blob that is missing or, with ``deep``, has another digest is forgotten: its image still runs, and pulling it again
  fetches the blob;
* an image whose configuration or manifest is not what its digest says is removed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from .._image_errors import InvalidLayer, StoreError
from ..storage.layers import TREE
from ..storage.sweep import Swept
from .config import ImageConfig
from .digest import Digest

if TYPE_CHECKING:
    from ..storage.database import Connection
    from ..store import Store

__all__ = ["Problem", "Report", "fsck"]

_CHUNK = 1 << 20
_LATER = "not repaired: the same error may be gone the next time"
_TREE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Problem(NamedTuple):
    """One damaged thing; ``repair`` says what was done about it, or None."""

    kind: Literal["database", "blob", "layer", "image", "container", "trash"]
    what: str
    damage: str
    repair: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.what}: {self.damage}" + (f"; {self.repair}" if self.repair else "")


class Report(NamedTuple):
    """What fsck has found. ``swept`` are the leftovers that were removed, which are no damage."""

    problems: tuple[Problem, ...]
    swept: Swept

    @property
    def clean(self) -> bool:
        return not self.problems


def fsck(store: Store, *, repair: bool, deep: bool) -> Report:
    """See Store.fsck()."""
    problems = [Problem("database", store.path, text) for text in store.database.damage()]
    swept = store.collect() if repair else Swept()
    for check in (_blobs, _layers, _images):
        problems += list(check(store, repair, deep))
    if repair:
        again = store.collect()
        swept = Swept(*(one + other for one, other in zip(swept, again, strict=True)))
        store.trash.wait()
        problems += [Problem("trash", name, "cannot be deleted") for name in store.trash.empty_now()]
    return Report(tuple(problems), swept)


# ---- blobs -----------------------------------------------------------------------------------------------------------


def _blobs(store: Store, repair: bool, deep: bool) -> Iterator[Problem]:
    with store.database.read() as rows:
        blobs = rows.execute("SELECT digest, size FROM blobs WHERE lease IS NULL").fetchall()
    for digest, size in blobs:
        try:
            damage = _blob_damage(store, digest, size, deep)
        except OSError as error:
            yield Problem("blob", digest, f"cannot be read: {error}", _LATER if repair else None)
            continue
        if damage is None or not _is_there(store, "SELECT 1 FROM blobs WHERE digest = ?", digest):
            continue
        if repair:
            _forget_blob(store, digest)
        yield Problem("blob", digest, damage, "forgotten: pull its image again to have it back" if repair else None)


def _blob_damage(store: Store, digest: str, size: int, deep: bool) -> str | None:
    """What is certain to be wrong. Raises OSError where that cannot be said."""
    try:
        fd = store.blobs.open_file(digest, size)
    except StoreError as error:
        return str(error)
    try:
        if not deep:
            return None
        hasher = hashlib.new(digest.partition(":")[0], usedforsecurity=False)
        while piece := os.read(fd, _CHUNK):
            hasher.update(piece)
    finally:
        os.close(fd)
    found = hasher.hexdigest()
    return None if found == digest.partition(":")[2] else f"its content has the digest {found}"


def _is_there(store: Store, query: str, key: str) -> bool:
    """Whether nobody has removed it meanwhile, who may."""
    with store.database.read() as rows:
        return rows.execute(query, (key,)).fetchone() is not None


def _forget_blob(store: Store, digest: str) -> None:
    with store.database.write() as rows:
        rows.execute("DELETE FROM manifest_blobs WHERE digest = ?", (digest,))
        rows.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
        # While nobody can add it again: its file, which somebody else would have to read to see that it is wrong.
        directory = store.home.directory("blobs")
        store.trash.take(directory, digest.replace(":", "/"))


# ---- layers ----------------------------------------------------------------------------------------------------------


def _layers(store: Store, repair: bool, deep: bool) -> Iterator[Problem]:
    with store.database.read() as rows:
        found = rows.execute("SELECT key, diff_id, name FROM layers WHERE lease IS NULL").fetchall()
    for key, diff_id, name in found:
        try:
            if _has_tree(store, name) or not _is_there(store, "SELECT 1 FROM layers WHERE name = ?", name):
                continue
        except OSError as error:
            yield Problem("layer", key, f"its tree cannot be opened: {error}", _LATER if repair else None)
            continue
        yield Problem("layer", key, "its tree is missing", _repair_layer(store, key, diff_id) if repair else None)


def _has_tree(store: Store, name: str) -> bool:
    try:
        fd = os.open(f"{name}/{TREE}", _TREE, dir_fd=store.home.directory("layers"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    os.close(fd)
    return True


def _repair_layer(store: Store, key: str, diff_id: str) -> str:
    """An error that is not the layer's own, as of a full disk, is no reason to give an image up."""
    try:
        blob = _blob_of(store, diff_id) if key == diff_id else None  # one that depends on others comes with its image
        if blob is not None and _rebuild(store, key, diff_id, blob):
            return "unpacked again from its blob"
        return _remove_users(store, key)
    except (StoreError, OSError) as error:
        return f"{_LATER} ({error})"


def _rebuild(store: Store, key: str, diff_id: str, blob: str) -> bool:
    """False when the blob does not have the layer."""
    with store.lease() as lease, store.layers.stage(lease) as staged:
        fd = store.blobs.open(blob)
        try:
            with store.unpacking() as apply:
                applied = apply(fd, staged.fd, False)
        except InvalidLayer:
            return False
        finally:
            os.close(fd)
        if applied.diff_id != diff_id or applied.dependent is not None:
            return False
        store.home.sync()
        staged.replace(key)
        return True


def _blob_of(store: Store, diff_id: str) -> str | None:
    """The blob of a layer: at the same place in a manifest as the diff_id in its image's configuration."""
    with store.database.read() as rows:
        found = rows.execute(
            "SELECT DISTINCT config, manifests.digest FROM image_layers JOIN images ON id = image_layers.image "
            "JOIN manifests ON manifests.image = id WHERE layer = ?",
            (diff_id,),
        ).fetchall()
        for raw, manifest in found:
            diff_ids = ImageConfig.parse(raw).diff_ids
            row = rows.execute(
                "SELECT digest FROM manifest_blobs WHERE manifest = ? AND position = ?",
                (manifest, diff_ids.index(Digest(diff_id))),
            ).fetchone()
            if row is not None:
                return str(row[0])
    return None


def _remove_users(store: Store, key: str) -> str:
    with store.database.write() as rows:
        if containers := _containers(rows, "SELECT image FROM image_layers WHERE layer = ?", key):
            return f"not removed: the containers {containers} need it; remove them, or load their image again"
        found = rows.execute("SELECT DISTINCT image FROM image_layers WHERE layer = ?", (key,)).fetchall()
        rows.executemany("DELETE FROM images WHERE id = ?", found)
        rows.execute("DELETE FROM layers WHERE key = ?", (key,))
    return f"removed, with {len(found)} images that need it" if found else "removed"


# ---- images ----------------------------------------------------------------------------------------------------------


def _images(store: Store, repair: bool, deep: bool) -> Iterator[Problem]:
    with store.database.read() as rows:
        found = rows.execute("SELECT serial, id, config FROM images").fetchall()
    for serial, image, raw in found:
        damage = _image_damage(store, image, raw)
        if damage is None:
            continue
        yield Problem("image", image, damage, _remove_image(store, serial) if repair else None)


def _remove_image(store: Store, serial: int) -> str:
    with store.database.write() as rows:
        if containers := _containers(rows, "SELECT id FROM images WHERE serial = ?", serial):
            return f"not removed: the containers {containers} were made from it; remove them first"
        rows.execute("DELETE FROM images WHERE serial = ?", (serial,))
    return "removed"


def _containers(rows: Connection, images: str, key: str | int) -> str:
    """The names of those that were made from some images, whose files are all that they have."""
    found = rows.execute(f"SELECT name FROM containers WHERE image IN ({images}) ORDER BY name", (key,))  # noqa: S608
    return ", ".join(name for (name,) in found)


def _image_damage(store: Store, image: str, raw: bytes) -> str | None:
    if Digest.of(raw) != image:
        return "its configuration has another digest"
    with store.database.read() as rows:
        manifests = rows.execute("SELECT digest, raw FROM manifests WHERE image = ?", (image,)).fetchall()
        layers = rows.execute("SELECT count(*) FROM image_layers WHERE image = ?", (image,)).fetchone()[0]
        if not rows.execute("SELECT 1 FROM images WHERE id = ?", (image,)).fetchone():
            return None
    if not manifests:
        return "it has no manifest"
    for digest, content in manifests:
        if Digest.of(content) != digest:
            return f"its manifest {digest} has another digest"
    wanted = len(ImageConfig.parse(raw).diff_ids)
    return None if layers == wanted else f"it has {layers} of its {wanted} layers"
