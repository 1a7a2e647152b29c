"""Unpacking the layers of one image in processes apart: each is a stranger's archive (:mod:`..tree_process`).

A process serves one layer after the other of the same image, and then ends: what a hostile layer could do to it
reaches no other image's. There are as many as layers are unpacked at a time, and none where all are here already.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from ..mounttree import MountTree
from ..tree_process import TreeProcess

if TYPE_CHECKING:
    from ..layers.apply import Applied
    from ..storage.home import Home

__all__ = ["Unpacking"]


class Unpacking:
    """Unpacks layers below a store's ``staging/``, or on a tree that is mounted for it; a context manager.

    Called as ``unpacking(source, target, onto, progress)``, by any number of threads. Raises what
    :meth:`TreeProcess.apply` raises, and SpawnError where no process can be set apart.
    """

    def __init__(self, home: Home) -> None:
        self._staging = f"{home.path}/staging"
        self._guard = threading.Lock()
        self._idle: list[TreeProcess] = []
        self._closed = False

    def __call__(self, source: int, target: int, onto: bool, progress: Callable[[int], None] | None = None) -> Applied:
        if onto and os.stat(self._staging).st_dev != os.fstat(target).st_dev:
            return _apply_on_mount(source, target, progress)
        worker = self._take()
        try:
            return worker.apply(source, target, onto=onto, progress=progress)
        finally:
            self._give_back(worker)

    def _take(self) -> TreeProcess:
        with self._guard:
            if self._idle:
                return self._idle.pop()
        return TreeProcess([self._staging])

    def _give_back(self, worker: TreeProcess) -> None:
        with self._guard:
            if not worker.closed and not self._closed:
                self._idle.append(worker)
                return
        worker.close()

    def close(self) -> None:
        """End the processes. Idempotent."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _apply_on_mount(source: int, target: int, progress: Callable[[int], None] | None) -> Applied:
    """Onto a mounted tree, which is attached nowhere: it moves into the process, and goes with it."""
    with MountTree(os.dup(target)) as mount, TreeProcess([mount]) as worker:
        return worker.apply(source, target, onto=True, progress=progress)
