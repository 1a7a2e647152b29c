"""Images out of the store, into files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from ..errors import InvalidValue
from .archive_writing import Format, Saved, write_images
from .reference import Reference

if TYPE_CHECKING:
    from ..store import Store
    from .image import Image

__all__ = ["save"]


def save(
    store: Store,
    images: str | Image | Sequence[str | Image],
    file: str | os.PathLike[str] | BinaryIO,
    *,
    format: Format = "docker-archive",
) -> None:
    """:meth:`Images.save`."""
    from .image import Image

    asked = [images] if isinstance(images, (str, Image)) else list(images)
    if not asked:
        raise InvalidValue("save() needs at least one image")
    with ExitStack() as stack:
        saved: dict[str, Saved] = {}
        for one in asked:
            image = store.images.get(one) if isinstance(one, str) else one
            stack.enter_context(image.hold())
            names = _names(image, one)
            before = saved.get(image.manifest.digest)
            if before is not None:
                names = [*before.names, *(name for name in names if name not in before.names)]
            saved[image.manifest.digest] = Saved(image.manifest, image.config, names)
        write_images(list(saved.values()), file, format, store.blobs.open)


def _names(image: Image, asked: str | Image) -> list[Reference]:
    """The name that was asked for; of an image that was given itself, or by its id, all or none."""
    if not isinstance(asked, str):
        return [Reference.parse(name) for name in image.names]
    try:
        name = Reference.parse(asked)
    except InvalidValue:
        return []
    return [name] if str(name) in image.names else []
