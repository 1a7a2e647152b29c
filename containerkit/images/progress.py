"""What a pull, push or load tells while it works: small values, few enough to print each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from ..value import Value, frozen
from .digest import Digest

__all__ = ["Phase", "Progress", "Reporter"]

Phase = Literal["waiting", "downloading", "verifying", "unpacking", "uploading", "exists", "done"]
_INTERVAL = 0.1  # seconds between two of one layer and phase; two phases overlap, so there are 20 a second at most


@frozen()
class Progress(Value):
    """How far one layer, or other part of an image, is.

    Attributes:
        digest: of the part, as the manifest calls it.
        phase: ``waiting``, ``downloading``, ``verifying``, ``unpacking``, ``uploading``; at the end ``done``, or
            ``exists`` when there was nothing to do.
        bytes: of this phase so far. Unpacking counts what comes out of the archive.
        total: how many there will be; None when nobody knows.
    """

    digest: Digest
    phase: Phase
    bytes: int = 0
    total: int | None = None


class Reporter:
    """Hands :class:`Progress` to a callback: one call at a time; each new phase, else 20 a second and layer at most.

    What the callback raises is raised again where the work reports, which ends it: a callback can cancel.
    """

    def __init__(self, callback: Callable[[Progress], object] | None) -> None:
        self._callback = callback
        self._lock = threading.Lock()
        self._last: dict[tuple[Digest, Phase], float] = {}
        self.error: BaseException | None = None

    def tell(self, digest: Digest, phase: Phase, done: int = 0, total: int | None = None) -> None:
        """Report, unless there was something of the same phase just now."""
        if self._callback is None:
            return
        now = time.monotonic()
        then = self._last.get((digest, phase))
        if then is not None and now - then < _INTERVAL and done != total:
            return
        with self._lock:
            if self.error is not None:
                return
            self._last[digest, phase] = now
            try:
                self._callback(Progress(digest, phase, done, total))
            except BaseException as error:
                self.error = error
                raise
