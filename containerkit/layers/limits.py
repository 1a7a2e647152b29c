"""How much of an archive is believed before it is taken for an attack."""

from __future__ import annotations

from ..errors import InvalidValue
from ..units import size as parse_size
from ..value import Value, field, frozen

__all__ = ["LayerLimits"]


@frozen(kw_only=True)
class LayerLimits(Value):
    """Bounds for one layer. What goes beyond is refused with InvalidLayer, and nothing of it is kept.

    Attributes:
        bytes_max: of the archive when it is decompressed, and of a file in it with its holes.
        entries_max: files, directories and all else; each costs an inode.
        ratio_max: decompressed to compressed bytes, looked at from 1 GiB on (zeros come to 1,000 with gzip, and to
            20,000 with zstd).
        xattr_bytes_max: of all extended attributes of one entry, names and values (the kernel's own limit is 64 KiB).
        header_max: bytes of extended headers before one entry: long names, attributes.
        depth_max: directories above one entry. A name has at most 255 bytes, and a path 4,095 (path_resolution(7)).
    """

    bytes_max: int = field(default=256 << 30, converter=parse_size)
    entries_max: int = 10_000_000
    ratio_max: int = 2000
    xattr_bytes_max: int = field(default=64 << 10, converter=parse_size)
    header_max: int = field(default=1 << 20, converter=parse_size)
    depth_max: int = 512

    def __attrs_post_init__(self) -> None:
        for name, value in self.__getstate__().items():
            if not isinstance(value, int) or value < 1:
                raise InvalidValue(f"{name}={value!r} of LayerLimits must be a positive number")
