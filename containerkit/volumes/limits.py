"""The most bytes that a volume may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Unsupported

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["limit"]


def limit(store: Store, name: str, size: int) -> None:
    """Let the files of a new, empty volume take at most ``size`` bytes. Raises Unsupported."""
    raise Unsupported(
        f"size={size} of the volume {name!r}: the file system of {store.path} keeps no project quotas (mount ext4 or "
        "xfs with prjquota), and nothing weaker is done instead"
    )
