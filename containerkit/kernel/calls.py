"""The system calls that Python's os module lacks, one typed function each.

Paths are bytes or str (encoded as os.fsencode does); every function raises a SyscallError subclass that names the call
and the path. Descriptors that they return are close-on-exec and belong to the caller.
"""

from __future__ import annotations

import errno
import os
from functools import cache

from .._native._ck import ffi, lib
from ..errors import InvalidValue, syscall_error

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6

CLONE_FLAGS = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
"""The kinds of namespace, named as in /proc/PID/ns, and their CLONE_NEW* flags (namespaces(7))."""

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def encode(path: StrPath) -> bytes:
    """A path for the kernel. Raises InvalidValue on a NUL, which C would take for the end."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise InvalidValue(f"path {path!r} contains a NUL character")
    return raw


def check(result: int, syscall: str, path: object = None, hint: str | None = None) -> int:
    if result < 0:
        raise syscall_error(-result, syscall, path, hint)
    return result


def fsopen(fstype: str) -> int:
    """A context to configure a new file system in (fsopen(2), Linux 5.2)."""
    return check(lib.ck_fsopen(fstype.encode(), 1), "fsopen", fstype)


def fsconfig_string(fs: int, key: str, value: bytes) -> None:
    check(lib.ck_fsconfig(fs, FSCONFIG_SET_STRING, key.encode(), value, 0), "fsconfig", key)


def fsconfig_flag(fs: int, key: str) -> None:
    check(lib.ck_fsconfig(fs, FSCONFIG_SET_FLAG, key.encode(), ffi.NULL, 0), "fsconfig", key)


def fsconfig_fd(fs: int, key: str, fd: int) -> None:
    """Set a parameter to a descriptor (overlayfs layers: Linux 6.13)."""
    check(lib.ck_fsconfig(fs, FSCONFIG_SET_FD, key.encode(), ffi.NULL, fd), "fsconfig", key)


def fsconfig_create(fs: int, what: str) -> None:
    result = lib.ck_fsconfig(fs, FSCONFIG_CMD_CREATE, ffi.NULL, ffi.NULL, 0)
    if result < 0:
        raise syscall_error(-result, "fsconfig", what, fs_message(fs) or None)


def fs_message(fs: int) -> str:
    """What the file system itself says about its last error (the log of fsopen(2))."""
    lines = []
    while True:
        try:
            lines.append(os.read(fs, 4096).decode(errors="backslashreplace").strip())
        except OSError:
            return "; ".join(line[2:] if line[1:2] == " " else line for line in lines)


def fsmount(fs: int, attrs: int = 0) -> int:
    """The configured file system as a detached mount (fsmount(2), Linux 5.2)."""
    return check(lib.ck_fsmount(fs, 1, attrs), "fsmount")


def open_tree(dirfd: int, path: StrPath = b"", *, clone: bool = True, recursive: bool = False) -> int:
    """A descriptor of a mount, or with ``clone`` a detached copy of it (open_tree(2), Linux 5.2)."""
    raw = encode(path)
    flags = OPEN_TREE_CLOEXEC | (OPEN_TREE_CLONE if clone else 0) | (0 if raw else AT_EMPTY_PATH)
    return check(lib.ck_open_tree(dirfd, raw, flags | (AT_RECURSIVE if recursive else 0)), "open_tree", path or None)


def move_mount(mount: int, dirfd: int, path: StrPath = b"") -> None:
    """Attach a detached mount (move_mount(2), Linux 5.2)."""
    raw = encode(path)
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if raw else MOVE_MOUNT_T_EMPTY_PATH)
    check(lib.ck_move_mount(mount, b"", dirfd, raw, flags), "move_mount", path or None)


def mount_setattr(
    fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, userns: int = -1, recursive: bool = False
) -> None:
    """Change the attributes of a mount, or of a whole tree (mount_setattr(2), Linux 5.12)."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    check(lib.ck_mount_setattr(fd, b"", flags, set, clear, propagation, userns), "mount_setattr")


def umount2(target: StrPath, flags: int = 0) -> None:
    check(lib.ck_umount2(encode(target), flags), "umount2", target)


def openat2(dirfd: int, path: StrPath, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """open(2) with rules for the resolution of the path (openat2(2), Linux 5.6).

    Where ".." has to stay inside and something is renamed or mounted anywhere meanwhile, the kernel says EAGAIN: it is
    asked again, but not for ever by somebody who renames on purpose.
    """
    raw = encode(path)
    for _ in range(_TRIES):
        result = lib.ck_openat2(dirfd, raw, flags | os.O_CLOEXEC, mode, resolve)
        if result != -errno.EAGAIN:
            break
    return check(result, "openat2", path)


_TRIES = 1000


def open_in_root(root: int, path: StrPath, flags: int = os.O_PATH) -> int:
    """Open what ``path`` means to a process whose root directory is ``root``: no link leads out."""
    raw = encode(path).lstrip(b"/") or b"."
    return openat2(root, raw, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def syncfs(fd: int) -> None:
    """Wait until all that was written to the file system of ``fd`` is on its disk (syncfs(2); errors Linux 5.8)."""
    check(lib.ck_syncfs(fd), "syncfs")


def mount_id(path: StrPath) -> int:
    """The mount that holds a path; a last symbolic link is not followed (statx(2), STATX_MNT_ID, Linux 5.8)."""
    out = ffi.new("uint64_t *")
    check(lib.ck_mount_id(encode(path), out), "statx", path)
    return int(out[0])


def fs_magic(fd: int) -> int:
    """The magic number of the file system that holds a descriptor (fstatfs(2), statfs(2) lists them)."""
    out = ffi.new("uint64_t *")
    check(lib.ck_statfs_type(fd, out), "fstatfs")
    return int(out[0])


def listmount(mount_id: int = (1 << 64) - 1, limit: int = 4096) -> list[int]:
    """The unique ids of the mounts below one; by default of this mount namespace (listmount(2), Linux 6.8)."""
    out = ffi.new("uint64_t[]", limit)
    count = check(lib.ck_listmount(mount_id, 0, out, limit), "listmount")
    return [int(out[i]) for i in range(count)]


@cache
def landlock_abi() -> int:
    """The version of Landlock's interface, 0 without it: 4 restricts TCP, 6 signals (landlock(7))."""
    return max(0, int(lib.ck_landlock_abi()))


def pid_of(pidfd: int) -> int:
    """The pid behind a pidfd, in our pid namespace. Raises SyscallError (ESRCH) once it is reaped."""
    result = lib.ck_pidfd_pid(pidfd)
    if result in (-errno.ENOTTY, -errno.EINVAL):
        result = _pid_from_fdinfo(pidfd)  # before Linux 6.13
    return check(result, "ioctl PIDFD_GET_INFO", None, "the process has ended")


def _pid_from_fdinfo(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                pid = int(line[4:])
                return pid if pid > 0 else -errno.ESRCH  # -1: reaped; 0: not in our pid namespace
    raise InvalidValue(f"descriptor {pidfd} is not a pidfd")
