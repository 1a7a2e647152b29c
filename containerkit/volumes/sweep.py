"""What killed programs have left of volumes."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ..kernel.fd import Fd
from ..storage.locks import try_lock
from .images import NEW_IMAGE
from .row import open_directory
from .trees import NEW

if TYPE_CHECKING:
    from ..storage.database import Connection
    from ..store import Store

__all__ = ["sweep_volumes"]

_HALVES = {NEW, NEW_IMAGE}


def sweep_volumes(store: Store) -> int:
    """Take to the trash what has no row, and half-filled trees that nobody fills any more; how much it was.

    A row without a directory is what a kill in the middle of a removal leaves: then the row goes, too, unless a
    container needs it, which then says what is missing.
    """
    volumes = store.home.directory("volumes")
    with store.database.write(durable=False) as rows:
        known = {name for (name,) in rows.execute("SELECT name FROM volumes")}
        present = set(os.listdir(volumes))
        for name in present - known:
            store.trash.take(volumes, name)
        for name in known - present:
            _forget(rows, name)
    left = len(present - known) + len(known - present)
    return left + sum(_sweep_one(store, name) for name in known & present)


def _forget(rows: Connection, name: str) -> None:
    rows.execute(
        "DELETE FROM volumes WHERE name = ? AND NOT EXISTS (SELECT 1 FROM volume_uses WHERE volume = name)", (name,)
    )


def _sweep_one(store: Store, name: str) -> int:
    with suppress(LookupError), Fd(open_directory(store.home, name)) as directory:
        left = {*_HALVES, "lock"} & set(os.listdir(directory.fileno()))
        if not left:
            return 0
        held = try_lock(directory.fileno(), "lock")
        if held is None:
            return 0
        with held:
            for entry in left & _HALVES:
                store.trash.take(directory.fileno(), entry)
            held.close(unlink=True)
        return len(left & _HALVES)
    return 0
