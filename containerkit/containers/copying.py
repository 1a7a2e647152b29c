"""Copies into a container and out of it, by docker cp's rules, whether it runs or not.

Two processes share each copy. What the host's side is, this one opens, and says what becomes of it; the container's
side belongs to a process of ours in the container's user namespace (:mod:`.access`), which has the descriptor of the
container's root and reaches nothing else. A single file passes as a descriptor, and the kernel copies it; all else
passes as an archive, which the receiving side believes no more than any other stranger's (:mod:`..layers.files`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, Self

from ..errors import InvalidValue, syscall_error
from ..kernel import calls
from ..kernel.fd import Fd
from ..layers.files import Draft, FileStatus, Where, file_attributes, pack_files, unpack_files
from .access import Tree, tree

if TYPE_CHECKING:
    from ..kernel.calls import StrPath
    from .container import Container

__all__ = ["PathArchive", "PathStatus", "copy_in", "copy_out", "get_archive", "put_archive", "stat_path"]

_PIECE = 1 << 20
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Source(Protocol):
    """What an archive is read from."""

    def read(self, n: int, /) -> bytes: ...


class PathStatus(NamedTuple):
    """What is at a path in a container. ``mode`` is st_mode, ``mtime`` seconds since 1970, the ids are as inside."""

    name: str
    size: int
    mode: int
    mtime: float
    uid: int
    gid: int
    link_target: str


def stat_path(container: Container, path: StrPath) -> PathStatus:
    """What is at a path; of a link, the link. Raises NotFound."""
    with tree(container) as files:
        inside = _inside(path)
        return _path_status(inside, _there(files.process.locate(files.fileno(), inside, follow=False), inside))


def copy_in(
    container: Container,
    source: StrPath | BinaryIO,
    path: StrPath,
    *,
    archive: bool = False,
    follow_link: bool = False,
) -> None:
    """Copy a file or a directory of the host into a container, or an archive (an open binary file) into a directory.

    As ``docker cp`` does it: a directory that is there gets the source in it, and what is in the source where that ends
    with ``"/."`` (as a string: pathlib drops it). Where there is nothing the copy gets that name, in a directory that
    must be there. A link is copied as a link unless ``follow_link``, and at the destination it is followed, in the
    container. A directory that is there keeps its owner, mode and times.

    The files belong to the container's root; with ``archive`` to the ids that they have on the host (root only), and
    those of an archive to the ids that it names. Devices and sockets are left out. A file is there whole or not at all.

    Raises NotFound, NotADirectoryError's and IsADirectoryError's SyscallError, InvalidLayer for what is no archive.
    """
    if not isinstance(source, (str, bytes, os.PathLike)):
        put_archive(container, path, source)
        return
    with ExitStack() as stack:
        local = _Local(source, follow_link, stack)
        files = stack.enter_context(tree(container))
        inside = _inside(path)
        target = _Target(files.process.locate(files.fileno(), inside), inside)
        directory, name = target.choose(local.status.is_directory, local.contents, local.name)
        owner = None if archive and os.geteuid() == 0 else (0, 0)
        if local.status.is_file:
            local.send_file(files, _join(directory, name), owner)
            return
        _piped(
            lambda out: local.pack(out, name, owner),
            lambda fd: files.process.unpack_files(files.fileno(), directory, fd),
        )


def copy_out(
    container: Container,
    path: StrPath,
    destination: StrPath | BinaryIO,
    *,
    archive: bool = False,
    follow_link: bool = False,
) -> None:
    """Copy a file or a directory of a container to the host, or as an archive to an open binary file.

    The rules are those of :func:`copy_in`. What is mounted in the container belongs to it, but for /proc, /sys and
    their like. The files belong to the caller, and have no set-id bits and no capabilities, because whoever is root in
    the container chose them; with ``archive`` they keep these, and root gives them the owners that they have inside.
    """
    if not isinstance(destination, (str, bytes, os.PathLike)):
        with get_archive(container, path, follow_link=follow_link) as found:
            for piece in found:
                destination.write(piece)
        return
    with ExitStack() as stack:
        files = stack.enter_context(tree(container))
        inside = _inside(path)
        contents, is_directory = _ends(inside)
        where = files.process.locate(files.fileno(), inside, follow=follow_link or is_directory)
        status = _there(where, inside)
        if is_directory and not status.is_directory:
            raise syscall_error(errno.ENOTDIR, "copy", os.fsdecode(inside), "it is no directory in the container")
        target = _Target(_locate_local(destination), os.fsencode(destination))
        parent, name = target.choose(status.is_directory, contents, _name_of(inside) or where.name)
        owners = archive and os.geteuid() == 0
        fd = stack.enter_context(Fd(_open_directory(parent))).fileno()
        if status.is_file:
            _receive_file(files, where.path, fd, name, owners, archive)
            return
        _piped(
            lambda out: files.process.pack_files(files.fileno(), where.path, out, name),
            lambda pipe: _unpack_here(fd, pipe, owners, archive),
        )


def put_archive(container: Container, path: StrPath, archive: Source | bytes) -> None:
    """Make the files of an archive, compressed or not, in a directory of a container, with the ids that it names.

    It is read and decompressed by our own process in the container's ids. Raises InvalidLayer, and SyscallError for a
    path that is no directory.
    """
    with tree(container) as files:
        inside = _inside(path)
        where = files.process.locate(files.fileno(), inside)
        if not _there(where, inside).is_directory:
            raise syscall_error(errno.ENOTDIR, "copy", os.fsdecode(inside), "an archive is unpacked in a directory")
        _piped(
            lambda out: _feed(archive, out),
            lambda fd: files.process.unpack_files(files.fileno(), where.path, fd),
        )


def get_archive(container: Container, path: StrPath, *, follow_link: bool = False, mounts: bool = True) -> PathArchive:
    """What is at a path as a tar archive, in pieces; close it, or use it as a context manager.

    The top of the archive is called as the path's last name; with ``"/."`` at its end the archive has what is in it.
    Without ``mounts``, what is mounted in it is not in the archive.
    """
    return PathArchive(container, _inside(path), follow_link, mounts)


class PathArchive:
    """An archive of a container's files, as bytes to iterate over.

    Attributes:
        status: what is at the path.
    """

    def __init__(self, container: Container, path: bytes, follow: bool, mounts: bool) -> None:
        self._stack = ExitStack()
        try:
            files = self._stack.enter_context(tree(container))
            contents, is_directory = _ends(path)
            where = files.process.locate(files.fileno(), path, follow=follow or is_directory)
            found = _there(where, path)
            if is_directory and not found.is_directory:
                raise syscall_error(errno.ENOTDIR, "copy", os.fsdecode(path), "it is no directory in the container")
            self.status = _path_status(path, found)
            top = b"" if contents else _name_of(path) or where.name
            self._flow = _Flow(
                lambda out: files.process.pack_files(files.fileno(), where.path, out, top, mounts=mounts)
            )
            self._stack.callback(self._flow.close)
        except BaseException:
            self._stack.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        while piece := os.read(self._flow.fileno(), _PIECE):
            yield piece
        self._flow.check()

    def close(self) -> None:
        """Idempotent; an archive that was not read to its end is given up."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# ---- docker's rules --------------------------------------------------------------------------------------------------


class _Target:
    """Where a copy goes: ``where`` follows links, ``path`` is as it was given."""

    def __init__(self, where: Where, path: bytes) -> None:
        self._where, self._path = where, path
        self._contents, self._wants_directory = _ends(path)

    def choose(self, is_directory: bool, contents: bool, name: bytes) -> tuple[bytes, bytes]:
        """The directory to copy to, and the name there; no name: what is in the source goes into the directory.

        The table is images.md F1, docker's own (go-archive, copy_unix_test.go).
        """
        where, found = self._where, self._where.status
        if found is None:
            if self._wants_directory and not is_directory:
                raise self._error(errno.ENOENT, "no such directory")
            return where.directory or b"/", where.name
        if found.is_directory:
            return where.path or b"/", b"" if contents else name
        if is_directory:
            raise self._error(errno.ENOTDIR, "a directory cannot be copied onto what is none")
        if self._wants_directory:
            raise self._error(errno.ENOTDIR, "it is no directory")
        return where.directory or b"/", where.name

    def _error(self, number: int, hint: str) -> OSError:
        return syscall_error(number, "copy", os.fsdecode(self._path), hint)


def _ends(path: bytes) -> tuple[bool, bool]:
    """Whether a path means what is in it ("/."), and whether it can only be a directory's."""
    contents = path == b"." or path.endswith(b"/.")
    return contents, contents or path.endswith((b"/", b"/..")) or path == b".."


def _name_of(path: bytes) -> bytes:
    """The last name of a path; nothing for one that does not end in one."""
    last = path.rstrip(b"/").rpartition(b"/")[2]
    return b"" if last in (b".", b"..") else last


def _inside(path: StrPath) -> bytes:
    """A path in a container: relative ones start at its root."""
    raw = calls.encode(path)
    if not raw:
        raise InvalidValue("the path in the container is empty: '/' is its root")
    return raw if raw.startswith(b"/") else b"/" + raw


def _join(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name


def _there(where: Where, path: bytes) -> FileStatus:
    if where.status is None:
        raise syscall_error(errno.ENOENT, "stat", os.fsdecode(path), "there is nothing of this name in the container")
    return where.status


def _path_status(path: bytes, found: FileStatus) -> PathStatus:
    name = os.fsdecode(_name_of(path) or b"/")
    link = os.fsdecode(found.link)
    return PathStatus(name, found.size, found.mode, found.mtime_ns / 1e9, found.uid, found.gid, link)


# ---- the host's side -------------------------------------------------------------------------------------------------


class _Local:
    """A file or directory of the host that is to be copied."""

    def __init__(self, source: StrPath, follow: bool, stack: ExitStack) -> None:
        path = calls.encode(source)
        self.contents, is_directory = _ends(path)
        self._path = os.path.abspath(path)
        self.name = os.path.basename(self._path)
        try:
            found = os.stat(path, follow_symlinks=follow or is_directory)
        except OSError as error:
            raise syscall_error(error.errno or 0, "stat", os.fsdecode(path), "the source of the copy") from None
        if is_directory and not stat.S_ISDIR(found.st_mode):
            raise syscall_error(errno.ENOTDIR, "copy", os.fsdecode(path), "it is no directory")
        if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode):
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow or is_directory else os.O_NOFOLLOW)
            self._fd = stack.enter_context(Fd(_open(path, flags))).fileno()
            found = os.fstat(self._fd)
        else:
            self._fd = stack.enter_context(Fd(_open_directory(os.path.dirname(self._path)))).fileno()
        self.status = FileStatus(found.st_mode, found.st_size, found.st_mtime_ns, found.st_uid, found.st_gid, b"")

    def send_file(self, files: Tree, path: bytes, owner: tuple[int, int] | None) -> None:
        xattrs = file_attributes(self._fd) if owner is None else None
        status = self.status if owner is None else self.status._replace(uid=owner[0], gid=owner[1])
        files.process.write_file(files.fileno(), path, self._fd, status, xattrs)

    def pack(self, out: int, top: bytes, owner: tuple[int, int] | None) -> None:
        with open(out, "wb", buffering=_PIECE, closefd=False) as file:
            pack_files(self._fd, b"/" if self.status.is_directory else b"/" + self.name, file, top, owner=owner)


def _open(path: StrPath, flags: int) -> int:
    try:
        return os.open(path, flags)
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", os.fsdecode(path), "the host's side of the copy") from None


def _open_directory(path: StrPath) -> int:
    return _open(path, _DIRECTORY)


def _locate_local(destination: StrPath) -> Where:
    """As :func:`locate`, in the whole of the host, where links are the caller's own."""
    path = os.path.realpath(calls.encode(destination))
    directory, name = os.path.split(path)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return Where(directory, name, None)
    except OSError as error:
        raise syscall_error(error.errno or 0, "stat", os.fsdecode(path), "the destination of the copy") from None
    status = FileStatus(found.st_mode, found.st_size, found.st_mtime_ns, found.st_uid, found.st_gid, b"")
    return Where(directory, name, status)


def _receive_file(files: Tree, path: bytes, directory: int, name: bytes, owners: bool, privileges: bool) -> None:
    with Draft(directory, name) as draft:
        status = files.process.read_file(files.fileno(), path, draft.fd)
        mode = status.mode if privileges else status.mode & ~_SET_IDS
        if not owners:
            own = os.fstat(draft.fd)
            status = status._replace(uid=own.st_uid, gid=own.st_gid)
        draft.dress(status._replace(mode=mode))
        draft.keep()


def _unpack_here(directory: int, pipe: int, owners: bool, privileges: bool) -> None:
    with open(pipe, "rb", buffering=0, closefd=False) as source:
        unpack_files(directory, b"", source, owners=owners, privileges=privileges)


# ---- between them ----------------------------------------------------------------------------------------------------


def _feed(archive: Source | bytes, out: int) -> None:
    if isinstance(archive, (bytes, bytearray, memoryview)):
        _write(out, archive)
        return
    while piece := archive.read(_PIECE):
        _write(out, piece)


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Flow:
    """A pipe that a thread writes to; closed at the reading end, it ends the thread."""

    def __init__(self, write: Callable[[int], Any]) -> None:
        self._read, self._out = map(Fd, os.pipe2(os.O_CLOEXEC))
        self._write, self.error = write, None
        with suppress(OSError):  # a user has only so much memory for pipes (pipe(7))
            fcntl.fcntl(self._out.fileno(), fcntl.F_SETPIPE_SZ, _PIECE)
        self._thread = threading.Thread(target=self._run, name="ck-copy", daemon=True)
        self._thread.start()

    error: BaseException | None

    def _run(self) -> None:
        try:
            self._write(self._out.fileno())
        except BaseException as error:  # raised by check()
            self.error = error
        finally:
            self._out.close()

    def fileno(self) -> int:
        """Where to read."""
        return self._read.fileno()

    def check(self) -> None:
        """Raise what has ended the writer too early."""
        self._thread.join()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Idempotent."""
        self._read.close()
        self._thread.join()


def _piped(write: Callable[[int], Any], read: Callable[[int], Any]) -> None:
    """Let one side write while the other reads. An error of the writer is the reason for the reader's."""
    flow = _Flow(write)
    try:
        try:
            read(flow.fileno())
        except BaseException:
            flow.close()
            if flow.error is not None and getattr(flow.error, "errno", 0) != errno.EPIPE:
                raise flow.error from None
            raise
        flow.check()
    finally:
        flow.close()
