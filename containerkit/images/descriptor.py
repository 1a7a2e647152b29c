"""A descriptor: what some content is called, how long it is, and what kind of thing it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidValue
from ..value import Value, field, frozen
from .digest import Digest
from .platform import Platform

__all__ = ["Descriptor"]

_SIZE_MAX = 1 << 50


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _SIZE_MAX:
        raise InvalidValue(f"size {value!r} of a descriptor must be a number of bytes")
    return value


def _media_type(value: object) -> str:
    if not isinstance(value, str) or not 3 <= len(value) <= 255 or "/" not in value or not value.isprintable():
        raise InvalidValue(f"media type {value!r} of a descriptor must be like 'application/json'")
    return value


def annotations_of(value: object) -> Mapping[str, str]:
    """A copy, checked; nothing is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(x, str) for pair in value.items() for x in pair):
        raise InvalidValue("annotations must be an object of strings")
    return dict(value)


def _urls(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(url, str) for url in value):
        raise InvalidValue("urls of a descriptor must be a list of strings")
    return tuple(value)


@frozen()
class Descriptor(Value):
    """Content by its digest (OCI image-spec, descriptor.md). ``size`` is in bytes and is checked before the digest."""

    media_type: str = field(converter=_media_type)
    digest: Digest = field(converter=Digest)
    size: int = field(converter=_size)
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default=None, converter=annotations_of, kw_only=True)
    urls: tuple[str, ...] = field(default=(), converter=_urls, kw_only=True)
    artifact_type: str | None = field(default=None, kw_only=True)

    def __hash__(self) -> int:
        return hash((self.digest, self.size, self.media_type))

    @classmethod
    def read(cls, value: Any, what: str) -> Descriptor:
        """From JSON. Raises InvalidValue, which names ``what``."""
        if not isinstance(value, dict):
            raise InvalidValue(f"{what} must be a descriptor, not {type(value).__name__}")
        artifact = value.get("artifactType")
        try:
            return cls(
                value.get("mediaType"),
                str(value.get("digest")),
                value.get("size"),
                Platform.read(value.get("platform")),
                annotations=value.get("annotations"),
                urls=value.get("urls") or (),
                artifact_type=artifact if isinstance(artifact, str) else None,
            )
        except InvalidValue as error:
            raise InvalidValue(f"{what}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """As the specification writes it; what is empty is left out."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            found["urls"] = list(self.urls)
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.platform is not None:
            names = {"architecture": self.platform.architecture, "os": self.platform.os}
            found["platform"] = names | ({"variant": self.platform.variant} if self.platform.variant else {})
        return found
