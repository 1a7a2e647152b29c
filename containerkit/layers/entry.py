"""One entry of an archive: what it is and what it is called."""

from __future__ import annotations

from enum import Enum

__all__ = ["Entry", "Kind"]


class Kind(Enum):
    """What an entry makes. The values are tar's type flags (tar(5))."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


class Entry:
    """A file, a directory, a link or a device, as an archive describes it.

    A plain class with slots, because an image has tens of thousands.

    Attributes:
        name: the path below the root, without a slash at either end and without "." or ".."; empty for the root.
        mode: permission bits with set-id and sticky bits, 0 to 0o7777.
        size: bytes of a file, holes included.
        mtime_ns: nanoseconds since 1970.
        link: for a symbolic link its target, as it stands; for a hard link the path of the other name, like ``name``.
        device: (major, minor) of a device.
        xattrs: extended attributes as they are in the archive.
        segments: for a sparse file the parts that the archive has, as (offset, length); None when it has it whole.
    """

    __slots__ = ("device", "gid", "kind", "link", "mode", "mtime_ns", "name", "segments", "size", "uid", "xattrs")

    def __init__(
        self,
        name: bytes,
        kind: Kind,
        *,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime_ns: int = 0,
        link: bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: dict[bytes, bytes] | None = None,
        segments: tuple[tuple[int, int], ...] | None = None,
    ) -> None:
        self.name, self.kind, self.mode, self.uid, self.gid = name, kind, mode, uid, gid
        self.size, self.mtime_ns, self.link, self.device = size, mtime_ns, link, device
        self.xattrs = xattrs or {}
        self.segments = segments

    def __repr__(self) -> str:
        link = f" -> {self.link!r}" if self.link else ""
        return f"<Entry {self.kind.name.lower()} {self.name!r}{link} {self.mode:o} {self.uid}:{self.gid} {self.size}>"
