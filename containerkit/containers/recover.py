"""What killed programs have left of containers: finished or removed by the next one that looks. Idempotent."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import ContainerkitError
from . import removal
from .container import SELECT, Container, Row

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["recover"]


def recover(store: Store) -> int:
    """Clear away what ended containers have left outside the store, remove those that were to be removed at their end,
    and collect directories that have no row; how many containers that were."""
    with store.database.read() as rows:
        found = [Row(*row) for row in rows.execute(f"{SELECT} WHERE state = 'started'")]
    gone = sum(_recover(Container(store, row), row) for row in found)
    return gone + removal.sweep(store)


def _recover(container: Container, row: Row) -> bool:
    """Whether it was removed. What is damaged, or somebody else is at, is theirs."""
    from .life import settle, status_of

    with suppress(ContainerkitError, OSError):
        if status_of(container, row).status not in ("exited", "dead"):
            return False
        settle(container)
        if container.spec.auto_remove:
            removal.remove(container, volumes=True)
            return True
    return False
