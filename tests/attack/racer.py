"""Exchanges two names of a directory again and again, while something else walks through them."""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2


class Racer:
    """A process of its own, so that no lock of an interpreter keeps the two apart."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.exchanges = 0

    @contextmanager
    def swapping(self, first: Path, second: Path) -> Iterator[None]:
        """While the block runs, ``first`` is now the one, now the other."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = b" ".join(os.fsencode(path).hex().encode() for path in (first, second))
        os.write(self._process.stdin.fileno(), words + b"\n")
        self._process.stdout.readline()
        try:
            yield
        finally:
            os.write(self._process.stdin.fileno(), b"stop\n")
            self.exchanges += int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=5)

    def __enter__(self) -> Racer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def swap(first: bytes, second: bytes) -> int:
    """Until there is something to read; how often. An even number: everything is where it was."""
    rename = ctypes.CDLL(None).renameat2
    poller = select.poll()
    poller.register(0, select.POLLIN)
    count = 0
    while not poller.poll(1 if count else 0):  # a pause: what wakes up is run at once, in the middle of the other
        for _ in range(32):
            count += not rename(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE)
    if count % 2:
        count += not rename(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE)
    return count


def main() -> None:
    for line in iter(sys.stdin.buffer.raw.readline, b""):
        first, second = (bytes.fromhex(word.decode()) for word in line.split())
        os.write(1, b"on\n")
        count = swap(first, second)
        sys.stdin.buffer.raw.readline()
        os.write(1, b"%d\n" % count)


if __name__ == "__main__":
    main()
