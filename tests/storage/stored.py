"""Images put into a store by hand, as a pull would."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing

from archives import archive, entry
from made_images import MadeImage

from containerkit.images.config import ImageConfig
from containerkit.images.descriptor import Descriptor
from containerkit.images.digest import Digest
from containerkit.images.image import Image
from containerkit.images.manifest import OCI_CONFIG, Manifest
from containerkit.layers.apply import apply
from containerkit.store import Store


def layer(name: str, content: str = "content", size: int = 0) -> bytes:
    """A layer with one file."""
    return archive([entry("d/"), entry(f"d/{name}", content.encode() + b"x" * size)])


def made(*names: str, **options: object) -> MadeImage:
    """An image with a layer for each name."""
    return MadeImage([layer(name) for name in names], **options)


def dated(image: MadeImage, created: str) -> MadeImage:
    """The same with another time of creation, and so another id."""
    image.config = ImageConfig.make(json.loads(image.config.raw) | {"created": created})
    config = Descriptor(OCI_CONFIG, image.config.id, len(image.config.raw))
    image.manifest = Manifest.make(config, image.manifest.layers)
    return image


def put(store: Store, image: MadeImage, *names: str, **options: object) -> Image:
    """Bring it in, and name it."""
    with store.lease() as lease:
        keys = [take_layer(store, lease, image, number) for number in range(len(image.layers))]
        return store.images.add(image.manifest, image.config, keys, names=names, lease=lease, **options)  # type: ignore[arg-type]


def take_layer(store: Store, lease: object, image: MadeImage, number: int) -> str:
    part, diff_id = image.manifest.layers[number], image.config.diff_ids[number]
    if not store.blobs.has(part.digest, lease):  # type: ignore[arg-type]
        with store.blobs.ingest(part.digest, part.size, lease) as ingest:  # type: ignore[arg-type]
            if not ingest.present:
                ingest.write(image.blobs[part.digest][ingest.offset :])
                ingest.commit()
    if not store.layers.has(diff_id, lease):  # type: ignore[arg-type]
        unpack(store, lease, part.digest, diff_id)
    return diff_id


def unpack(store: Store, lease: object, digest: Digest, diff_id: Digest) -> None:
    with open(store.blobs.open(digest), "rb", 0) as blob, closing(store.layers.stage(lease)) as staged:  # type: ignore[arg-type]
        applied = apply(blob, staged.fd, owners=os.geteuid() == 0)
        staged.keep(diff_id, diff_id, applied)


def tree(held_root: object) -> Sequence[str]:
    """What is in ``d`` of an image's layers."""
    return sorted({name for one in held_root.lower for name in os.listdir(f"{one}/d")})  # type: ignore[attr-defined]
