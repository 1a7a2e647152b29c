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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, Self

from ..bind import Bind
from ..errors import InvalidValue, SyscallError, syscall_error
from ..kernel import calls
from ..kernel.fd import Fd
from ..layers.files import Draft, FileStatus, Where, file_attributes, pack_files, unpack_files
from ..volumes.row import TREE
from ..volumes.volume_mounts import VolumeMount
from .access import Tree, tree
from .events import emit

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

    In a directory of the host that the container may write to no link of the host's side is followed, either: a program
    in it may have put it there (CVE-2026-103916).

    The files belong to the container's root; with ``archive`` to the ids that they have on the host (root only), and
    those of an archive to the ids that it names. Devices and sockets are left out. A file is there whole or not at all.

    Raises SyscallError, NotFound among them, and InvalidLayer for what is no archive.
    """
    if not isinstance(source, (str, bytes, os.PathLike)):
        put_archive(container, path, source)
        return
    with ExitStack() as stack:
        local = _Local(_guarded(container, source, stack), source, follow_link, stack)
        files = stack.enter_context(tree(container))
        inside = _inside(path)
        target = _Target(files.process.locate(files.fileno(), inside), inside)
        directory, name = target.choose(local.status.is_directory, local.contents, local.name)
        owner = None if archive and os.geteuid() == 0 else (0, 0)
        if local.status.is_file:
            local.send_file(files, _join(directory, name), owner)
            emit(container, "extract-to-dir", path=os.fsdecode(inside))
            return
        large: list[bytes] = []
        _piped(
            lambda out: local.pack(out, name, owner, large),
            lambda fd: files.process.unpack_files(files.fileno(), directory, fd),
        )
        for below in large:
            local.send_large(files, below, _join(_join(directory, name), below), owner)
        emit(container, "extract-to-dir", path=os.fsdecode(inside))


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
        guarded = _guarded(container, destination, stack)
        target = _Target(_locate_local(guarded, destination, stack), os.fsencode(destination))
        parent, name = target.choose(status.is_directory, contents, _name_of(inside) or where.name)
        owners = archive and os.geteuid() == 0
        fd = stack.enter_context(Fd(_open(parent, _DIRECTORY))).fileno()
        emit(container, "archive-path", path=os.fsdecode(inside))
        if status.is_file:
            _receive_file(files, where.path, fd, name, owners, archive)
            return
        large: list[bytes] = []
        _piped(
            lambda out: files.process.pack_files(files.fileno(), where.path, out, name, aside=large),
            lambda pipe: _unpack_here(fd, pipe, owners, archive),
        )
        for below in large:
            above, _, last = _join(name, below).rpartition(b"/")
            with Fd(calls.open_in_root(fd, above, _DIRECTORY)) as directory:
                path_inside = _join(where.path, below)
                _receive_file(files, path_inside, directory.fileno(), last, owners, archive, late=True)


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
        emit(container, "extract-to-dir", path=os.fsdecode(inside))


def get_archive(container: Container, path: StrPath, *, follow_link: bool = False, mounts: bool = True) -> PathArchive:
    """What is at a path as a tar archive, in pieces; close it, or use it as a context manager.

    The top of the archive is called as the path's last name; with ``"/."`` at its end the archive has what is in it.
    Without ``mounts``, what is mounted in it is not in the archive.
    """
    found = PathArchive(container, _inside(path), follow_link, mounts)
    if mounts:  # an export says so itself
        emit(container, "archive-path", path=os.fsdecode(_inside(path)))
    return found


class PathArchive:
    """An archive of a container's files, as bytes to iterate over, with ``for`` or ``async for``.

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

    async def __aiter__(self) -> AsyncIterator[bytes]:
        import asyncio

        while piece := await asyncio.to_thread(os.read, self._flow.fileno(), _PIECE):
            yield piece
        await asyncio.to_thread(self._flow.check)

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
    return directory.rstrip(b"/") + b"/" + name if name else directory


def _there(where: Where, path: bytes) -> FileStatus:
    if where.status is None:
        raise syscall_error(errno.ENOENT, "stat", os.fsdecode(path), "there is nothing of this name in the container")
    return where.status


def _path_status(path: bytes, found: FileStatus) -> PathStatus:
    name = os.fsdecode(_name_of(path) or b"/")
    link = os.fsdecode(found.link)
    return PathStatus(name, found.size, found.mode, found.mtime_ns / 1e9, found.uid, found.gid, link)


# ---- the host's side -------------------------------------------------------------------------------------------------


_LINK_AS_DESTINATION = (
    "it is a symbolic link, which an earlier copy from a container may have put there: name what it leads to, or end "
    "the name of a directory with '/'"
)
_NOT_FOLLOWED = "on the host no link is followed that the container may have made: name what it leads to"


class _Guarded(NamedTuple):
    """A path of the host below a directory that the container may write to, too."""

    base: int
    rest: bytes

    def open(self, path: bytes, flags: int) -> int:
        """What is below it, without a link on the way."""
        try:
            return calls.openat2(self.base, path or b".", flags, resolve=_NO_LINKS)
        except SyscallError as error:
            hint = None
            if error.errno in (errno.ELOOP, errno.EXDEV):
                hint = _NOT_FOLLOWED
            raise syscall_error(error.errno or 0, "openat2", os.fsdecode(self.rest), hint) from None


_NO_LINKS = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS


def _guarded(container: Container, path: StrPath, stack: ExitStack) -> _Guarded | None:
    """The path, if it lies in something that is mounted in the container, and not read-only."""
    shared = list(_shared(container))
    given = os.path.abspath(calls.encode(path))
    above = given
    while shared:
        with suppress(OSError):
            found = os.stat(above)
            if any(os.path.samestat(found, each) for each in shared) and stat.S_ISDIR(found.st_mode):
                base = stack.enter_context(Fd(os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
                return _Guarded(base.fileno(), given[len(above) :].strip(b"/"))
        if above == b"/":
            break
        above = os.path.dirname(above)
    return None


def _shared(container: Container) -> Iterator[os.stat_result]:
    """Directories of the host that the container may write to."""
    for mount in container.spec.mounts:
        if isinstance(mount, VolumeMount):
            source: StrPath = f"{container._store.path}/volumes/{mount.volume}/{TREE}"
        elif isinstance(mount, Bind) and not mount.read_only and isinstance(mount.source, (str, bytes, os.PathLike)):
            source = mount.source
        else:
            continue
        with suppress(OSError):
            yield os.stat(source)


class _Local:
    """A file or directory of the host that is to be copied."""

    def __init__(self, guarded: _Guarded | None, source: StrPath, follow: bool, stack: ExitStack) -> None:
        path = calls.encode(source)
        self.contents, is_directory = _ends(path)
        follow = follow or is_directory
        self.name = os.path.basename(os.path.abspath(path))
        parent = self._parent(guarded, path, stack)
        try:
            found = os.stat(self.name or b".", dir_fd=parent, follow_symlinks=follow and guarded is None)
        except OSError as error:
            raise syscall_error(error.errno or 0, "stat", os.fsdecode(path), "the source of the copy") from None
        if follow and stat.S_ISLNK(found.st_mode):
            raise syscall_error(errno.ELOOP, "open", os.fsdecode(path), _NOT_FOLLOWED)
        if is_directory and not stat.S_ISDIR(found.st_mode):
            raise syscall_error(errno.ENOTDIR, "copy", os.fsdecode(path), "it is no directory")
        self._fd = parent
        if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode):
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow and guarded is None else os.O_NOFOLLOW)
            self._fd = stack.enter_context(Fd(_open(self.name or b".", flags, parent))).fileno()
            found = os.fstat(self._fd)
        self.status = _file_status(found)

    @staticmethod
    def _parent(guarded: _Guarded | None, path: bytes, stack: ExitStack) -> int:
        if guarded is not None and guarded.rest:
            fd = guarded.open(os.path.dirname(guarded.rest), _DIRECTORY)
        else:
            fd = _open(os.path.dirname(os.path.abspath(path)), _DIRECTORY)
        return stack.enter_context(Fd(fd)).fileno()

    def send_file(self, files: Tree, path: bytes, owner: tuple[int, int] | None) -> None:
        _send(files, path, self._fd, self.status, owner)

    def send_large(self, files: Tree, below: bytes, path: bytes, owner: tuple[int, int] | None) -> None:
        """A file of the directory, whose place in the container is made already."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
        with Fd(calls.openat2(self._fd, below, flags, resolve=_NO_LINKS)) as fd:
            found = os.fstat(fd.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise syscall_error(errno.EINVAL, "open", os.fsdecode(below), "it is no file any more")
            _send(files, path, fd.fileno(), _file_status(found), owner, late=True)

    def pack(self, out: int, top: bytes, owner: tuple[int, int] | None, large: list[bytes]) -> None:
        path = b"/" if self.status.is_directory else b"/" + self.name
        with open(out, "wb", buffering=_PIECE, closefd=False) as file:
            pack_files(self._fd, path, file, top, owner=owner, aside=large)


def _send(
    files: Tree, path: bytes, fd: int, status: FileStatus, owner: tuple[int, int] | None, *, late: bool = False
) -> None:
    xattrs = file_attributes(fd) if owner is None else None
    if owner is not None:
        status = status._replace(uid=owner[0], gid=owner[1])
    files.process.write_file(files.fileno(), path, fd, status, xattrs, late=late)


def _open(path: StrPath, flags: int, directory: int | None = None) -> int:
    try:
        return os.open(path, flags, dir_fd=directory)
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", os.fsdecode(path), "the host's side of the copy") from None


def _locate_local(guarded: _Guarded | None, destination: StrPath, stack: ExitStack) -> Where:
    """As :func:`locate`, in the whole of the host, where links are the caller's own; but for the last name, which an
    earlier copy to the same place may have brought.
    """
    if guarded is not None:
        return _locate_guarded(guarded, stack)
    given = calls.encode(destination)
    if os.path.islink(given):
        raise syscall_error(errno.ELOOP, "copy", os.fsdecode(given), _LINK_AS_DESTINATION)
    path = os.path.realpath(given)
    directory, name = os.path.split(path)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return Where(directory, name, None)
    except OSError as error:
        raise syscall_error(error.errno or 0, "stat", os.fsdecode(path), "the destination of the copy") from None
    return Where(directory, name, _file_status(found))


def _locate_guarded(guarded: _Guarded, stack: ExitStack) -> Where:
    """A directory there is named by its descriptor, so that it is the one that was looked at."""
    above, name = os.path.split(guarded.rest)
    parent = stack.enter_context(Fd(guarded.open(above, _DIRECTORY))).fileno()
    try:
        found = os.stat(name or b".", dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return Where(b"/proc/self/fd/%d" % parent, name, None)
    if stat.S_ISREG(found.st_mode):
        return Where(b"/proc/self/fd/%d" % parent, name, _file_status(found))
    itself = stack.enter_context(Fd(guarded.open(guarded.rest, _DIRECTORY))).fileno()
    return Where(b"/proc/self/fd/%d" % itself, b"", _file_status(os.fstat(itself)))


def _file_status(found: os.stat_result) -> FileStatus:
    return FileStatus(found.st_mode, found.st_size, found.st_mtime_ns, found.st_uid, found.st_gid, b"")


def _receive_file(
    files: Tree, path: bytes, directory: int, name: bytes, owners: bool, privileges: bool, *, late: bool = False
) -> None:
    with Draft(directory, name, late=late) as draft:
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
