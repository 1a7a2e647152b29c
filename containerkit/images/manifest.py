"""What a registry says of an image: manifests, and indexes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidValue, Unsupported
from ..value import Value, field, frozen
from . import strict_json
from .descriptor import Descriptor, annotations_of
from .digest import Digest

__all__ = [
    "DOCKER_CONFIG", "DOCKER_INDEX", "DOCKER_LAYER", "DOCKER_MANIFEST", "INDEXES", "MANIFESTS", "OCI_CONFIG",
    "OCI_INDEX", "OCI_LAYER", "OCI_LAYER_GZIP", "OCI_LAYER_ZSTD", "OCI_MANIFEST", "Index", "Manifest", "parse",
]  # fmt: skip

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_INDEX)

_LAYERS_MAX = 500  # what an overlay can stack
_ENTRIES_MAX = 1000


class _Document:
    """What manifests and indexes have in common: the bytes, which alone have the digest."""

    raw: bytes
    media_type: str

    def __hash__(self) -> int:
        return hash(self.raw)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.raw)

    @property
    def descriptor(self) -> Descriptor:
        """As an index would name it."""
        return Descriptor(self.media_type, self.digest, len(self.raw))


@frozen()
class Manifest(_Document, Value):
    """One image: its configuration and its layers, the lowest first (OCI image-spec, manifest.md; docker's schema 2).

    ``raw`` are the bytes that it was read from, which alone have its :attr:`digest`.
    """

    raw: bytes = field(repr=False)
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default=None, converter=annotations_of)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.raw), artifact_type=self.artifact_type)

    @classmethod
    def make(
        cls,
        config: Descriptor,
        layers: tuple[Descriptor, ...],
        *,
        media_type: str = OCI_MANIFEST,
        annotations: Mapping[str, str] | None = None,
    ) -> Manifest:
        """A new one of these parts; the same parts give the same bytes."""
        content: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        if annotations:
            content["annotations"] = dict(sorted(annotations.items()))
        return cls(canonical(content), media_type, config, tuple(layers), annotations)


@frozen()
class Index(_Document, Value):
    """Several images under one name, for different machines (image-index.md; docker's manifest list)."""

    raw: bytes = field(repr=False)
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default=None, converter=annotations_of)

    @classmethod
    def make(cls, manifests: tuple[Descriptor, ...], *, annotations: Mapping[str, str] | None = None) -> Index:
        """A new one of these entries."""
        content: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [entry.to_json() for entry in manifests],
        }
        if annotations:
            content["annotations"] = dict(sorted(annotations.items()))
        return cls(canonical(content), OCI_INDEX, tuple(manifests), annotations)


def canonical(content: Mapping[str, Any]) -> bytes:
    """The bytes of a new object: no spaces, keys as given, so that equal content has equal digests."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def parse(raw: bytes, media_type: str | None = None) -> Manifest | Index:
    """Read what a registry or an archive calls a manifest.

    ``media_type`` is what came with it (the Content-Type). Raises InvalidValue where the two disagree, or where it
    could be read as both an image and an index (CVE-2021-41190); Unsupported for docker's schema 1, which has no
    digests of what its layers hold.
    """
    content = strict_json.read(raw, "the manifest")
    _refuse_schema_1(content, media_type)
    if content.get("schemaVersion") != 2:
        raise InvalidValue(f"the manifest has schemaVersion {content.get('schemaVersion')!r}: it must be 2")
    if "manifests" in content and ("layers" in content or "config" in content):
        raise InvalidValue("the manifest is an image and an index at once: one of them is a lie")
    kind = _media_type(content, media_type)
    annotations = content.get("annotations")
    if kind in INDEXES:
        entries = _descriptors(content.get("manifests"), "manifests", _ENTRIES_MAX)
        return Index(raw, kind, entries, annotations)
    subject, artifact = content.get("subject"), content.get("artifactType")
    return Manifest(
        raw,
        kind,
        Descriptor.read(content.get("config"), "the manifest's config"),
        _descriptors(content.get("layers"), "layers", _LAYERS_MAX),
        annotations,
        None if subject is None else Descriptor.read(subject, "the manifest's subject"),
        artifact if isinstance(artifact, str) else None,
    )


def _refuse_schema_1(content: Mapping[str, Any], media_type: str | None) -> None:
    if content.get("schemaVersion") == 1 or (media_type or "").startswith(
        "application/vnd.docker.distribution.manifest.v1"
    ):
        raise Unsupported(
            "this image has a manifest of docker's schema 1, which nobody takes any more: push it again with a docker "
            "from 2016 or later"
        )


def _media_type(content: Mapping[str, Any], given: str | None) -> str:
    """What it is: by its own word, by the registry's, or by what is in it. They must not contradict each other."""
    own = content.get("mediaType")
    given = given.partition(";")[0].strip() if given else None
    if given not in (*MANIFESTS, *INDEXES):
        given = None  # registries and proxies that say application/json, or nothing
    if own is not None and given is not None and own != given:
        raise InvalidValue(f"the manifest says that it is {own!r}, the registry that it is {given!r}")
    kind = own or given or (OCI_INDEX if "manifests" in content else OCI_MANIFEST)
    if kind not in (*MANIFESTS, *INDEXES):
        raise InvalidValue(f"the manifest is {kind!r}: known are OCI's and docker's schema 2 images and indexes")
    if (kind in INDEXES) != ("manifests" in content):
        raise InvalidValue(f"the manifest says that it is {kind!r}, but what is in it is something else")
    return str(kind)


def _descriptors(value: Any, what: str, most: int) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise InvalidValue(f"{what} of the manifest must be a list")
    if len(value) > most:
        raise InvalidValue(f"{what} of the manifest has {len(value)} entries: at most {most} are taken")
    return tuple(Descriptor.read(entry, f"{what}[{index}] of the manifest") for index, entry in enumerate(value))
