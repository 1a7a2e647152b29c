"""Images out of files, into the store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from ..errors import InvalidValue, syscall_error
from .archive import Incoming, images_in, opened
from .platform import Platform
from .progress import Progress, Reporter
from .reference import Reference
from .transfer import PARALLEL, Transfer

if TYPE_CHECKING:
    from ..store import Store
    from .image import Image

__all__ = ["load"]


def load(
    store: Store,
    file: str | os.PathLike[str] | BinaryIO,
    *,
    platform: str | Platform | None = None,
    name: str | Reference | None = None,
    replace: bool = False,
    progress: Callable[[Progress], object] | None = None,
    parallel: int = PARALLEL,
) -> list[Image]:
    """:meth:`Images.load`."""
    wanted = None if platform is None else Platform.parse(platform)
    with ExitStack() as stack:
        spool = store.spool()
        stack.callback(os.close, spool)
        found = images_in(opened(file, stack, spool), wanted)
        if name is not None:
            found = [_renamed(found, Reference.parse(name))]
        if not replace:
            _refuse_to_move_names(store, found)
        lease = stack.enter_context(store.lease())
        reporter = Reporter(progress)
        taken = []
        for image in found:
            with store.unpacking() as apply:
                transfer = Transfer(store.blobs, store.layers, apply, lease, reporter, parallel=parallel)
                keys = transfer.take(image.manifest, image.config, image.source)
            taken.append(
                store.images.add(
                    image.manifest,
                    image.config,
                    keys,
                    names=image.names,
                    index=image.listed_in,
                    lease=lease,
                    replace=replace,
                )
            )
        return taken


def _renamed(found: Sequence[Incoming], name: Reference) -> Incoming:
    if len(found) != 1:
        raise InvalidValue(f"the archive has {len(found)} images: one name cannot be theirs; load them without")
    return found[0]._replace(names=(name,))


def _refuse_to_move_names(store: Store, found: Sequence[Incoming]) -> None:
    """An archive says itself what its images are called: it must not take a name that means something else here."""
    from ..errors import ImageNotFound

    for image in found:
        for name in image.names:
            try:
                there = store.images.get(name)
            except ImageNotFound:
                continue
            if there.id != image.config.id:
                hint = f"it is {there.id.short} here, {image.config.id.short} in the archive: load(..., replace=True)"
                raise syscall_error(errno.EEXIST, "load", str(name), hint)
