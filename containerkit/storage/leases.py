"""Leases: what an operation needs, and has made, before an image names it."""

from __future__ import annotations

import os
import time
from typing import Literal

from ..errors import ClosedHandle
from .database import Connection, Database
from .home import Home
from .locks import Lock, held_by_others, lock

__all__ = ["Kind", "Lease", "is_alive"]

Kind = Literal["blob", "layer", "image"]


class Lease:
    """Keeps content of the store from being collected, for as long as it is open and its program lives.

    It is a row and a locked file: the lock ends with the program, and the row is then dead.
    """

    def __init__(self, home: Home, database: Database) -> None:
        self.id = os.urandom(8).hex()
        self._database = database
        self._lock: Lock | None = lock(home.directory("leases"), self.id)
        try:
            with database.write(durable=False) as rows:
                rows.execute("INSERT INTO leases VALUES (?, ?, ?)", (self.id, os.getpid(), time.time()))
        except BaseException:
            self._lock.close(unlink=True)
            raise

    def hold(self, kind: Kind, key: str) -> None:
        """Keep it, whether it is there already or comes later."""
        with self._database.write(durable=False) as rows:
            self.hold_in(rows, kind, key)

    def hold_in(self, rows: Connection, kind: Kind, key: str) -> None:
        """The same within a transaction."""
        if self._lock is None:
            raise ClosedHandle(f"the lease {self.id} is closed")
        rows.execute("INSERT OR IGNORE INTO lease_items VALUES (?, ?, ?)", (self.id, kind, str(key)))

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        held, self._lock = self._lock, None
        if held is None:
            return
        if not held.is_ours:  # a fork's copy
            held.close()
            return
        try:
            with self._database.write(durable=False) as rows:
                rows.execute("DELETE FROM leases WHERE id = ?", (self.id,))
        finally:
            held.close(unlink=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def is_alive(home: Home, lease: str) -> bool:
    """Whether the program that took it still has it."""
    return held_by_others(home.directory("leases"), lease)
