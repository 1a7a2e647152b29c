"""From a descriptor to the one image that is meant: documents verified, indexes followed, a platform chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import ContentMismatch, ImageNotFound, InvalidValue
from .descriptor import Descriptor
from .manifest import INDEXES, MANIFESTS, Index, Manifest, parse
from .platform import Platform, select

__all__ = ["Fetch", "choose", "document", "verified"]

Fetch = Callable[[Descriptor], Manifest | Index]
"""Reads the document that a descriptor names, and has verified it."""

_DOCUMENTS_MAX = 32  # of one index: a tree of indexes may be wide, and may name each other again and again
_ATTESTATION = "vnd.docker.reference.type"


def verified(raw: bytes, descriptor: Descriptor, what: str) -> bytes:
    """``raw``, when it is what the descriptor says. Raises ContentMismatch: size first, then digest."""
    if len(raw) != descriptor.size:
        raise ContentMismatch(f"{what} {descriptor.digest} has {len(raw)} bytes: its descriptor says {descriptor.size}")
    hasher = descriptor.digest.hasher()
    hasher.update(raw)
    if hasher.hexdigest() != descriptor.digest.hex:
        raise ContentMismatch(f"{what} that should be {descriptor.digest} has the digest {hasher.hexdigest()}")
    return raw


def document(raw: bytes, descriptor: Descriptor) -> Manifest | Index:
    """The manifest or index of these bytes, verified."""
    return parse(verified(raw, descriptor, "the manifest"), descriptor.media_type)


def choose(found: Manifest | Index, wanted: Platform, fetch: Fetch) -> Manifest:
    """The image for ``wanted`` in an index, or in the indexes that it names; a manifest is its own.

    Raises ImageNotFound, with the platforms that there are.
    """
    if isinstance(found, Manifest):
        return found
    seen: list[str] = []
    chosen = _in_index(found, wanted, _Budget(fetch), seen)
    if chosen is None:
        there = ", ".join(sorted(set(seen))) or "none"
        raise ImageNotFound(f"there is no image for {wanted} in the index {found.digest}: it has {there}")
    return chosen


class _Budget:
    """Documents that may still be read, whatever a hostile index would have us read."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch, self._left = fetch, _DOCUMENTS_MAX

    def __call__(self, descriptor: Descriptor) -> Manifest | Index:
        self._left -= 1
        if self._left < 0:
            raise InvalidValue(f"the index leads to more than {_DOCUMENTS_MAX} others on the way to one image")
        return self._fetch(descriptor)


def _in_index(index: Index, wanted: Platform, fetch: Fetch, seen: list[str]) -> Manifest | None:
    seen.extend(str(entry.platform) for entry in _images(index) if entry.platform is not None)
    best = select([entry for entry in _images(index) if entry.platform is not None], wanted)
    for entry in [best] if best is not None else _silent(index):
        found = fetch(entry)
        chosen = found if isinstance(found, Manifest) else _in_index(found, wanted, fetch, seen)
        if chosen is not None:
            return chosen
    return None


def _images(index: Index) -> Iterator[Descriptor]:
    return (
        entry
        for entry in index.manifests
        if _ATTESTATION not in entry.annotations and entry.media_type in (*MANIFESTS, *INDEXES)
    )


def _silent(index: Index) -> list[Descriptor]:
    return [entry for entry in _images(index) if entry.platform is None]
