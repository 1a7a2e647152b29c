"""What killed programs have left of containers: finished or removed by the next one that looks. Idempotent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import removal

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["recover"]


def recover(store: Store) -> int:
    """Complete removals that were begun, and collect directories of containers that have no row; how many."""
    return removal.sweep(store)
