"""The files that a container's output is kept in: numbered, append-only, the oldest of them removed.

One program writes them, any number read them, and nobody waits for anybody: a reader that is slow misses what has been
rotated away, and holds nothing up. A file is a row of frames, and no frame is in two files::

    u64 time (ns of CLOCK_REALTIME)   u32 length   u8 stream   3 bytes zero   `length` bytes, as they were read

A writer that was killed leaves a last frame that is not whole: it ends its file. Whoever writes on after that begins a
new one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..kernel import calls
from ..kernel.fd import Fd

__all__ = ["FRAME_MAX", "HEADER", "MARK", "STDERR", "STDOUT", "Frame", "LogFiles"]

HEADER = struct.Struct("<QIB3s")
FRAME_MAX = 1 << 18
"""Bytes in one frame, at most: what says more is no frame."""
STDOUT, STDERR, MARK = 1, 2, 3
"""``MARK`` frames are of the writer itself: the program has started, has ended."""

_BLOCK = HEADER.size + FRAME_MAX  # one whole frame at least
_PAGE = 4096  # looked at for headers alone, where longer frames are passed over
_SPAN = 1 << 16
_NONE = b"\0\0\0"


class Frame(NamedTuple):
    """What was read from the program at one time: from ``stream``, at ``time`` ns since 1970."""

    time: int
    stream: int
    data: bytes


class LogFiles:
    """Reads the frames of a directory of log files from one place on, as far as they are there.

    ``directory`` is a descriptor, which stays the caller's. Close it, or use it as a context manager.
    """

    def __init__(self, directory: int) -> None:
        self._directory, self._number, self._offset = directory, -1, 0
        self._file: Fd | None = None

    def seek(self, number: int, offset: int = 0) -> None:
        """Go on from a place that :meth:`backwards` has told, or from the next file when that one is gone."""
        self.close()
        self._number, self._offset = number - 1, 0
        self._file = self._open(number)
        if self._file is not None:
            self._number, self._offset = number, offset

    @property
    def place(self) -> tuple[int, int]:
        """The file and the offset at which it reads on."""
        return self._number, self._offset

    def end(self) -> tuple[int, int]:
        """Where the log ends now: who reads up to there comes to an end however fast somebody writes."""
        number = max(self._numbers(), default=-1)
        file = self._open(number) if number >= 0 else None
        if file is None:
            return number, 0
        with file:
            return number, os.fstat(file.fileno()).st_size

    def take(self) -> list[Frame]:
        """The next frames, some 256 KiB of them. Empty: there are no more by now."""
        while True:
            if self._file is not None and (frames := self._take()):
                return frames
            number = next((one for one in self._numbers() if one > self._number), None)
            if number is None:
                return []
            # Once more: the file was written until the newer one was made, and that may be since we looked.
            if self._file is not None and (frames := self._take()):
                return frames
            self.seek(number)

    def _take(self) -> list[Frame]:
        assert self._file is not None  # noqa: S101
        block = os.pread(self._file.fileno(), _BLOCK, self._offset)
        frames, at = [], 0
        while (head := _header(block, at)) is not None:
            time, length, stream = head
            begin, at = at + HEADER.size, at + HEADER.size + length
            if at > len(block):
                break
            frames.append(Frame(time, stream, block[begin:at]))
            self._offset += HEADER.size + length
        return frames

    def backwards(self) -> Iterator[tuple[int, int, bool]]:
        """Places to begin reading at: (number, offset, whether it is the very first), from the end to the beginning.

        They are 64 KiB apart or one frame. Of each file only the headers are read, and no file before it is its turn.
        """
        numbers = self._numbers()
        for number in reversed(numbers):
            file = self._open(number)
            if file is None:
                return  # and with it all that are older
            with file:
                offsets = _places(file.fileno())
            for offset in reversed(offsets):
                yield number, offset, number == numbers[0] and offset == 0

    def _numbers(self) -> list[int]:
        names = os.listdir(self._directory)
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and name == str(int(name)))

    def _open(self, number: int) -> Fd | None:
        """None when it has been rotated away."""
        flags, resolve = os.O_RDONLY | os.O_CLOEXEC, calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS
        try:
            return Fd(calls.openat2(self._directory, str(number), flags, resolve=resolve))
        except FileNotFoundError:
            return None

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> LogFiles:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _header(block: bytes, at: int) -> tuple[int, int, int] | None:
    """Time, length and stream of the frame that begins there. None: there is no header, or not one of ours."""
    if len(block) - at < HEADER.size:
        return None
    time, length, stream, rest = HEADER.unpack_from(block, at)
    return (time, length, stream) if length <= FRAME_MAX and STDOUT <= stream <= MARK and rest == _NONE else None


def _places(fd: int) -> list[int]:
    """The offsets of a file at which frames begin, of those that lie closer than 64 KiB only the first."""
    places, offset = [0], 0
    while True:
        page, at = os.pread(fd, _PAGE, offset), 0
        while (head := _header(page, at)) is not None:
            if offset + at - places[-1] >= _SPAN:
                places.append(offset + at)
            at += HEADER.size + head[1]
        if at == 0:
            return places
        offset += at
