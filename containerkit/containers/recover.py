"""What killed programs have left of containers: finished or removed by the next one that looks. Idempotent."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from .._container_errors import ContainerNotFound
from ..errors import ContainerkitError
from ..images.fsck import Problem
from . import removal
from .container import SELECT, Container, Row
from .possession import is_awaited

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["check", "recover"]

_PARTS = ("rw", "rw/upper", "rw/work", "log")


def recover(store: Store) -> int:
    """Clear away what ended containers have left outside the store, remove those that were to be removed at their end,
    and collect directories that have no row; how many containers that were."""
    with store.database.read() as rows:
        found = [Row(*row) for row in rows.execute(f"{SELECT} WHERE state = 'started'")]
    gone = sum(_recover(Container(store, row), row) for row in found)
    return gone + removal.sweep(store)


def _recover(container: Container, row: Row) -> bool:
    """Whether it was removed. What is damaged, or somebody else is at, is theirs."""
    from .group import settle
    from .life import status_of

    with suppress(ContainerkitError, OSError):
        if status_of(container, row).status not in ("exited", "dead"):
            return False
        settle(container)
        if container.spec.auto_remove and not is_awaited(container):
            removal.remove(container, volumes=True)
            return True
    return False


def check(store: Store, *, repair: bool) -> Iterator[Problem]:
    """Containers whose files are gone, which nobody can start: of ``Store.fsck()``."""
    for container in store.containers.list(all=True):
        try:
            directory = container.directory.fileno()
            missing = [part for part in _PARTS if not _is_there(directory, part)]
        except ContainerNotFound:
            missing = [""]
        if not missing or container.id not in store.containers:  # it may have been removed meanwhile
            continue
        repaired = None
        if repair:
            container.remove(force=True)
            repaired = "removed"
        lost = ", ".join(missing) if missing != [""] else "all of it"
        yield Problem("container", container.known_name, f"files of it are missing: {lost}", repaired)


def _is_there(directory: int, part: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(part, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
