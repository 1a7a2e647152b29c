"""Sizes that people write: ``"64M"`` is 64 * 2**20 bytes."""

from __future__ import annotations

import re

from .errors import InvalidValue

_SIZE = re.compile(r"([0-9]{1,20})(\.[0-9]+)?[ ]*(?:([KMGT])(?:I?B)?|B)?", re.ASCII | re.IGNORECASE)
_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def size(value: int | str) -> int:
    """Bytes from a number of bytes or a string with a unit (K, M, G, T: powers of 1024; also ``KiB`` and ``KB``).

    Raises InvalidValue for anything else, zero and negative numbers included.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        result = value
    else:
        found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise InvalidValue(
                f"{value!r} is not a size: write bytes as an int, or a string like '512K', '64M', '1.5G'"
            )
        whole, fraction, unit = found[1], found[2], (found[3] or "").upper()
        scale = 1 << _SHIFT[unit]
        result = int(whole) * scale + int(float(fraction or 0) * scale)
    if not 0 < result < 1 << 63:
        raise InvalidValue(f"size {value!r} must be at least one byte and fit in 63 bits")
    return result


def optional_size(value: int | str | None) -> int | None:
    """As :func:`size`; None is no limit."""
    return None if value is None else size(value)
