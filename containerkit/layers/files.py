"""Files of a tree by their paths: looked up, read, written and archived as a process would see them whose root it is.

Somebody may change the tree meanwhile, on purpose. Every path is resolved from the descriptor of the root with
RESOLVE_IN_ROOT (openat2(2)), and what was found is used by its descriptor: no link leads out, whenever it appears. A
file is written under another name and renamed, so that what is there is the old one or the new one, whole (rename(2)).

An archive of files differs from a layer (:mod:`.apply`): a name that begins with ``.wh.`` is a name; a directory that
is there keeps its attributes; and neither does a file replace a directory, nor a directory a file.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InvalidLayer, SyscallError, syscall_error
from ..kernel import calls
from ..kernel.fd import Fd
from .apply import Applying
from .compression import Readable, chunks
from .copy import fill
from .entry import Entry, Kind
from .limits import LayerLimits
from .pack import Packing
from .tar import Archive
from .tarwriter import TarWriter, Writable
from .walk import Found, attributes, walk

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Draft", "FileStatus", "Where", "locate", "pack_files", "read_file", "unpack_files", "write_file"]

_LINKS_MAX = 40  # as the kernel's own (path_resolution(7))
_PATH = os.O_PATH | os.O_DIRECTORY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_DRAFT = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_LARGE = 4 << 20  # bytes from which a file is worth a request of its own
_DEVICES = (Kind.CHARACTER, Kind.BLOCK)


class FileStatus(NamedTuple):
    """What is at a path: as stat(2) has it, and where a link leads."""

    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    link: bytes

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Where(NamedTuple):
    """What a path means: a name in a directory, which is there. The name is empty where the path is a directory's own,
    like "/" or ".."; ``status`` is None when there is nothing of that name."""

    directory: bytes
    name: bytes
    status: FileStatus | None

    @property
    def path(self) -> bytes:
        return self.directory + b"/" + self.name if self.name else self.directory


def locate(root: int, path: bytes, *, follow: bool = True) -> Where:
    """What ``path`` means in a tree. With ``follow`` a link is what it leads to, also when nothing is there.

    Raises SyscallError for a directory above it that is missing, or is none.
    """
    for _ in range(_LINKS_MAX):
        parent, _, last = path.rstrip(b"/").rpartition(b"/")
        if last in (b"", b".", b".."):
            with Fd(calls.open_in_root(root, path, _PATH)) as fd:
                return Where(path, b"", _status(os.fstat(fd.fileno())))
        with Fd(calls.open_in_root(root, parent or b"/", _PATH)) as directory:
            try:
                found = os.stat(last, dir_fd=directory.fileno(), follow_symlinks=False)
                link = os.readlink(last, dir_fd=directory.fileno()) if stat.S_ISLNK(found.st_mode) else b""
            except FileNotFoundError:
                return Where(parent, last, None)
            except OSError as error:  # it was a link, a moment ago
                raise syscall_error(error.errno or 0, "stat", os.fsdecode(path)) from None
        if not (link and follow):
            return Where(parent, last, _status(found, link))
        path = link if link.startswith(b"/") else parent + b"/" + link
    raise syscall_error(errno.ELOOP, "openat2", os.fsdecode(path), "links lead in a circle")


def _status(found: os.stat_result, link: bytes = b"") -> FileStatus:
    return FileStatus(found.st_mode, found.st_size, found.st_mtime_ns, found.st_uid, found.st_gid, link)


# ---- one file --------------------------------------------------------------------------------------------------------


def read_file(root: int, path: bytes, out: int) -> FileStatus:
    """Copy the content of a file of the tree to an empty one, which ``out`` is of; what it was when that began."""
    with Fd(calls.open_in_root(root, path, _READ)) as fd:
        found = os.fstat(fd.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise syscall_error(errno.EINVAL, "open", os.fsdecode(path), "it is no file any more")
        with _told(path):
            fill(fd.fileno(), out, found.st_size)
    return _status(found)


def write_file(
    root: int,
    path: bytes,
    source: int,
    status: FileStatus,
    xattrs: dict[bytes, bytes] | None = None,
    *,
    late: bool = False,
) -> None:
    """Copy what ``source`` has, ``status.size`` bytes, to a file of the tree, in place of one that is there.

    ``late``: its directory keeps its time.
    """
    parent, _, last = path.rstrip(b"/").rpartition(b"/")
    with (
        Fd(calls.open_in_root(root, parent or b"/", _PATH)) as directory,
        Draft(directory.fileno(), last, late=late) as draft,
        _told(path),
    ):
        if status.size:
            fill(source, draft.fd, status.size)
        draft.dress(status, xattrs)
        draft.keep()


@contextmanager
def _told(path: bytes) -> Iterator[None]:
    """What the kernel refuses is said with its path, and with what it means here."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (InvalidLayer, SyscallError)) or not error.errno:
            raise
        raise syscall_error(error.errno, "copy", os.fsdecode(path), _hint(error.errno)) from None


class Draft:
    """A new file, under a name of its own until it is whole. A context manager: at its end it is gone unless kept.

    Attributes:
        fd: to fill it by; closed at the end.
    """

    def __init__(self, directory: int, name: bytes, *, late: bool = False) -> None:
        """``late``: the directory, which was complete but for it, keeps its time."""
        self._directory, self._name = directory, name
        self._before = os.fstat(directory) if late else None
        self._own = b".ck-%s-%d.part" % (_mark(os.getpid()), next(_numbers))
        try:
            self.fd = os.open(self._own, _DRAFT, 0o600, dir_fd=directory)
        except OSError as error:
            raise syscall_error(error.errno or 0, "open", os.fsdecode(name), _hint(error.errno)) from None
        self._kept = False

    def dress(self, status: FileStatus, xattrs: dict[bytes, bytes] | None = None) -> None:
        """Owner, mode, attributes, time: in this order each keeps what came before (chown(2))."""
        own = os.fstat(self.fd)
        if (status.uid, status.gid) != (own.st_uid, own.st_gid):
            os.fchown(self.fd, status.uid, status.gid)
        os.fchmod(self.fd, stat.S_IMODE(status.mode))
        for key, value in (xattrs or {}).items():
            try:
                os.setxattr(self.fd, key, value)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
        os.utime(self.fd, ns=(status.mtime_ns, status.mtime_ns))

    def keep(self) -> None:
        """Give it its name. A file that is a mount point, as /etc/hosts is, gets the content instead."""
        if _is_mount_point(self._directory, self._name):
            self._overwrite()
            return
        try:
            os.rename(self._own, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError as error:
            raise syscall_error(error.errno or 0, "rename", os.fsdecode(self._name), _hint(error.errno)) from None
        self._kept = True

    def _overwrite(self) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(self._name, flags, dir_fd=self._directory)
        except OSError as error:
            raise syscall_error(error.errno or 0, "open", os.fsdecode(self._name), _hint(error.errno)) from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise syscall_error(errno.EBUSY, "rename", os.fsdecode(self._name), "it is a mount point")
            os.ftruncate(fd, 0)
            fill(self.fd, fd, os.fstat(self.fd).st_size)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
        if not self._kept:
            with suppress(FileNotFoundError):
                os.unlink(self._own, dir_fd=self._directory)
        if self._before is not None:
            with suppress(PermissionError):  # another's directory
                times = (self._before.st_atime_ns, self._before.st_mtime_ns)
                os.utime(f"/proc/self/fd/{self._directory}", ns=times)


_numbers = itertools.count()


@cache
def _mark(pid: int) -> bytes:
    """Two programs, in whatever pid namespaces, never take one name for their drafts."""
    return os.urandom(8).hex().encode()


def _is_mount_point(directory: int, name: bytes) -> bool:
    """Whether something is mounted there. The kernel refuses to take away only what is mounted in our own namespace:
    for others it takes the mount away as well (detach_mounts(), fs/namespace.c)."""
    above = b"/proc/self/fd/%d" % directory
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)  # mostly there is nothing, and this says it sooner
        return calls.mount_id(above + b"/" + name) != calls.mount_id(above + b"/.")
    except FileNotFoundError:
        return False


def _hint(number: int | None) -> str | None:
    return {
        errno.EISDIR: "a directory is there, and a file does not replace it",
        errno.ENOTEMPTY: "a directory is there, and a file does not replace it",
        errno.ENOTDIR: "what is there is no directory, and a directory does not replace it",
        errno.EROFS: "it is on a file system that is read-only there",
        errno.ENOSPC: "the file system is full, or has no inodes left (df, df -i)",
        errno.EBUSY: "something is mounted there",
        errno.EINVAL: "an owner may have no place in the container's ids",
    }.get(number or 0)


# ---- archives --------------------------------------------------------------------------------------------------------


def pack_files(
    root: int,
    path: bytes,
    out: Writable,
    top: bytes,
    *,
    owner: tuple[int, int] | None = None,
    follow: bool = False,
    mounts: bool = True,
    aside: list[bytes] | None = None,
) -> FileStatus:
    """Write what is at a path as an archive, in which it is called ``top``; empty: the archive has what is in it.

    What is mounted below it is in it too, but for views of the kernel's state; without ``mounts``, as an empty
    directory. ``owner`` is then everything's. Devices and links are what they are; sockets are left out.
    Large files of a directory are put into ``aside``, if that is there, and not into the archive: by their paths in the
    directory, for :func:`read_file`.

    Raises SyscallError.
    """
    where = locate(root, path, follow=follow)
    if where.status is None:
        raise syscall_error(errno.ENOENT, "stat", os.fsdecode(path))
    tar = TarWriter(out)
    packing = Packing(tar, None, False, _ids(owner))
    if where.status.is_directory:
        with Fd(calls.open_in_root(root, where.path or b"/", _DIRECTORY)) as fd:
            _pack_directory(fd.fileno(), packing, top, mounts, aside)
    else:
        with Fd(calls.open_in_root(root, where.directory or b"/", _PATH)) as fd:
            name = os.fsdecode(where.name)
            found = os.stat(name, dir_fd=fd.fileno(), follow_symlinks=False)
            packing.add(Found(top, name, fd.fileno(), found))
    tar.finish()
    return where.status


def _pack_directory(fd: int, packing: Packing, top: bytes, mounts: bool, aside: list[bytes] | None) -> None:
    packing.add(Found(top, ".", fd, os.fstat(fd)))
    for found in walk(fd, mounts="enter" if mounts else "show"):
        if aside is not None and _is_large(found.status):
            aside.append(found.path)
            continue
        packing.add(found._replace(path=top + b"/" + found.path) if top else found)


def _is_large(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size >= _LARGE and status.st_nlink == 1


def _ids(owner: tuple[int, int] | None) -> tuple[Callable[[int], int], Callable[[int], int]]:
    if owner is None:
        return (lambda uid: uid), (lambda gid: gid)
    uid, gid = owner
    return (lambda _: uid), (lambda _: gid)


def unpack_files(
    root: int,
    path: bytes,
    source: Readable,
    *,
    owners: bool = True,
    privileges: bool = True,
    limits: LayerLimits | None = None,
) -> int:
    """Make the files of an archive, compressed or not, below a directory of the tree; how many things it had.

    Devices are left out. Without ``owners`` all is the caller's. Without ``privileges`` set-id bits and capabilities of
    files are not taken: what a stranger made gets no rights by them here.

    Raises InvalidLayer for what no honest archive has, SyscallError for what cannot be made. What was made stays.
    """
    limits = limits or LayerLimits()
    archive = Archive(chunks(source, ratio_max=limits.ratio_max), limits)
    files = _Files(root, path, owners, privileges)
    count = 0
    try:
        for entry in archive:
            files.add(entry, archive)
            count += 1
        archive.drain()
        files.finish()
    finally:
        files.close()
    return count


class _Files(Applying):
    """Files are made in a tree that somebody uses."""

    def __init__(self, root: int, path: bytes, owners: bool, privileges: bool) -> None:
        super().__init__(root, True, owners)
        self._below = path.strip(b"/")
        self._privileges = privileges

    def add(self, entry: Entry, archive: Archive) -> None:
        if not entry.name:
            return  # the directory itself is there, and stays as it is
        if self._below:
            entry.name = self._below + b"/" + entry.name
            if entry.kind is Kind.HARDLINK:
                entry.link = self._below + b"/" + entry.link
        if entry.kind in _DEVICES:
            return
        if not self._privileges:
            entry.mode &= ~_SET_IDS
            entry.xattrs.pop(b"security.capability", None)
        parent, _, last = entry.name.rpartition(b"/")
        with _told(entry.name):
            self._make(entry, parent, last, archive)

    def _file(self, entry: Entry, directory: int, last: bytes, archive: Archive) -> None:
        with Draft(directory, last) as draft:
            self._fill(draft.fd, entry, archive)
            draft.keep()

    def _subdirectory(self, entry: Entry, directory: int, last: bytes) -> None:
        try:
            os.mkdir(last, 0o700, dir_fd=directory)
        except FileExistsError:
            self._keep(entry.name, os.open(last, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory))
            return
        fd = os.open(last, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            self._dress(fd, entry)
        except BaseException:
            os.close(fd)
            raise
        self._times[entry.name] = (entry.mtime_ns, entry.mtime_ns)
        self._keep(entry.name, fd)

    def _remove(self, directory: int, last: bytes, name: bytes) -> None:
        """Only what is no directory, and no mount point."""
        if _is_mount_point(directory, last):
            raise syscall_error(errno.EBUSY, "unlink", os.fsdecode(name), "something is mounted there")
        with suppress(FileNotFoundError):
            os.unlink(last, dir_fd=directory)


def file_attributes(fd: int) -> dict[bytes, bytes]:
    """What an open file has that :func:`write_file` takes."""
    return attributes(fd)
