"""An archive of files in which one looks up: what is where, without reading what is in between."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator

from ..errors import ContentMismatch, InvalidLayer
from ..layers.entry import Kind
from ..layers.limits import LayerLimits
from ..layers.tar import Archive

__all__ = ["Part", "TarIndex"]

_READ = 64 << 10
_LINKS_MAX = 32
_LIMITS = LayerLimits(bytes_max=1 << 44, entries_max=200_000)


class Part:
    """A stretch of a file, read from its beginning to its end, by position: several threads may have parts of one."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.fd, self.offset, self.size = fd, offset, size
        self._at = 0

    def read(self, n: int, /) -> bytes:
        """Up to ``n`` bytes more; none at the end. Raises ContentMismatch when the file became shorter meanwhile."""
        want = min(n, self.size - self._at)
        found = os.pread(self.fd, want, self.offset + self._at) if want > 0 else b""
        if want > 0 and not found:
            raise ContentMismatch(f"the file ends {self.size - self._at} bytes before it should: it was cut off")
        self._at += len(found)
        return found

    def seek(self, at: int) -> None:
        """Go on from there."""
        self._at = min(at, self.size)


class TarIndex:
    """The files of a tar archive in ``fd``, a file that can be read at any place. The descriptor stays the caller's.

    Raises InvalidLayer for what is no archive, and for two files of one name, which two readers could take differently.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        end = os.fstat(fd).st_size
        at = 0

        def pieces() -> Iterator[bytes]:
            nonlocal at
            while piece := os.pread(fd, _READ, at):
                at += len(piece)
                yield piece

        def seek(further: int) -> None:
            nonlocal at
            at += further

        archive = Archive(pieces(), _LIMITS, seek=seek)
        for entry in archive:
            name = os.fsdecode(entry.name)
            if entry.kind is Kind.DIRECTORY:
                continue
            if name in self._files or name in self._links:
                raise InvalidLayer(f"{name!r} is in the archive twice", entry.name)
            if entry.kind is Kind.FILE and entry.segments is None:
                if archive.offset + entry.size > end:
                    raise InvalidLayer(f"the archive ends in the middle of {name!r}: it was cut off", entry.name)
                self._files[name] = archive.offset, entry.size
            elif entry.kind is Kind.SYMLINK:
                self._links[name] = posixpath.join(posixpath.dirname(name), os.fsdecode(entry.link))
            elif entry.kind is Kind.HARDLINK:
                self._links[name] = os.fsdecode(entry.link)
            else:
                raise InvalidLayer(f"{name!r} in the archive is no plain file, directory or link", entry.name)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def part(self, name: str) -> Part:
        """The file ``name``, or what the links of that name in the archive lead to. Raises InvalidLayer without one."""
        found = self._find(name)
        if found is None:
            raise InvalidLayer(f"{name!r} is not in the archive", os.fsencode(name))
        return Part(self._fd, *found)

    def _find(self, name: str) -> tuple[int, int] | None:
        """Only names of this archive are looked up, in this dict: a path cannot lead anywhere else."""
        for _ in range(_LINKS_MAX):
            name = posixpath.normpath(name)
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None
