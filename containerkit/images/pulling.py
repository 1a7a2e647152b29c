"""Images out of registries, into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import InvalidValue
from . import strict_json
from .config import ImageConfig
from .descriptor import Descriptor
from .manifest import Index
from .platform import Platform
from .progress import Progress, Reporter
from .reference import Reference
from .registry import Registry
from .registry.blob import Blob
from .selection import choose, verified
from .transfer import PARALLEL, Transfer

if TYPE_CHECKING:
    from ..store import Store
    from .image import Image

__all__ = ["connected", "pull"]


def pull(
    store: Store,
    reference: str | Reference,
    *,
    platform: str | Platform | None = None,
    registry: Registry | None = None,
    plain_http: bool = False,
    progress: Callable[[Progress], object] | None = None,
    parallel: int = PARALLEL,
) -> Image:
    """:meth:`Images.pull`."""
    name = Reference.parse(reference)
    wanted = Platform.here() if platform is None else Platform.parse(platform)
    with store.unpacking() as apply, connected(registry, name, plain_http) as opened, store.lease() as lease:
        found = opened.manifest(name)
        manifest = choose(found, wanted, lambda entry: opened.fetch(name.path, entry))
        source = _Repository(opened, name.path)
        config = ImageConfig.parse(source.whole(manifest.config))
        transfer = Transfer(store.blobs, store.layers, apply, lease, Reporter(progress), parallel=parallel)
        keys = transfer.take(manifest, config, source)
        index = found if isinstance(found, Index) else None
        return store.images.add(manifest, config, keys, names=(name,), index=index, lease=lease)


@contextmanager
def connected(registry: Registry | None, name: Reference, plain_http: bool) -> Iterator[Registry]:
    """The caller's connection, which stays open; or one for this alone."""
    if registry is not None:
        yield registry
        return
    with Registry(name.host, plain_http=plain_http) as opened:
        yield opened


class _Repository:
    """One repository of a registry, as the source of an image."""

    def __init__(self, registry: Registry, path: str) -> None:
        self._registry, self._path = registry, path

    def content(self, descriptor: Descriptor, offset: int = 0, /) -> Blob:
        return self._registry.blob(self._path, descriptor, offset=offset)

    def whole(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified."""
        if descriptor.size > strict_json.SIZE_MAX:
            raise InvalidValue(
                f"the image's configuration has {descriptor.size} bytes: at most {strict_json.SIZE_MAX} are read"
            )
        blob = self.content(descriptor)
        try:
            raw = b"".join(iter(lambda: blob.read(1 << 20), b""))
        finally:
            blob.close()
        return verified(raw, descriptor, "the configuration")
