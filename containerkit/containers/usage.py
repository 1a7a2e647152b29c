"""How much room containers and volumes take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ContainerkitError

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["written"]


def written(store: Store) -> tuple[int, int]:
    """Bytes of what all containers have written, and of all volumes; of those that are gone meanwhile none."""
    containers = volumes = 0
    for container in store.containers.list(all=True):
        try:
            containers += container.size().rw
        except (ContainerkitError, OSError):
            continue
    for volume in store.volumes.list():
        try:
            volumes += volume.usage().size
        except (ContainerkitError, OSError):
            continue
    return containers, volumes
