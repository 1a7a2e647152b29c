"""Removing containers: never one that runs unless it is killed first, and nothing of it stays.

The lock in the directory of a container says whether it runs, and whoever starts it takes that lock first. Here it is
taken, the row is deleted, and the directory goes to the trash before the lock is let go. A kill before the row is
deleted has removed nothing; one after it leaves a directory without a row, which the next sweep finds, and what a start
has made outside of the store (a control group), which the sweep of that finds.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from .._container_errors import ContainerNotFound, WrongState
from ..storage.events import record
from ..storage.locks import Lock, try_lock
from . import life
from .events import emit
from .group import clean
from .possession import possess
from .state import LOCK

if TYPE_CHECKING:
    from ..storage.database import Connection
    from ..store import Store
    from .container import Container, Row

__all__ = ["remove", "sweep"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(container: Container, *, force: bool = False, volumes: bool = False) -> None:
    """See Container.remove()."""
    store = container._store
    store.home.spend_reserve()
    row = container.row()
    try:
        held = _stopped(container, force)
    except ContainerNotFound:  # its row is there: somebody, or something, has taken its directory
        held = None
    try:
        _clean(container, row)
        _delete(store, container, volumes)
    finally:
        if held is not None:
            held.close()
    container.close()
    emit(container, "destroy")


def _stopped(container: Container, force: bool) -> Lock:
    """Its lock, which whoever starts it would need. Raises WrongState when it runs."""
    while (held := possess(container)) is None:
        if not force:
            raise WrongState(
                f"the container {container.known_name} runs: stop it first, or use remove(force=True), which kills it"
            )
        life.stop(container, timeout=0, signal="KILL")  # and not kill(): it is not to start again
    return held


def _clean(container: Container, row: Row) -> None:
    """What the latest start has made outside of the store; an end in good order has left nothing of it."""
    if row.run is None:
        return
    clean(container, row)


def _delete(store: Store, container: Container, volumes: bool) -> None:
    with store.database.write(durable=False) as rows:
        used = _only_users(rows, container.id) if volumes else []
        if not rows.execute("DELETE FROM containers WHERE id = ?", (container.id,)).rowcount:
            raise container.gone()
        rows.executemany("DELETE FROM volumes WHERE name = ?", [(name,) for name in used])
    small = _has_written_nothing(container)
    taken = store.trash.take(store.home.directory("containers"), container.id)
    for name in used:
        store.trash.take(store.home.directory("volumes"), name)
        record(store.home, "volume", "destroy", name, {"name": name})
    if small and not used:
        store.trash.delete(taken)
    else:
        store.trash.empty()


def _has_written_nothing(container: Container) -> bool:
    with suppress(OSError):
        return not os.listdir(f"{container.home.path}/containers/{container.id}/rw/upper")
    return False


def _only_users(rows: Connection, container: str) -> list[str]:
    """The anonymous volumes that no other container uses."""
    found = rows.execute(
        "SELECT DISTINCT name FROM volumes JOIN volume_uses ON volume = name WHERE anonymous AND container = ? "
        "AND NOT EXISTS (SELECT 1 FROM volume_uses AS other WHERE other.volume = name AND other.container != ?)",
        (container, container),
    )
    return [name for (name,) in found]


# ---- what a kill has left --------------------------------------------------------------------------------------------


def sweep(store: Store) -> int:
    """Take directories without a row to the trash; how many there were. In one transaction: nobody adds rows."""
    containers = store.home.directory("containers")
    with store.database.write(durable=False) as rows:
        known = {name for (name,) in rows.execute("SELECT id FROM containers")}
        left = [name for name in os.listdir(containers) if name not in known]
        return sum(_take(store, containers, name) for name in left)


def _take(store: Store, containers: int, name: str) -> bool:
    """Not while its program still runs: whoever has removed the row was to end it, and may be about to."""
    with suppress(OSError):
        directory = os.open(name, _DIRECTORY, dir_fd=containers)
        try:
            held = try_lock(directory, LOCK)
        finally:
            os.close(directory)
        if held is None:
            return False
        held.close()
    store.trash.take(containers, name)
    return True
