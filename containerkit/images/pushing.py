"""Images out of the store, into registries."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import InvalidValue
from ..layers.compression import Compression, compressor
from .descriptor import Descriptor
from .digest import Digest
from .manifest import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST, Manifest
from .progress import Progress, Reporter
from .pulling import connected
from .reference import Reference
from .transfer import PARALLEL

if TYPE_CHECKING:
    from ..store import Store
    from .image import Image
    from .registry import Registry

__all__ = ["push"]

_PIECE = 1 << 20
_COMPRESSED: dict[str, str] = {"gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


class _Blob(NamedTuple):
    """A blob to be sent, and the open file that it is in."""

    descriptor: Descriptor
    fd: int


def push(
    store: Store,
    image: str | Reference | Image,
    reference: str | Reference | None = None,
    *,
    registry: Registry | None = None,
    plain_http: bool = False,
    compression: Compression | None = "gzip",
    progress: Callable[[Progress], object] | None = None,
    parallel: int = PARALLEL,
) -> Digest:
    """:meth:`Images.push`."""
    found = store.images.get(image)
    name = _target(image, reference)
    if compression not in (None, "gzip", "zstd"):
        raise InvalidValue(f"compression {compression!r} must be 'gzip', 'zstd' or None")
    reporter = Reporter(progress)
    with ExitStack() as stack:
        stack.enter_context(found.hold())
        opened = stack.enter_context(connected(registry, name, plain_http))
        sources = _known_sources(found, name)
        pool = stack.enter_context(ThreadPoolExecutor(parallel, thread_name_prefix="ck-push"))

        def send(layer: Descriptor) -> Descriptor:
            with ExitStack() as files:
                blob = _prepared(store, layer, compression, files)
                _send(opened, name.path, blob, sources, reporter)
                return blob.descriptor

        layers = tuple(pool.map(send, found.manifest.layers))
        _send_config(opened, name.path, found)
        manifest = _manifest_of(found.manifest, layers)
        return opened.push_manifest(name, manifest)


def _target(image: str | Reference | Image, reference: str | Reference | None) -> Reference:
    if reference is None:
        if not isinstance(image, (str, Reference)):
            raise InvalidValue("push() needs the name to push to: push(image, 'registry/repository:tag')")
        reference = image
    name = Reference.parse(reference)
    if name.digest is not None:
        raise InvalidValue(f"{str(name)!r} has a digest: push to a tag")
    return name


def _known_sources(image: Image, name: Reference) -> list[str]:
    """Repositories of the same registry that had this image: what they have need not be sent."""
    known = [Reference.parse(text) for text in image.digests]
    return sorted({each.path for each in known if each.domain == name.domain and each.path != name.path})


def _prepared(store: Store, layer: Descriptor, compression: Compression | None, files: ExitStack) -> _Blob:
    """The blob as it is in the store; a plain archive is compressed, always to the same bytes."""
    fd = store.blobs.open(layer.digest)
    files.callback(os.close, fd)
    if compression is None or layer.media_type != OCI_LAYER:
        return _Blob(layer, fd)
    spool = store.spool()
    files.callback(os.close, spool)
    import hashlib

    hasher, size, made = hashlib.sha256(), 0, compressor(compression)
    while True:
        piece = os.read(fd, _PIECE)
        data = made.compress(piece) if piece else made.flush()
        hasher.update(data)
        size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(spool, view) :]
        if not piece:
            return _Blob(Descriptor(_COMPRESSED[compression], Digest.of_hash(hasher), size), spool)


def _send(registry: Registry, path: str, blob: _Blob, sources: list[str], reporter: Reporter) -> None:
    descriptor = blob.descriptor
    reporter.tell(descriptor.digest, "uploading", 0, descriptor.size)
    done: Literal["exists", "mounted", "uploaded"] = registry.push_blob(
        path, descriptor, blob.fd, mount_from=sources[0] if sources else None
    )
    phase: Literal["done", "exists"] = "done" if done == "uploaded" else "exists"
    reporter.tell(descriptor.digest, phase, descriptor.size, descriptor.size)


def _send_config(registry: Registry, path: str, image: Image) -> None:
    fd = os.memfd_create("config", os.MFD_CLOEXEC)
    try:
        os.write(fd, image.config.raw)
        registry.push_blob(path, image.manifest.config, fd)
    finally:
        os.close(fd)


def _manifest_of(before: Manifest, layers: tuple[Descriptor, ...]) -> Manifest:
    """The image's own manifest, byte for byte, unless its layers had to be compressed."""
    if layers == before.layers:
        return before
    config = Descriptor(OCI_CONFIG, before.config.digest, before.config.size)
    return Manifest.make(config, layers, media_type=OCI_MANIFEST, annotations=before.annotations)
