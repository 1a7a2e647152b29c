"""What is in the store, as rows: SQLite in WAL mode, for many threads and processes at once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .._image_errors import StoreError
from .home import Home
from .schema import MIGRATIONS

__all__ = ["Connection", "Database"]

Connection = sqlite3.Connection

_APPLICATION = 0x636B6974  # "ckit", for file(1)
_WAIT = 60.0
"""Seconds that a writer waits for others; writing takes milliseconds."""

_inherited: list[Connection] = []
"""Connections of the program that this one was forked from: never used, and never closed, which would be a use."""


class Database:
    """Connections to ``db.sqlite``: one for each that is in use at a time, kept for the next.

    Raises StoreError: damaged, of a newer containerkit, busy for a minute, or no room on the device.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._path = os.path.join(home.path, "db.sqlite")
        self._idle: list[Connection] = []
        self._owner = os.getpid()
        self._closed = False
        try:
            with home.locked(), self.read() as connection:
                self._prepare(connection)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for single queries, each of which sees one state."""
        with self._explaining():
            connection = self._take()
            try:
                yield connection
            finally:
                self._give_back(connection)

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that nobody else writes during; undone when the body raises.

        One that is not ``durable`` survives this program, but perhaps not the next power cut: right for rows whose
        content is not durable either.
        """
        with self.read() as connection:
            if not durable:
                connection.execute("PRAGMA synchronous = NORMAL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        with suppress(sqlite3.Error):
                            connection.execute("ROLLBACK")
                    raise
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous = FULL")

    def _take(self) -> Connection:
        if self._closed:
            raise StoreError(f"the store {self._home.path} is closed")
        if self._owner != os.getpid():
            _inherited.extend(self._idle)
            self._idle, self._owner = [], os.getpid()
        with suppress(IndexError):
            return self._idle.pop()
        connection = sqlite3.connect(self._path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: Connection) -> None:
        if self._closed or connection.in_transaction:
            connection.close()
        else:
            self._idle.append(connection)

    def _prepare(self, connection: Connection) -> None:
        """WAL mode and the newest tables. Under the store's lock: SQLite does not wait for others here."""
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode = WAL")
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise StoreError(
                f"the store {self._home.path} has a database of version {version}, and this containerkit knows up to "
                f"{len(MIGRATIONS)}: upgrade containerkit"
            )
        if version == len(MIGRATIONS):
            return
        connection.execute("BEGIN IMMEDIATE")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute("COMMIT")  # a connection that comes back in a transaction is closed, which undoes it

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"the database of the store {self._home.path}: {error}{_advice(error)}") from error

    def damage(self) -> list[str]:
        """What SQLite itself finds wrong (PRAGMA integrity_check, foreign_key_check)."""
        with self.read() as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
            found += [f"{row[0]}: refers to no {row[2]}" for row in connection.execute("PRAGMA foreign_key_check")]
        return found

    def close(self) -> None:
        """Close the connections. Idempotent; in a fork of the program they are the parent's."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            if self._owner == os.getpid():
                connection.close()
            else:
                _inherited.append(connection)


def _advice(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "; the file system is full: remove images that are not needed, or make room"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "; it is damaged: move the store away, and pull or load its images again"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"; another program has been writing for {_WAIT:.0f} seconds"
    return ""
