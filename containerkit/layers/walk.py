"""Walking a tree that others have written, by descriptor: no link is followed and no mount is entered."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ..errors import SyscallError, syscall_error
from ..kernel import calls
from .entry import Entry, Kind

__all__ = ["Found", "attributes", "entry_of", "set_mode", "walk"]

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RESOLVE = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_XDEV | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS
_ACROSS = _RESOLVE & ~calls.RESOLVE_NO_XDEV
_DEPTH_MAX = 512
"""Directories in one another that are followed: each costs a descriptor, and nothing bounds what a stranger makes."""

# File systems that show the kernel's state, and no files: proc, sysfs, cgroup and cgroup2, devpts, mqueue, securityfs,
# debugfs, tracefs, bpf, configfs, selinuxfs, binfmt_misc (statfs(2)).
_OF_THE_KERNEL = frozenset(
    (0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x19800202, 0x73636673, 0x64626720, 0x74726163, 0xCAFE4A11,
     0x62656570, 0xF97CFF8C, 0x42494E4D)
)  # fmt: skip
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
_KEPT = ("user.", "security.capability", "system.posix_acl_access", "system.posix_acl_default")


class Found(NamedTuple):
    """One thing in a tree. ``directory`` is a descriptor of where it is, open until the next is asked for."""

    path: bytes
    name: str
    directory: int
    status: os.stat_result

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.status.st_mode) and self.status.st_rdev == 0


def walk(root: int, *, mounts: Literal["refuse", "enter", "show"] = "refuse") -> Iterator[Found]:
    """Everything below a directory, each directory before what is in it, names in the order of their bytes.

    A name that vanishes meanwhile is left out. A directory on another mount is refused (EXDEV); or shown, without what
    is in it; or entered, unless it is a view of the kernel's state (/proc, /sys). More than 512 directories in one
    another are refused (ENAMETOOLONG).
    """
    yield from _walk(root, b"", mounts, 0)


def _walk(directory: int, above: bytes, mounts: str, depth: int) -> Iterator[Found]:
    for name in sorted(os.listdir(directory), key=os.fsencode):
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        path = above + os.fsencode(name)
        yield Found(path, name, directory, status)
        if not stat.S_ISDIR(status.st_mode):
            continue
        if depth == _DEPTH_MAX:
            hint = f"there are more than {_DEPTH_MAX} directories in one another"
            raise syscall_error(errno.ENAMETOOLONG, "openat2", os.fsdecode(path), hint)
        child = _enter(directory, name, path, mounts)
        if child >= 0:
            try:
                yield from _walk(child, path + b"/", mounts, depth + 1)
            finally:
                os.close(child)


def _enter(directory: int, name: str, path: bytes, mounts: str) -> int:
    """A descriptor of a directory whose names are to be found, too; -1 for one that is none, or has gone."""
    try:
        child = calls.openat2(directory, name, _OPEN, resolve=_ACROSS if mounts == "enter" else _RESOLVE)
    except FileNotFoundError:
        return -1
    except SyscallError as error:
        if mounts == "show" and error.errno == errno.EXDEV:
            return -1
        if mounts != "refuse" and error.errno in (errno.ENOTDIR, errno.ELOOP):
            return -1  # somebody has put another thing there: that is how such a tree is
        hint = "nothing may be mounted in the tree, and the caller must be allowed to read all of it"
        raise syscall_error(error.errno or 0, "openat2", os.fsdecode(path), hint) from None
    if mounts == "enter" and calls.fs_magic(child) in _OF_THE_KERNEL:
        os.close(child)
        return -1
    return child


def set_mode(directory: int, name: str | bytes, mode: int) -> None:
    """Of a device or fifo, which cannot be opened to have it set by descriptor (fchmod(2), O_PATH)."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def attributes(fd: int) -> dict[bytes, bytes]:
    """The extended attributes that belong to a file's content; overlayfs's own and security labels do not."""
    found = {}
    for key in os.listxattr(fd):
        if key.startswith(_KEPT) and not key.startswith("user.overlay."):
            value = os.getxattr(fd, key)
            found[os.fsencode(key)] = _version_2(value) if key == "security.capability" else value
    return found


def _version_2(capability: bytes) -> bytes:
    """File capabilities without the user namespace that they were given in (capabilities(7), version 3)."""
    if len(capability) == 24 and struct.unpack_from("<I", capability)[0] >> 24 == 3:
        magic = struct.unpack_from("<I", capability)[0] & 0xFFFFFF | 0x02000000
        return struct.pack("<I", magic) + capability[4:20]
    return capability


def entry_of(found: Found, mtime_ns: int) -> tuple[Entry | None, int]:
    """The entry, and for a file a descriptor of its content, which the caller closes (-1 else).

    The size is what the opened file has now. None for a socket, which no archive can hold, and for what has vanished.
    """
    kind = _KINDS.get(stat.S_IFMT(found.status.st_mode))
    if kind is None:
        return None, -1
    status, link, fd, xattrs = found.status, b"", -1, None
    try:
        if kind is Kind.SYMLINK:
            link = os.fsencode(os.readlink(found.name, dir_fd=found.directory))
        elif kind in (Kind.FILE, Kind.DIRECTORY):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME
            try:
                fd = os.open(found.name, flags | os.O_CLOEXEC, dir_fd=found.directory)
            except PermissionError:  # O_NOATIME is the owner's
                fd = os.open(found.name, (flags & ~os.O_NOATIME) | os.O_CLOEXEC, dir_fd=found.directory)
            status = os.fstat(fd)
            if stat.S_IFMT(status.st_mode) != stat.S_IFMT(found.status.st_mode):
                os.close(fd)
                return None, -1
            xattrs = attributes(fd)
            if kind is Kind.DIRECTORY:
                os.close(fd)
                fd = -1
    except FileNotFoundError:
        return None, -1
    return Entry(
        found.path,
        kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind is Kind.FILE else 0,
        mtime_ns=mtime_ns,
        link=link,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        xattrs=xattrs,
    ), fd
