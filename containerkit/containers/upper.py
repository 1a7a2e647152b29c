"""The changes of a container belong to one start at a time: of the container itself, or of a copy to or from it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..errors import Busy

if TYPE_CHECKING:
    from ..kernel.fd import Fd
    from ..overlayfs import OverlayFS

__all__ = ["PATIENCE", "lock_upper"]

PATIENCE = 30.0
"""Seconds until a copy to or from a container that does not run has ended."""


def lock_upper(root: OverlayFS) -> Fd:
    """Its upper layer, for one start alone: waits for copies to and from the container that does not run yet.

    Raises Busy when that takes more than half a minute.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock = root.lock_upper()
            assert lock is not None  # noqa: S101  a container's is not ephemeral
            return lock
        except Busy:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
