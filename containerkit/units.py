"""Sizes that people write: ``"64M"`` is 64 * 2**20 bytes."""

from __future__ import annotations

from .errors import InvalidValue

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(value: int | str) -> int:
    """Bytes from a number of bytes or a string with a unit (K, M, G, T: powers of 1024; also ``KiB`` and ``KB``).

    Raises InvalidValue for anything else, zero and negative numbers included.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        result = value
    elif isinstance(value, str) and value.isascii():
        text = value.strip().upper().removesuffix("IB")
        text = text if text[-1:].isdigit() else text.removesuffix("B") if text[-2:-1].isalpha() else text
        unit = text[-1:] if text[-1:].isalpha() else ""
        number = text.removesuffix(unit).strip() if unit else text
        whole, dot, fraction = number.partition(".")
        if unit not in _UNITS or not whole.isdigit() or (dot and not fraction.isdigit()):
            raise InvalidValue(
                f"{value!r} is not a size: write bytes as an int, or a string like '512K', '64M', '1.5G'"
            )
        result = int(float(number) * _UNITS[unit]) if dot else int(whole) * _UNITS[unit]
    else:
        raise InvalidValue(f"{value!r} is not a size: write bytes as an int, or a string like '512K', '64M', '1.5G'")
    if not 0 < result < 1 << 63:
        raise InvalidValue(f"size {value!r} must be at least one byte and fit in 63 bits")
    return result
