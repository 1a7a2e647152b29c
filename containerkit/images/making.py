"""New images: of a root file system, and of what a container has changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from ..errors import InvalidValue, StoreError
from ..layers.compression import chunks, compression_of
from ..layers.pack import Packed, pack_layer, pack_tree, source_date
from ..mounttree import MountTree
from .config import ImageConfig
from .config_changes import ConfigChanges, with_layer
from .descriptor import Descriptor
from .digest import Digest
from .manifest import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Manifest
from .platform import Platform
from .progress import Progress, Reporter
from .reference import Reference
from .tar_index import Part
from .transfer import Transfer

if TYPE_CHECKING:
    from hashlib import _Hash

    from ..overlayfs import OverlayFS
    from ..store import Store
    from .image import Image

__all__ = ["commit", "export", "import_"]

_PIECE = 1 << 20
_LAYER_TYPES = {None: OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


def import_(
    store: Store,
    root: str | os.PathLike[str] | BinaryIO,
    *,
    name: str | Reference | None = None,
    changes: ConfigChanges | None = None,
    platform: str | Platform | None = None,
    author: str | None = None,
    comment: str | None = None,
    source_date_epoch: int | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Image:
    """:meth:`Images.import_`."""
    where = Platform.here() if platform is None else Platform.parse(platform)
    epoch = source_date(source_date_epoch)
    reference = None if name is None else Reference.parse(name)
    with ExitStack() as stack:
        archive = _archive_of(store, root, epoch, stack)
        layer, diff_id = _measured(archive)
        config = with_layer(
            None,
            diff_id,
            changes=changes,
            platform=where,
            created=epoch,
            created_by="import",
            author=author,
            comment=comment,
        )
        return _added(store, config, (), layer, archive, reference, progress, stack)


def commit(
    store: Store,
    overlay: OverlayFS | str | os.PathLike[str],
    parent: Image,
    *,
    name: str | Reference | None = None,
    changes: ConfigChanges | None = None,
    author: str | None = None,
    comment: str | None = None,
    created_by: str | None = None,
    source_date_epoch: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    without: Collection[bytes] = (),
) -> Image:
    """:meth:`Images.commit`; ``without`` are paths, like "etc/hosts", that are left out."""
    epoch = source_date(source_date_epoch)
    reference = None if name is None else Reference.parse(name)
    with ExitStack() as stack:
        spool = store.spool()
        stack.callback(os.close, spool)
        upper = os.open(_upper_of(overlay), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, upper)
        packed = _packed_layer(upper, spool, epoch, without)
        archive = Part(spool, 0, os.fstat(spool).st_size)
        diff_id = Digest(packed.diff_id)
        config = with_layer(
            parent.config,
            diff_id,
            changes=changes,
            created=epoch,
            created_by=created_by,
            author=author,
            comment=comment,
        )
        layer = Descriptor(OCI_LAYER, diff_id, archive.size)
        return _added(store, config, parent.manifest.layers, layer, archive, reference, progress, stack)


def _packed_layer(upper: int, spool: int, epoch: int | None, without: Collection[bytes]) -> Packed:
    """An ordinary user may not be allowed to read what belongs to him: the container's root, which he is, may be."""
    try:
        with open(spool, "wb", closefd=False) as out:
            return pack_layer(upper, out, source_date_epoch=epoch, without=without)
    except PermissionError:
        if os.geteuid() == 0:
            raise
    from ..tree_process import TreeProcess

    os.ftruncate(spool, 0)
    os.lseek(spool, 0, os.SEEK_SET)
    with TreeProcess([os.readlink(f"/proc/self/fd/{upper}")]) as worker:
        return worker.pack_layer(upper, spool, source_date_epoch=epoch, without=without)


def export(store: Store, image: Image, file: str | os.PathLike[str] | BinaryIO) -> None:
    """:meth:`Images.export`."""
    held = image.hold()
    try:
        with ExitStack() as stack:
            tree = stack.enter_context(_tree_of(held.root))
            if isinstance(file, (str, os.PathLike)):
                from .archive_writing import new_file

                pack_tree(tree, stack.enter_context(new_file(file)))
            else:
                pack_tree(tree, file)
    finally:
        held.close()


def _added(
    store: Store,
    config: ImageConfig,
    below: tuple[Descriptor, ...],
    layer: Descriptor,
    archive: Part,
    name: Reference | None,
    progress: Callable[[Progress], object] | None,
    stack: ExitStack,
) -> Image:
    """Take in an image of known layers and one more, whose archive is here."""
    manifest = Manifest.make(Descriptor(OCI_CONFIG, config.id, len(config.raw)), (*below, layer))
    lease = stack.enter_context(store.lease())
    apply = stack.enter_context(store.unpacking())
    transfer = Transfer(store.blobs, store.layers, apply, lease, Reporter(progress))
    keys = transfer.take(manifest, config, _Here(layer.digest, archive))
    return store.images.add(manifest, config, keys, names=() if name is None else (name,), index=None, lease=lease)


class _Here:
    """A layer in a file."""

    def __init__(self, digest: Digest, archive: Part) -> None:
        self._digest, self._archive = digest, archive

    def content(self, descriptor: Descriptor, offset: int = 0, /) -> Part:
        if descriptor.digest != self._digest:
            raise StoreError(f"the store has lost {descriptor.digest} of the parent: Store.fsck() says more")
        part = Part(self._archive.fd, self._archive.offset, self._archive.size)
        part.seek(offset)
        return part


# ---- archives of a root file system ----------------------------------------------------------------------------------


def _archive_of(store: Store, root: str | os.PathLike[str] | BinaryIO, epoch: int | None, stack: ExitStack) -> Part:
    """The archive of it, in a file that can be read twice: its own, if it is one, and can be stored as it is."""
    if isinstance(root, (str, os.PathLike)):
        fd = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and compression_of(os.pread(fd, 6, 0)) in _LAYER_TYPES:
            return Part(fd, 0, status.st_size)
        if stat.S_ISDIR(status.st_mode):
            return _packed(store, fd, epoch, stack)
        root = stack.enter_context(open(fd, "rb", 0, closefd=False))  # noqa: SIM115  the stack is
    spool = store.spool()
    stack.callback(os.close, spool)
    for piece in chunks(root):
        _write(spool, piece)
    return Part(spool, 0, os.fstat(spool).st_size)


def _packed(store: Store, tree: int, epoch: int | None, stack: ExitStack) -> Part:
    spool = store.spool()
    stack.callback(os.close, spool)
    with open(spool, "wb", closefd=False) as out:
        pack_tree(tree, out, source_date_epoch=epoch)
    return Part(spool, 0, os.fstat(spool).st_size)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Hashing:
    """What is read of an archive goes into a hash, too."""

    def __init__(self, archive: Part, hasher: _Hash) -> None:
        self._archive, self._hasher = archive, hasher

    def read(self, n: int, /) -> bytes:
        piece = self._archive.read(n)
        self._hasher.update(piece)
        return piece


def _measured(archive: Part) -> tuple[Descriptor, Digest]:
    """What the archive is called, and what is in it."""
    kind = compression_of(os.pread(archive.fd, 6, archive.offset))
    whole, inner = hashlib.sha256(), hashlib.sha256()
    for piece in chunks(_Hashing(archive, whole)):
        if kind is not None:
            inner.update(piece)
    archive.seek(0)
    digest = Digest.of_hash(whole)
    return Descriptor(_LAYER_TYPES[kind], digest, archive.size), digest if kind is None else Digest.of_hash(inner)


# ---- trees -----------------------------------------------------------------------------------------------------------


def _upper_of(overlay: OverlayFS | str | os.PathLike[str]) -> str | os.PathLike[str]:
    if isinstance(overlay, (str, os.PathLike)):
        return overlay
    if overlay.upper is None:
        raise InvalidValue("this overlay's changes are ephemeral: give it upper= and work= directories to commit them")
    return os.fsdecode(overlay.upper)


@contextmanager
def _tree_of(root: OverlayFS | MountTree | str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor of the merged tree."""
    with ExitStack() as stack:
        if isinstance(root, (str, os.PathLike)):
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            tree = root if isinstance(root, MountTree) else stack.enter_context(root.mount())
            fd = tree.open("/", os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, fd)
        yield fd
