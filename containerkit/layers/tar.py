"""Reading tar archives: ustar, PAX and GNU headers, from any stream, believing nothing.

Formats: tar(5), POSIX.1-2017 pax ("ustar Interchange Format", "pax Extended Header"), GNU tar's manual, "Basic Tar
Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation

from ..errors import InvalidLayer
from .entry import Entry, Kind
from .limits import LayerLimits

__all__ = ["Archive"]

BLOCK = 512
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_ZEROS = bytes(BLOCK)
_KINDS = {kind.value: kind for kind in Kind} | {b"\0": Kind.FILE, b"7": Kind.FILE}
_MTIME_MAX = (1 << 63) - 1
_XATTR = b"SCHILY.xattr."
_SEGMENTS_MAX = 1 << 20


class Archive:
    """The entries of an archive, one after the other; each one's content is read before the next is asked for.

    ::

        archive = Archive(pieces)
        for entry in archive:
            for piece in archive.content():
                ...

    ``content()`` gives the bytes that the archive has of the entry (of a sparse file its segments); what is not read
    is skipped. Iteration ends at the two blocks of zeros; :meth:`drain` reads what is behind them. Raises InvalidLayer.
    """

    def __init__(
        self, pieces: Iterator[bytes], limits: LayerLimits | None = None, *, seek: Callable[[int], object] | None = None
    ) -> None:
        """``seek`` makes the next piece come from so many bytes further on; without it all is read."""
        self._pieces, self._seek = pieces, seek
        self._view = memoryview(b"")
        self._at = 0
        self._limits = limits or LayerLimits()
        self._left = 0  # bytes of the current entry's content, and then its padding
        self._padding = 0
        self.size = 0
        """Bytes of the stream so far."""

    # ---- bytes -------------------------------------------------------------------------------------------------------

    def _more(self) -> bool:
        for piece in self._pieces:
            if piece:
                self._view, self._at = memoryview(piece), 0
                self.size += len(piece)
                if self.size > self._limits.bytes_max:
                    raise InvalidLayer(f"the archive has more than {self._limits.bytes_max} bytes (bytes_max)")
                return True
        return False

    def _take(self, n: int, what: str) -> bytes:
        at = self._at
        if at + n <= len(self._view):
            self._at = at + n
            return bytes(self._view[at : at + n])
        found = bytearray()
        while len(found) < n:
            if self._at == len(self._view) and not self._more():
                raise InvalidLayer(f"the archive ends in the middle of {what}")
            part = self._view[self._at : self._at + n - len(found)]
            found += part
            self._at += len(part)
        return bytes(found)

    def content(self) -> Iterator[memoryview]:
        """The pieces of the current entry's content."""
        while self._left:
            if self._at == len(self._view) and not self._more():
                raise InvalidLayer("the archive ends in the middle of a file")
            part = self._view[self._at : self._at + self._left]
            self._at += len(part)
            self._left -= len(part)
            yield part

    @property
    def offset(self) -> int:
        """Where in the stream the next byte is; for a new entry, where its content begins."""
        return self.size - len(self._view) + self._at

    def _skip(self) -> None:
        further = self._left + self._padding - (len(self._view) - self._at)
        if self._seek is not None and further > 0:
            self._seek(further)
            self.size += further
            self._at, self._left, self._padding = len(self._view), 0, 0
            return
        for _ in self.content():
            pass
        if self._padding:
            self._left, self._padding = self._padding, 0
            for _ in self.content():
                pass

    def drain(self) -> None:
        """Read to the end of the stream: what is behind the archive belongs to its digest, too."""
        self._skip()
        while self._more():
            pass

    # ---- entries -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        count = 0
        while (entry := self._next()) is not None:
            count += 1
            if count > self._limits.entries_max:
                raise InvalidLayer(f"the archive has more than {self._limits.entries_max} entries (entries_max)")
            yield entry

    def _next(self) -> Entry | None:
        extended: dict[bytes, bytes] = {}
        name = link = None
        spent = 0
        sparse: list[tuple[int, int]] = []
        while True:
            self._skip()
            if self._at == len(self._view) and not self._more():
                if extended or name or link:
                    raise InvalidLayer("the archive ends after an extended header")
                return None  # without its end marker, as some write it
            block = self._take(BLOCK, "a header")
            if block == _ZEROS:
                return None
            fields = _HEADER.unpack(block)
            _check(block, fields[6])
            flag, size = fields[7], _number(fields[4], "size")
            if flag in (b"x", b"X", b"L", b"K", b"g"):
                spent += size + BLOCK
                if spent > self._limits.header_max:
                    raise InvalidLayer(f"extended headers of more than {self._limits.header_max} bytes (header_max)")
                text = self._take(size, "an extended header")
                self._left = -size % BLOCK
                if flag in (b"x", b"X"):
                    extended.update(_records(text, sparse))
                elif flag == b"L":
                    name = text.rstrip(b"\0")
                elif flag == b"K":
                    link = text.rstrip(b"\0")
                continue  # a global header ("g") speaks of no file
            return self._entry(block, fields, flag, size, extended, name, link, sparse)

    def _entry(
        self,
        block: bytes,
        fields: tuple[bytes, ...],
        flag: bytes,
        size: int,
        extended: dict[bytes, bytes],
        name: bytes | None,
        link: bytes | None,
        sparse: list[tuple[int, int]],
    ) -> Entry:
        if name is None:
            name = fields[0].partition(b"\0")[0]
            if fields[9][:6] == b"ustar\0" and (prefix := fields[14].partition(b"\0")[0]):
                name = prefix + b"/" + name
        if link is None:
            link = fields[8].partition(b"\0")[0]
        mode = _number(fields[1], "mode") & 0o7777
        uid, gid = _number(fields[2], "uid"), _number(fields[3], "gid")
        mtime = _number(fields[5], "mtime") * 1_000_000_000
        xattrs: dict[bytes, bytes] = {}
        if extended:
            name = extended.get(b"GNU.sparse.name", extended.get(b"path", name))
            link = extended.get(b"linkpath", link)
            size = _decimal(extended, b"size", size)
            uid, gid = _decimal(extended, b"uid", uid), _decimal(extended, b"gid", gid)
            mtime = _time(extended.get(b"mtime"), mtime)
            xattrs = self._xattrs(extended, name)
        kind = _KINDS.get(flag)
        segments, real = None, size
        if flag == b"S":
            kind = Kind.FILE
            segments, real = self._old_sparse(block)
        elif kind is Kind.FILE and extended and (sparse or b"GNU.sparse.major" in extended):
            segments, real, size = self._pax_sparse(extended, sparse, size)
        elif kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # as before POSIX.1-1988
        if kind is None:
            raise InvalidLayer(f"type {flag!r} of an entry is unknown", name)
        if not 0 <= mtime <= _MTIME_MAX:
            mtime = 0  # as everybody does: file systems have no such time
        if max(uid, gid) >= 0xFFFFFFFF or min(uid, gid) < 0:
            raise InvalidLayer(f"owner {uid}:{gid} is no user or group", name)
        self._content(kind, size)
        return Entry(
            _clean(name, self._limits.depth_max),
            kind,
            mode=mode,
            uid=uid,
            gid=gid,
            size=self._real(real, name) if kind is Kind.FILE else 0,
            mtime_ns=mtime,
            link=self._link(kind, link, name),
            device=_device(fields, name) if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0),
            xattrs=xattrs,
            segments=None if segments is None else _checked(segments, real, size, name),
        )

    def _content(self, kind: Kind, size: int) -> None:
        """How much follows the header: links and devices have no content, whatever their size says (POSIX)."""
        self._left = size if kind is Kind.FILE else 0
        self._padding = -self._left % BLOCK

    def _real(self, size: int, name: bytes) -> int:
        if not 0 <= size <= self._limits.bytes_max:
            raise InvalidLayer(f"a file of {size} bytes: at most {self._limits.bytes_max} are taken (bytes_max)", name)
        return size

    def _link(self, kind: Kind, link: bytes, name: bytes) -> bytes:
        if kind is Kind.HARDLINK:
            return _clean(link, self._limits.depth_max)
        if kind is not Kind.SYMLINK:
            return b""
        if not link or len(link) > 4095 or b"\0" in link:
            raise InvalidLayer(f"a symbolic link to {link[:80]!r}", name)
        return link

    def _xattrs(self, extended: dict[bytes, bytes], name: bytes) -> dict[bytes, bytes]:
        found = {key[len(_XATTR) :]: value for key, value in extended.items() if key.startswith(_XATTR)}
        if sum(len(key) + len(value) for key, value in found.items()) > self._limits.xattr_bytes_max:
            most = self._limits.xattr_bytes_max
            raise InvalidLayer(f"extended attributes of more than {most} bytes (xattr_bytes_max)", name)
        return found

    # ---- sparse files ------------------------------------------------------------------------------------------------

    def _old_sparse(self, block: bytes) -> tuple[list[tuple[int, int]], int]:
        """GNU tar's type S: the map is in the header, and in blocks behind it."""
        real = _number(block[483:495], "size")
        segments = _pairs(block[386:482])
        extended = block[482]
        while extended:
            if len(segments) > _SEGMENTS_MAX:
                raise InvalidLayer("a sparse file of too many segments")
            more = self._take(BLOCK, "the map of a sparse file")
            segments += _pairs(more[:504])
            extended = more[504]
        return segments, real

    def _pax_sparse(
        self, extended: dict[bytes, bytes], sparse: list[tuple[int, int]], size: int
    ) -> tuple[list[tuple[int, int]], int, int]:
        """The formats 0.0, 0.1 and 1.0: the map as records, as one record, or before the content."""
        real = _decimal(extended, b"GNU.sparse.realsize", _decimal(extended, b"GNU.sparse.size", size))
        if extended.get(b"GNU.sparse.major") != b"1":
            return sparse, real, size
        text = b""
        numbers: list[bytes] = [b"0"]
        wanted = 1
        while len(numbers) <= 2 * wanted:
            if len(text) + BLOCK > min(size, 32 * _SEGMENTS_MAX):
                raise InvalidLayer("the map of a sparse file does not end")
            text += self._take(BLOCK, "the map of a sparse file")
            first, newline, _ = text.partition(b"\n")
            if newline:
                wanted = _digits(first, "the map of a sparse file")
                if wanted > _SEGMENTS_MAX:
                    raise InvalidLayer("a sparse file of too many segments")
                if text.count(b"\n") >= 2 * wanted + 1:
                    numbers = text.split(b"\n")[: 2 * wanted + 1]
        values = [_digits(number, "the map of a sparse file") for number in numbers[1:]]
        return list(zip(values[::2], values[1::2], strict=True)), real, size - len(text)


def _check(block: bytes, field: bytes) -> None:
    try:
        given = _number(field, "checksum")
    except InvalidLayer:  # then this is something else altogether
        given = -1
    if sum(block) - sum(field) + 256 != given:
        signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256  # as old tars counted
        if signed != given or given < 0:
            raise InvalidLayer("this is no tar archive, or a damaged one: the checksum of a header is wrong")


def _number(field: bytes, what: str) -> int:
    """Octal digits, or GNU's base 256."""
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if first & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -(1 << 62) < value < 1 << 62:
            raise InvalidLayer(f"{what} {field!r} of a header is out of range")
        return value
    text = field.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    try:
        if not text.isdigit():
            raise ValueError
        return int(text, 8)
    except ValueError:
        raise InvalidLayer(f"{what} {field!r} of a header is no octal number") from None


def _digits(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise InvalidLayer(f"{text[:40]!r} in {what} is no number")
    return int(text)


def _decimal(records: dict[bytes, bytes], key: bytes, default: int) -> int:
    text = records.get(key)
    return default if text is None else _digits(text, f"the extended header {key.decode()}")


def _time(text: bytes | None, default: int) -> int:
    """Decimal seconds, to the nanosecond."""
    if text is None:
        return default
    try:
        if len(text) > 40:
            raise InvalidOperation
        value = Decimal(text.decode("ascii"))
        if not value.is_finite() or abs(value) > 1 << 40:
            return -1
        return int(value * 1_000_000_000)
    except (InvalidOperation, UnicodeDecodeError):
        raise InvalidLayer(f"{text[:40]!r} in an extended header is no time") from None


def _records(text: bytes, sparse: list[tuple[int, int]]) -> Iterator[tuple[bytes, bytes]]:
    """``length key=value\\n``, the length that of the whole record."""
    at = 0
    offset: int | None = None
    while at < len(text):
        space = text.find(b" ", at, at + 20)
        length = _digits(text[at:space], "an extended header") if space > at else 0
        end = at + length
        equals = text.find(b"=", space, end)
        if length < 5 or end > len(text) or text[end - 1 : end] != b"\n" or equals < 0:
            raise InvalidLayer("an extended header is damaged")
        key, value = text[space + 1 : equals], text[equals + 1 : end - 1]
        at = end
        if key == b"GNU.sparse.offset":
            offset = _digits(value, "the map of a sparse file")
        elif key == b"GNU.sparse.numbytes" and offset is not None:
            sparse.append((offset, _digits(value, "the map of a sparse file")))
        elif key == b"GNU.sparse.map":
            numbers = [_digits(number, "the map of a sparse file") for number in value.split(b",")] if value else []
            sparse.extend(zip(numbers[::2], numbers[1::2], strict=False))
        if b"\0" in value and not key.startswith(_XATTR):
            raise InvalidLayer(f"the extended header {key[:80].decode(errors='replace')} has a NUL")
        if value:  # an empty one takes back what another header said, and there is none
            yield key, value


def _pairs(text: bytes) -> list[tuple[int, int]]:
    found = []
    for at in range(0, len(text) - 23, 24):
        if not text[at]:
            break
        found.append((_number(text[at : at + 12], "map"), _number(text[at + 12 : at + 24], "map")))
    return found


def _checked(segments: list[tuple[int, int]], real: int, size: int, name: bytes) -> tuple[tuple[int, int], ...]:
    at = total = 0
    for offset, length in segments:
        if offset < at or length < 0 or offset + length > real:
            raise InvalidLayer("the map of a sparse file contradicts itself", name)
        at = offset + length
        total += length
    if total != size:
        raise InvalidLayer(f"a sparse file has segments of {total} bytes, and {size} in the archive", name)
    return tuple(segments)


def _device(fields: tuple[bytes, ...], name: bytes) -> tuple[int, int]:
    major, minor = _number(fields[12], "major"), _number(fields[13], "minor")
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):  # MKDEV(3): 12 and 20 bits
        raise InvalidLayer(f"device {major}:{minor} is none of Linux", name)
    return major, minor


def _clean(name: bytes, depth_max: int) -> bytes:
    """The path below the root. A path that leaves it is refused, not bent: nobody writes one in good faith."""
    if b"//" not in name and b"./" not in name and name and name[0] != 47 and name[-1] != 47 and len(name) < 200:
        parts = name.split(b"/")
        if b".." not in parts and b"." not in parts and b"\0" not in name and len(parts) <= depth_max:
            return name
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidLayer(f"{name[:200]!r} leads out of the root", name)
    if b"\0" in name or len(name) > 4095 or any(len(part) > 255 for part in parts):
        raise InvalidLayer(f"{name[:200]!r} is no path: it is too long, or has a NUL", name)
    if len(parts) > depth_max:
        raise InvalidLayer(f"{name[:200]!r} is {len(parts)} directories deep: at most {depth_max} (depth_max)", name)
    return b"/".join(parts)
