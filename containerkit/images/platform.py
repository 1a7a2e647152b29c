"""Which machine an image is for, and which of several images is for this one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import InvalidValue
from ..value import Value, field, frozen

if TYPE_CHECKING:
    from .descriptor import Descriptor

__all__ = ["Platform", "select"]

_ARCHITECTURES = {
    "x86_64": ("amd64", None), "x86-64": ("amd64", None), "aarch64": ("arm64", None), "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"), "i386": ("386", None), "i686": ("386", None),
}  # fmt: skip
_ARM = ("v8", "v7", "v6", "v5")


def _word(value: object) -> str:
    if not isinstance(value, str) or len(value) > 64:
        raise InvalidValue(f"{value!r} must be a short string")
    return value


def _optional_word(value: object) -> str | None:
    return None if value in (None, "") else _word(value)


@frozen()
class Platform(Value):
    """An operating system and a kind of processor, by Go's names (image-index.md, "platform"): linux, amd64.

    ``variant`` is the processor's level: v7 of arm, v3 of amd64.
    """

    os: str = field(converter=_word)
    architecture: str = field(converter=_word)
    variant: str | None = field(default=None, converter=_optional_word)

    @classmethod
    def here(cls) -> Platform:
        """This machine's."""
        return cls.parse(f"linux/{os.uname().machine}")

    @classmethod
    def parse(cls, text: str | Platform) -> Platform:
        """``linux/arm64``, ``linux/arm/v7``; the kernel's names for processors are taken, too."""
        if isinstance(text, Platform):
            return text
        parts = text.split("/") if isinstance(text, str) else []
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise InvalidValue(f"platform {text!r} must be os/architecture, or os/architecture/variant")
        return cls(*parts)._normal()

    @classmethod
    def read(cls, value: Any) -> Platform | None:
        """From JSON; None when it does not say."""
        if not isinstance(value, dict) or not value.get("os") or not value.get("architecture"):
            return None
        return cls(value["os"], value["architecture"], value.get("variant"))._normal()

    def _normal(self) -> Platform:
        architecture, variant = _ARCHITECTURES.get(self.architecture.lower(), (self.architecture.lower(), None))
        variant = self.variant or variant
        if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
            variant = None
        if architecture == "arm" and variant is None:
            variant = "v7"
        return Platform(self.os.lower(), architecture, variant)

    def rank(self, wanted: Platform) -> int | None:
        """How well it does where ``wanted`` is: 0 is exact, more is worse, None not at all."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return None
        if self.variant == wanted.variant:
            return 0
        if self.architecture == "arm" and self.variant in _ARM and wanted.variant in _ARM:
            steps = _ARM.index(self.variant) - _ARM.index(wanted.variant)
            return steps if steps > 0 else None
        if self.architecture == "amd64":
            level, limit = _level(self.variant), _level(wanted.variant)
            return None if level is None or limit is None or level > limit else limit - level
        return 1 if self.variant is None else None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def _level(variant: str | None) -> int | None:
    """amd64's levels, 1 to 4."""
    if variant is None:
        return 1
    return int(variant[1]) if len(variant) == 2 and variant[0] == "v" and variant[1] in "1234" else None


_ATTESTATION = "vnd.docker.reference.type"


def select(entries: Iterable[Descriptor], wanted: Platform) -> Descriptor | None:
    """The entry of an index that is for ``wanted``: the best variant, else one that does not say what it is for.

    Attestations, which claim ``unknown/unknown``, are none.
    """
    best: tuple[int, Descriptor] | None = None
    silent: Descriptor | None = None
    for entry in entries:
        if _ATTESTATION in entry.annotations:
            continue
        if entry.platform is None:
            silent = silent or entry
            continue
        rank = entry.platform.rank(wanted)
        if rank is not None and (best is None or rank < best[0]):
            best = rank, entry
    return best[1] if best is not None else silent
