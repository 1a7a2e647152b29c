"""Writing tar archives of which equal content always has equal bytes.

ustar headers, and PAX records for what does not fit (POSIX.1-2017 pax). Names of users and groups are left out, because
they are the host's; times are whole seconds, as every other tool writes them into layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from ..errors import InvalidLayer
from .entry import Entry, Kind

__all__ = ["TarWriter", "Writable"]

_BLOCK = 512
_OCTAL_7, _OCTAL_11 = 8**7, 8**11
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_SUFFIXED = (Kind.DIRECTORY,)


class Writable(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> object: ...


class TarWriter:
    """Writes entries to a stream, one after the other; ``finish()`` ends the archive."""

    def __init__(self, out: Writable) -> None:
        self._out = out
        self.entries = 0
        self.content = 0
        """Bytes of the files so far."""

    def add(self, entry: Entry, fd: int = -1) -> None:
        """One entry; the content of a file is read from ``fd``, exactly ``entry.size`` bytes of it.

        A file that became shorter meanwhile is filled up with zeros: its header is written already (tar(1) does so,
        too). Holes are not read.
        """
        self._out.write(_header(entry))
        self.entries += 1
        if entry.kind is Kind.FILE and entry.size:
            self._content(fd, entry.size)
            self.content += entry.size
            self._zeros(-entry.size % _BLOCK)

    def finish(self) -> None:
        """The two blocks of zeros that end an archive."""
        self._out.write(bytes(2 * _BLOCK))

    def _content(self, fd: int, size: int) -> None:
        at = 0
        for begin, end in _data(fd, size):
            self._zeros(begin - at)
            at = self._copy(fd, begin, end)
            if at < end:
                break
        self._zeros(size - at)

    def _copy(self, fd: int, begin: int, end: int) -> int:
        while begin < end and (piece := os.pread(fd, min(_PIECE, end - begin), begin)):
            self._out.write(piece)
            begin += len(piece)
        return begin

    def _zeros(self, n: int) -> None:
        while n > 0:
            self._out.write(_ZEROS if n >= _PIECE else bytes(n))
            n -= _PIECE


def _data(fd: int, size: int) -> Iterable[tuple[int, int]]:
    """The parts of a file that are no holes (lseek(2), SEEK_DATA)."""
    if size < _PIECE:
        return ((0, size),)
    return _segments(fd, size)


def _segments(fd: int, size: int) -> Iterable[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data behind; or a file system that does not tell
            return
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        if begin < size:
            yield begin, at


def _header(entry: Entry) -> bytes:
    name = entry.name or b"."
    if entry.kind in _SUFFIXED:
        name += b"/"
    link = entry.link
    size = entry.size if entry.kind is Kind.FILE else 0
    seconds = entry.mtime_ns // 1_000_000_000
    records: list[tuple[bytes, bytes]] = []
    prefix, short = _split(name)
    if short is None:
        records.append((b"path", name))
        prefix, short = b"", name[:100]
    if len(link) > 100 or not link.isascii():
        records.append((b"linkpath", link))
    for key, number, most in ((b"size", size, _OCTAL_11), (b"uid", entry.uid, _OCTAL_7), (b"gid", entry.gid, _OCTAL_7)):
        if number >= most:
            records.append((key, b"%d" % number))
    if not 0 <= seconds < _OCTAL_11:
        records.append((b"mtime", b"%d" % seconds))
        seconds = 0
    for key, value in sorted(entry.xattrs.items()):
        if value:  # an empty one cannot be told from one that is taken back
            records.append((b"SCHILY.xattr." + key, value))
    head = b""
    if records:
        text = b"".join(_record(key, value) for key, value in records)
        fields = (b"PaxHeaders", 0o644, 0, 0, len(text), 0, b"x", b"", 0, 0, b"")
        head = _block(*fields) + text + bytes(-len(text) % _BLOCK)
    major, minor = entry.device
    return head + _block(
        short,
        entry.mode,
        entry.uid if entry.uid < _OCTAL_7 else 0,
        entry.gid if entry.gid < _OCTAL_7 else 0,
        size if size < _OCTAL_11 else 0,
        seconds,
        entry.kind.value,
        link[:100],
        major,
        minor,
        prefix,
    )


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """A name as ustar's prefix and name; None when it does not fit, or is not ASCII and so needs a record."""
    if not name.isascii():
        return b"", None
    if len(name) <= 100:
        return b"", name
    at = name.find(b"/", len(name) - 101)
    if at <= 0 or at > 155 or at == len(name) - 1:
        return b"", None
    return name[:at], name[at + 1 :]


def _record(key: bytes, value: bytes) -> bytes:
    """The length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes, link: bytes, major: int, minor: int,
    prefix: bytes,
) -> bytes:  # fmt: skip
    if b"\0" in name or b"\0" in link:
        raise InvalidLayer(f"{name!r} has a NUL", name)
    front = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, uid, gid, size, mtime)
    back = b"%s%sustar\x0000%s%07o\0%07o\0%s" % (
        kind, link.ljust(100, b"\0"), bytes(64), major, minor, prefix.ljust(167, b"\0"),
    )  # fmt: skip
    total = sum(front) + sum(back) + 8 * 32
    return b"%s%06o\0 %s" % (front, total, back)
