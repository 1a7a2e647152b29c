"""Compressed streams: recognised by their first bytes, and decompressed in bounded pieces, here in this process.

A name or a media type is only somebody's word, so neither is looked at. gzip streams of several members (pigz,
eStargz) and zstd streams of several frames (zstd:chunked) are one stream (RFC 1952 section 2.2, RFC 8878 section 3).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Literal, Protocol, cast

from ..errors import InvalidLayer, InvalidValue, Unsupported

__all__ = ["Compression", "Compressor", "Readable", "chunks", "compression_of", "compressor"]

Compression = Literal["gzip", "zstd"]

PIECE = 1 << 20
"""The most bytes that one step of decompression brings: an archive cannot fill the memory with one."""

_TAKE = 256 << 10
_RATIO_FROM = 1 << 30  # zstd makes 64 MiB of zeros, as a sparse file has them, out of 3 KB
_XZ_MEMORY = 128 << 20
_ZSTD_WINDOW = 128 << 20

_GZIP, _ZSTD, _XZ, _BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after one byte from 0x50 to 0x5f


class Readable(Protocol):
    """What bytes come from: a file, a pipe, a response."""

    def read(self, n: int, /) -> bytes: ...


class _Step(Protocol):
    """A decompressor of one member, as bz2 and lzma have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's with the methods of the others."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(31)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not (self._stream.unconsumed_tail or self._full)

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        found = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        self._full = len(found) == max_length  # there may be more without more input
        return found


def _gzip() -> _Step:
    try:
        from isal import igzip_lib
    except ImportError:
        return _Zlib()
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def _gzip_errors() -> tuple[type[Exception], ...]:
    try:
        from isal import igzip_lib
    except ImportError:
        return (zlib.error,)
    return (zlib.error, cast("type[Exception]", igzip_lib.error))


def compression_of(head: bytes) -> Literal["gzip", "zstd", "xz", "bzip2"] | None:
    """What a stream with this beginning (6 bytes) is compressed with; None for none that is known here."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F):
        return "zstd"
    if head.startswith(_XZ):
        return "xz"
    return "bzip2" if head.startswith(_BZIP2) else None


def chunks(source: Readable, *, ratio_max: int = 1 << 62) -> Iterator[bytes]:
    """What is in a stream, decompressed when it is compressed, in pieces of at most 1 MiB.

    Raises InvalidLayer for a stream that is damaged, that ends early, that has something else behind its end, or that
    gives more than ``ratio_max`` bytes for one (looked at from 1 GiB on). Raises Unsupported for zstd without a
    module for it: ``pip install 'containerkit[images]'``.
    """
    counted = _Counted(source)
    head = counted.peek(6)
    kind = compression_of(head)
    if kind is None:
        found = _plain(counted)
    elif kind == "zstd":
        found = _zstd(counted)
    else:
        new: Callable[[], _Step] = _gzip
        errors = _gzip_errors()
        if kind == "xz":
            new, errors = (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)), (lzma.LZMAError,)
        elif kind == "bzip2":
            new, errors = bz2.BZ2Decompressor, (OSError, ValueError)
        found = _members(counted, kind, new, errors)
    total = 0
    for piece in found:
        total += len(piece)
        if total > _RATIO_FROM and total > ratio_max * counted.taken:
            raise InvalidLayer(
                f"{counted.taken} bytes of {kind} have become {total} by now: more than {ratio_max} for one (ratio_max)"
            )
        yield piece


class _Counted:
    """Counts what is read, and gives back what was only looked at."""

    def __init__(self, source: Readable) -> None:
        self._source, self._head, self.taken = source, b"", 0

    def peek(self, n: int) -> bytes:
        while len(self._head) < n and (more := self._source.read(_TAKE)):
            self._head += more
        return self._head[:n]

    def read(self, n: int = _TAKE) -> bytes:
        if self._head:
            found, self._head = self._head[:n], self._head[n:]
        else:
            found = self._source.read(n)
        self.taken += len(found)
        return found


def _plain(source: _Counted) -> Iterator[bytes]:
    while piece := source.read(PIECE):
        yield piece


def _members(
    source: _Counted, kind: str, new: Callable[[], _Step], errors: tuple[type[Exception], ...]
) -> Iterator[bytes]:
    step, data, begun = new(), b"", False
    while True:
        if step.eof:
            data = (step.unused_data or b"") or source.read()
            if not data.strip(b"\0") and _only_zeros(source):
                return  # padding, as tape drives and some writers leave it
            step, begun = new(), False
        elif step.needs_input and not data:
            data = source.read()
            if not data:
                raise InvalidLayer(f"the {kind} stream ends in the middle: it was cut off" if begun else "nothing")
        try:
            piece = step.decompress(data, PIECE)
        except errors as error:
            raise InvalidLayer(f"the {kind} stream is damaged: {error}") from None
        data, begun = b"", True
        if piece:
            yield piece


def _only_zeros(source: _Counted) -> bool:
    while data := source.read():
        if data.strip(b"\0"):
            raise InvalidLayer("something that is not compressed follows the compressed stream")
    return True


def _zstd(source: _Counted) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        yield from _zstd_of_python(source)
        return
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
        cast("IO[bytes]", source), read_size=_TAKE, read_across_frames=True
    )
    try:
        while piece := reader.read(PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise InvalidLayer(f"the zstd stream is damaged: {error}") from None


def _zstd_of_python(source: _Counted) -> Iterator[bytes]:
    """compression.zstd of Python 3.14."""
    try:
        from importlib import import_module

        zstd = import_module("compression.zstd")
    except ImportError:
        raise Unsupported("zstd needs a module that is not installed: pip install 'containerkit[images]'") from None
    yield from _members(source, "zstd", zstd.ZstdDecompressor, (zstd.ZstdError,))


class Compressor(Protocol):
    """Gives the compressed form of what it is fed; ``flush()`` the rest, once."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(kind: Compression | None, level: int | None = None) -> Compressor:
    """A new one; without names or times in what it writes, so that equal content has equal bytes.

    ``level`` is the library's own: gzip by isal 0 to 3 (1 by default: fifteen times as fast as zlib's 6, and within a
    tenth as small), zstd 1 to 19 (3).
    """
    if kind is None:
        return _Plain()
    if kind == "gzip":
        try:
            from isal import isal_zlib
        except ImportError:
            return zlib.compressobj(6 if level is None else level, wbits=31)
        return isal_zlib.compressobj(1 if level is None else level, wbits=31)
    if kind == "zstd":
        try:
            import zstandard
        except ImportError:
            raise Unsupported("zstd needs a module that is not installed: pip install 'containerkit[images]'") from None
        return zstandard.ZstdCompressor(3 if level is None else level).compressobj()
    raise InvalidValue(f"compression {kind!r} must be 'gzip', 'zstd' or None")
