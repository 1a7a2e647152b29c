"""Work on the files of volumes: by root itself, and for an ordinary user in a process with his subordinate ids.

An archive is read in a process apart for everybody: it may be a stranger's.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from ..errors import Unsupported
from ..kernel.fd import Fd
from ..mounttree import MountTree
from ..storage.locks import lock
from .row import TREE, find, has_image, open_directory

if TYPE_CHECKING:
    from ..layers.compression import Compression
    from ..layers.pack import Packed
    from ..layers.usage import TreeUsage
    from ..store import Store
    from ..tree_process import TreeProcess

__all__ = ["NEW", "copy", "end_first_use", "filling", "is_empty", "pack", "process", "size", "unpack"]

NEW = "new"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def process(*places: str) -> TreeProcess:
    """One that works below these directories: with all ids of this user, or for root with those of the files."""
    from ..idmap import IdMap
    from ..tree_process import TreeProcess

    if os.geteuid() == 0:
        return TreeProcess(places)
    try:
        idmap = IdMap.subordinate()
    except Unsupported:
        idmap = None
    return TreeProcess(places, idmap=idmap)


def copy(store: Store, source: int, target: int) -> None:
    """All of one tree into another, an empty one (layers.copy): data is shared where the file system can."""
    if os.geteuid() == 0:
        from ..layers.copy import copy_tree

        copy_tree(source, target)
        return
    with process(f"{store.path}/volumes", f"{store.path}/staging") as worker:
        worker.copy_tree(source, target)


def size(store: Store, tree: int) -> TreeUsage:
    """What a tree takes on disk."""
    from ..layers.usage import usage

    try:
        return usage(tree)
    except PermissionError:
        with process(f"{store.path}/volumes") as worker:
            return worker.usage(tree)


def pack(store: Store, tree: int, out: BinaryIO, compression: Compression | None) -> Packed:
    """A tree as a tar archive."""
    if os.geteuid() == 0:
        from ..layers.pack import pack_tree

        return pack_tree(tree, out, compression=compression)
    number = _fileno(out)
    with ExitStack() as stack:
        if number is None:
            number = store.spool()
            stack.callback(os.close, number)
        else:
            out.flush()
        with process(f"{store.path}/volumes") as worker:
            packed = worker.pack_tree(tree, number, compression=compression)
        if number != _fileno(out):
            for piece in _pieces(number):
                out.write(piece)
    return packed


def unpack(store: Store, source: BinaryIO, target: int) -> None:
    """A tar archive, compressed or not, into an empty directory of a volume."""
    from ..tree_process import TreeProcess

    number = _fileno(source)
    with ExitStack() as stack:
        if number is None:
            number = store.spool()
            stack.callback(os.close, number)
            with open(number, "wb", closefd=False) as spool:
                while piece := source.read(1 << 20):
                    spool.write(piece)
            os.lseek(number, 0, os.SEEK_SET)
        else:
            number = os.dup(number)
            stack.callback(os.close, number)
            if source.seekable():  # what Python has read ahead is to be read again
                os.lseek(number, source.tell(), os.SEEK_SET)
        if os.fstat(target).st_dev != os.fstat(store.home.directory("volumes")).st_dev:
            with MountTree(os.dup(target)) as mount, TreeProcess([mount]) as worker:  # it moves into the process
                worker.apply(number, target)
            return
        with process(f"{store.path}/volumes") as worker:
            worker.apply(number, target)


def _fileno(file: BinaryIO) -> int | None:
    try:
        return file.fileno()
    except (OSError, AttributeError):
        return None


def _pieces(fd: int) -> Iterator[bytes]:
    os.lseek(fd, 0, os.SEEK_SET)
    while piece := os.read(fd, 1 << 20):
        yield piece


# ---- a volume that is filled once ------------------------------------------------------------------------------------


@contextmanager
def filling(store: Store, name: str) -> Iterator[int | None]:
    """A descriptor of an empty directory, which becomes the volume's tree when the block ends without an error, and is
    then on the device: a kill or a full disk at any moment leaves the volume empty, or whole.

    None when the first use of the volume is over. One program at a time: others wait, and get None. Raises OSError
    (ENOTEMPTY) when something has been written into the volume meanwhile.
    """
    directory = open_directory(store.home, name)
    with ExitStack() as stack:
        stack.callback(os.close, directory)
        stack.enter_context(lock(directory, "lock"))
        with store.database.read() as rows:
            row = find(rows, name)
        if row is None or row.copied:
            yield None
            return
        size = json.loads(row.options).get("size")
        with _new_tree(store, directory) if size is None else _new_image(store, directory, size) as new:
            yield new
        end_first_use(store, name)


@contextmanager
def _new_tree(store: Store, directory: int) -> Iterator[int]:
    store.trash.take(directory, NEW)
    os.mkdir(NEW, 0o755, dir_fd=directory)
    try:
        with Fd(os.open(NEW, _DIRECTORY, dir_fd=directory)) as new:
            os.fchmod(new.fileno(), 0o755)
            yield new.fileno()
        store.home.sync()
        os.rename(NEW, TREE, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        store.trash.take(directory, NEW)


@contextmanager
def _new_image(store: Store, directory: int, size: int) -> Iterator[int]:
    """The same for a volume of bounded size: another file system takes the place of its own."""
    from .images import IMAGE, NEW_IMAGE, make_image, mount_image

    store.trash.take(directory, NEW_IMAGE)
    try:
        make_image(directory, NEW_IMAGE, size)
        with mount_image(directory, NEW_IMAGE) as new:
            yield new.fileno()
        store.home.sync()
        if not is_empty(directory, locked=True):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        os.rename(NEW_IMAGE, IMAGE, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        store.trash.take(directory, NEW_IMAGE)


def end_first_use(store: Store, name: str) -> None:
    """From now on what the image has is not copied into it. A power cut may undo that; it is then found not empty."""
    with store.database.write(durable=False) as rows:
        rows.execute("UPDATE volumes SET copied = 1 WHERE name = ?", (name,))


def is_empty(directory: int, *, locked: bool = False) -> bool:
    """Whether a volume's directory has an empty tree; one that this user may not read has been used. ``locked`` says
    that the caller has the volume's lock."""
    try:
        if has_image(directory):
            from .images import IMAGE, mount_locked, mount_shared

            with mount_locked(directory, IMAGE) if locked else mount_shared(directory) as mount:
                tree = mount.open("/", _DIRECTORY)
        else:
            tree = os.open(TREE, _DIRECTORY, dir_fd=directory)
    except PermissionError:
        return False
    with Fd(tree):
        return not os.listdir(tree)
