"""Digests: the names of content, checked where they come in."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Self

from ..errors import InvalidValue

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Digest"]

_HEX = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})", re.ASCII)


class Digest(str):
    """The digest of some bytes: ``sha256:`` or ``sha512:`` and lower-case hexadecimal digits (OCI image-spec,
    descriptor.md, "Digests").

    It is a string, and can only be made from one that is a digest: whoever has one may use it as the name of a file.
    Raises InvalidValue for anything else, other algorithms included.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check ``text``."""
        if type(text) is cls:
            return text
        found = _DIGEST.fullmatch(text) if isinstance(text, str) else None
        if found is None or len(found[2]) != _HEX[found[1]]:
            shown = text if len(str(text)) <= 150 else f"{str(text)[:150]}..."
            raise InvalidValue(f"{shown!r} is not a digest: sha256: and 64 hexadecimal digits, or sha512: and 128")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        """The sha256 digest of ``data``."""
        return cls.of_hash(hashlib.sha256(data))

    @classmethod
    def of_hash(cls, hasher: _Hash) -> Self:
        """What a hash object of :mod:`hashlib` has come to."""
        return cls(f"{hasher.name}:{hasher.hexdigest()}")

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first 12 digits, as people write them."""
        return self.hex[:12]

    def hasher(self) -> _Hash:
        """A fresh hash object of its algorithm, to compare with."""
        return hashlib.new(self.algorithm, usedforsecurity=False)
