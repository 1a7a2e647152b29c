"""Removing images: never one that something runs from, and nothing that another image needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from .._image_errors import ImageNotFound, InUse
from ..errors import InvalidValue
from ..storage.events import record
from ..storage.locks import Lock, try_lock
from ..storage.sweep import UNUSED_BLOBS, UNUSED_LAYERS
from .digest import Digest
from .image import Image, lock_name
from .reference import Reference

if TYPE_CHECKING:
    from ..storage.database import Connection
    from ..store import Store

__all__ = ["Removed", "prune", "remove", "tell"]

_AT_ONCE = 100  # images in one transaction: each takes a descriptor


class Removed(NamedTuple):
    """What was removed, or would be. ``size`` are the bytes of layers and blobs that nothing needs any more."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[Digest, ...] = ()
    size: int = 0


def tell(store: Store, action: str, image: str, name: str) -> None:
    """As an event of the store (``Store.events()``)."""
    record(store.home, "image", action, image, {"name": name} if name else {})


class _Undo(Exception):
    """Ends a transaction that was only to be looked at."""


def remove(store: Store, image: str | Reference | Image, *, force: bool) -> Removed:
    """See Images.remove()."""
    found = store.images.get(image)
    store.home.spend_reserve()
    with ExitStack() as locks, store.database.write() as rows:
        names = _names(rows, found.id)
        name = _name_of(image, names)
        if name is not None and len(names) > 1:
            rows.execute("DELETE FROM names WHERE name = ?", (name,))
            tell(store, "untag", found.id, name)
            return Removed((name,))
        _check_repositories(found.id, names, force or name is not None)
        before = _unused(rows)
        if not rows.execute("SELECT 1 FROM images WHERE id = ?", (found.id,)).fetchone():
            raise ImageNotFound(f"the image {found.id.short} was removed from the store meanwhile")
        _check_containers(rows, found.id)
        if not _delete(store, rows, locks, found.id):
            raise InUse(f"the image {found.id.short} is in use: end what runs from it, and remove it then")
        removed = Removed(tuple(names), (found.id,), _unused(rows) - before)
    for one in names:
        tell(store, "untag", found.id, one)
    tell(store, "delete", found.id, "")
    store.collect()
    return removed


def prune(store: Store, candidates: Sequence[Image], *, unnamed: bool, dry_run: bool) -> Removed:
    """See Images.prune(). What was named, held or removed since it was listed stays, or is gone already."""
    store.home.spend_reserve()
    parts = []
    at_once = len(candidates) or 1 if dry_run else _AT_ONCE
    for start in range(0, len(candidates), at_once):
        # Locks are let go of when the rows are gone for good: whoever waits for one looks at the rows then.
        with ExitStack() as locks, suppress(_Undo), store.database.write() as rows:
            parts.append(_prune(store, rows, locks, candidates[start : start + at_once], unnamed, dry_run))
            if dry_run:
                raise _Undo
    if not dry_run:
        for image in (image for part in parts for image in part.deleted):
            tell(store, "delete", image, "")
        store.collect()
    return Removed(
        tuple(name for part in parts for name in part.untagged),
        tuple(image for part in parts for image in part.deleted),
        sum(part.size for part in parts),
    )


def _prune(
    store: Store, rows: Connection, locks: ExitStack, images: Sequence[Image], unnamed: bool, dry_run: bool
) -> Removed:
    before = _unused(rows)
    untagged: list[str] = []
    deleted: list[Digest] = []
    for image in images:
        names = _names(rows, image.id)
        if unnamed and names:
            continue
        with ExitStack() as own:
            if _delete(store, rows, own if dry_run else locks, image.id):
                untagged += names
                deleted.append(image.id)
    return Removed(tuple(untagged), tuple(deleted), _unused(rows) - before)


def _delete(store: Store, rows: Connection, locks: ExitStack, image: Digest) -> bool:
    """Delete the rows of an image that nobody holds, and that no container was made from.

    Its lock is kept until ``locks`` are closed, after the commit.
    """
    if _containers(rows, image):
        return False
    held = try_lock(store.home.directory("images"), lock_name(image))
    if held is None:
        return False
    locks.callback(_unlock, held)
    return rows.execute("DELETE FROM images WHERE id = ?", (image,)).rowcount > 0


def _containers(rows: Connection, image: Digest) -> list[str]:
    found = rows.execute("SELECT name, id FROM containers WHERE image = ? ORDER BY created", (image,))
    return [f"{name} ({container[:12]})" for name, container in found]


def _check_containers(rows: Connection, image: Digest) -> None:
    """Whether they run or not: their files are those of the image, and what they have changed."""
    if users := _containers(rows, image):
        shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        raise InUse(f"the image {image.short} is what the containers {shown} are made from: remove them first")


def _unlock(held: Lock) -> None:
    held.close(unlink=True)


def _unused(rows: Connection) -> int:
    """Bytes of blobs and layers that neither an image nor a lease needs."""
    return sum(
        rows.execute(f"SELECT coalesce(sum(size), 0) {which}").fetchone()[0] for which in (UNUSED_BLOBS, UNUSED_LAYERS)
    )


def _names(rows: Connection, image: Digest) -> list[str]:
    found = rows.execute(
        "SELECT name FROM names JOIN manifests ON manifest = digest WHERE image = ? ORDER BY name", (image,)
    )
    return [name for (name,) in found]


def _name_of(image: str | Reference | Image, names: Sequence[str]) -> str | None:
    """The name that it was asked for by, or None for an id."""
    if isinstance(image, (Image, Digest)):
        return None
    try:
        reference = Reference.parse(image)
    except InvalidValue:
        return None
    text = f"{reference.repository}@{reference.digest}" if reference.digest is not None else str(reference)
    return text if text in names else None


def _check_repositories(image: Digest, names: Sequence[str], forced: bool) -> None:
    repositories = {_repository(name) for name in names}
    if len(repositories) > 1 and not forced:
        raise InUse(
            f"the image {image.short} has names in {len(repositories)} repositories ({', '.join(names)}): remove it by "
            "each name, or use force=True"
        )


def _repository(name: str) -> str:
    return Reference.parse(name).repository
