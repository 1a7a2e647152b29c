"""JSON from strangers: what is ambiguous, too big or too deep is refused before anything is made of it."""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import InvalidValue

__all__ = ["SIZE_MAX", "read", "read_list"]

SIZE_MAX = 4 << 20
"""Bytes that a manifest or configuration may have (distribution-spec: registries take at least 4 MiB)."""
_DEPTH_MAX = 64
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def read(data: bytes, what: str, *, size_max: int = SIZE_MAX) -> dict[str, Any]:
    """The object that ``data`` is. ``what`` names it in errors.

    Raises InvalidValue: more than ``size_max`` bytes or 64 levels; not UTF-8; not one JSON object; a key twice in one
    object, which two readers could understand differently (CVE-2021-41190); NaN and Infinity, which are not JSON.
    """
    found = _load(data, what, size_max)
    if not isinstance(found, dict):
        raise InvalidValue(f"{what} must be a JSON object, not {type(found).__name__}")
    return found


def read_list(data: bytes, what: str, *, size_max: int = SIZE_MAX) -> list[dict[str, Any]]:
    """The list of objects that ``data`` is, as strictly."""
    found = _load(data, what, size_max)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidValue(f"{what} must be a JSON list of objects")
    return found


def _load(data: bytes, what: str, size_max: int) -> Any:
    if len(data) > size_max:
        raise InvalidValue(f"{what} has {len(data)} bytes: at most {size_max} are read")
    _check_depth(data, what)
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{what} is not UTF-8: {error}") from None
    except (ValueError, _Ambiguous) as error:
        raise InvalidValue(f"{what} is not the JSON it should be: {error}") from None


class _Ambiguous(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Ambiguous(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise _Ambiguous(f"{name} is not a JSON number")


def _check_depth(data: bytes, what: str) -> None:
    """Before parsing, which recurses."""
    depth = 0
    for token in _BRACKETS.finditer(data):
        first = token[0][:1]
        if first in b"[{":
            depth += 1
            if depth > _DEPTH_MAX:
                raise InvalidValue(f"{what} is nested more than {_DEPTH_MAX} levels deep")
        elif first in b"]}":
            depth -= 1
