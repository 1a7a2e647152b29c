"""The first use of a volume: what the image has at the mount point goes into it, once, as docker does."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..kernel.fd import Fd
from ..layers.merged import copy_merged, resolve
from . import trees
from .row import find, open_directory

if TYPE_CHECKING:
    from ..overlayfs import OverlayFS
    from ..store import Store
    from .volume_mounts import VolumeMount

__all__ = ["first_use"]


def first_use(store: Store, mount: VolumeMount, root: OverlayFS) -> None:
    """Before a container sees the volume: if nobody has used it, and it is empty, fill it from the layers of ``root``.

    Content, owner and mode of the directory at the destination, with links resolved within the image; nothing when
    there is none. Of several containers that start at once, one does so, and the others wait. With ``nocopy`` or
    ``subpath`` the first use is over without. A kill leaves the volume empty, and the next start does it.
    """
    with store.database.read() as rows:
        row = find(rows, mount.volume)
    if row is None or row.copied:
        return
    if mount.nocopy or mount.subpath or not _has_room_for(store, mount.volume):
        trees.end_first_use(store, mount.volume)
        return
    with ExitStack() as stack:
        lowers = [stack.enter_context(Fd(_open(layer))).fileno() for layer in root.lower]
        path = os.fsdecode(mount.destination)
        if _shows_nothing(lowers, path):
            trees.end_first_use(store, mount.volume)
        else:
            _fill(store, mount.volume, lowers, path)


def _open(layer: object) -> int:
    return os.open(os.fsdecode(layer), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # type: ignore[arg-type]


def _has_room_for(store: Store, name: str) -> bool:
    with Fd(open_directory(store.home, name)) as directory:
        return trees.is_empty(directory.fileno())


def _shows_nothing(lowers: Sequence[int], path: str) -> bool:
    """Then there is nothing to copy, and no process to start for it. What this user may not read may be something."""
    try:
        found = resolve(lowers, path)
    except PermissionError:
        return False
    if found is not None:
        found.close()
    return found is None


def _fill(store: Store, name: str, lowers: Sequence[int], path: str) -> None:
    try:
        with trees.filling(store, name) as new:
            if new is None:
                return
            if os.geteuid() == 0:
                copy_merged(lowers, path, new)
                return
            with trees.process(f"{store.path}/layers", f"{store.path}/empty", f"{store.path}/volumes") as worker:
                worker.copy_merged(lowers, path, new)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # else somebody has written into it meanwhile: it stays his
            raise
        trees.end_first_use(store, name)
