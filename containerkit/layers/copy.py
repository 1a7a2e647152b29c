"""Copying a tree as it is, by descriptor: sharing the data where the file system can (ioctl_ficlone(2))."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from .walk import Found, set_mode, walk

__all__ = ["copy_tree", "fill"]

_FICLONE = 0x40049409
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)


def copy_tree(source: int, target: int) -> None:
    """Copy all that is in one directory to another, an empty one, which gets the same attributes.

    Owners, modes, times to the nanosecond, extended attributes (overlayfs's own, too), hard links, holes, devices and
    whiteouts are kept; sockets are left out. Raises SyscallError for what is mounted in the source (EXDEV), and OSError
    for what the target cannot take; what was copied by then is left for the caller to delete.
    """
    opened = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    copy = _Copy(target)
    try:
        for found in walk(opened):
            copy.add(found)
        copy.leave(0)
        _dress(opened, target, os.fstat(opened))
    finally:
        copy.close()
        os.close(opened)


class _Copy:
    def __init__(self, target: int) -> None:
        self._target = target
        self._stack: list[tuple[bytes, int, os.stat_result]] = []  # directories that are being filled
        self._first: dict[tuple[int, int], bytes] = {}

    def add(self, found: Found) -> None:
        depth = found.path.count(b"/")
        self.leave(depth)
        directory = self._stack[-1][1] if self._stack else self._target
        status = found.status
        kind = stat.S_IFMT(status.st_mode)
        known = self._first.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
        if kind == stat.S_IFDIR:
            self._enter(found, directory)
        elif known is not None:
            # A path of our own making, below a directory that nobody else can write to.
            os.link(known, found.name, src_dir_fd=self._target, dst_dir_fd=directory, follow_symlinks=False)
        else:
            self._copy(found, directory, kind)
            if status.st_nlink > 1:
                self._first[status.st_dev, status.st_ino] = found.path

    def _enter(self, found: Found, directory: int) -> None:
        os.mkdir(found.name, 0o700, dir_fd=directory)
        fd = os.open(found.name, _DIRECTORY, dir_fd=directory)
        self._stack.append((found.path, fd, found.status))
        source = os.open(found.name, _DIRECTORY, dir_fd=found.directory)
        try:
            _dress(source, fd, found.status)
        finally:
            os.close(source)

    def leave(self, depth: int) -> None:
        """Directories that are full: their times come last, because every name in them has changed those."""
        while len(self._stack) > depth:
            _, fd, status = self._stack[-1]
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
            self._stack.pop()
            os.close(fd)

    def close(self) -> None:
        while self._stack:
            os.close(self._stack.pop()[1])

    def _copy(self, found: Found, directory: int, kind: int) -> None:
        status = found.status
        if kind == stat.S_IFREG:
            _copy_file(found, directory)
            return
        if kind == stat.S_IFSOCK:
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(found.name, dir_fd=found.directory), found.name, dir_fd=directory)
        else:
            os.mknod(found.name, kind | 0o600, status.st_rdev, dir_fd=directory)
        if not _is_callers(status):
            os.chown(found.name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            set_mode(directory, found.name, stat.S_IMODE(status.st_mode))
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(found.name, ns=times, dir_fd=directory, follow_symlinks=False)


def _copy_file(found: Found, directory: int) -> None:
    source = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=found.directory)
    try:
        target = os.open(found.name, _NEW, 0o600, dir_fd=directory)
        try:
            if found.status.st_size:
                fill(source, target, found.status.st_size)
            _dress(source, target, found.status)
        finally:
            os.close(target)
    finally:
        os.close(source)


def fill(source: int, target: int, size: int) -> None:
    """The content of one file into another, an empty one: shared, or copied by the kernel; holes stay holes."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        at = os.lseek(source, begin, os.SEEK_HOLE)
        os.lseek(target, begin, os.SEEK_SET)
        while begin < at and (n := os.sendfile(target, source, begin, min(at - begin, 1 << 30))):
            begin += n
    os.ftruncate(target, size)


def _dress(source: int, target: int, status: os.stat_result) -> None:
    """Owner, mode, attributes, times: in this order each keeps what came before (chown(2))."""
    if not _is_callers(status):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for key in os.listxattr(source):
        try:
            os.setxattr(target, key, os.getxattr(source, key))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):  # security labels, a file system without attributes
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_callers(status: os.stat_result) -> bool:
    """Then there is nothing to give: an ordinary user may not even give what is already his."""
    return (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
