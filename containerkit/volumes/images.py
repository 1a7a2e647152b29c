"""A volume of bounded size: a file system in a file, which is mounted where it is needed and nowhere else.

The file is ``STORE/volumes/NAME/image``. Whoever needs the files gets a mount that is attached nowhere; with the last
of these the loop device goes, too (LO_FLAGS_AUTOCLEAR, loop(4)), however its users end. There is one loop device for
one file at a time: two would be two file systems on the same blocks. Whether there is one is asked under the volume's
lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import SyscallError, Unsupported, syscall_error
from ..kernel import calls
from ..kernel.fd import Fd
from ..mounttree import MountTree, make_fs
from ..storage.locks import lock

__all__ = ["IMAGE", "NEW_IMAGE", "SMALLEST", "make_image", "mount_image", "mount_locked", "mount_shared"]

IMAGE, NEW_IMAGE = "image", "new-image"
SMALLEST = 1 << 20
"""Bytes below which there is hardly room for anything but the file system itself."""

_SET_FREE, _CONFIGURE, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C05
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_AUTOCLEAR = 4
_ATTRIBUTES = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV


def make_image(directory: int, name: str, size: int) -> None:
    """A file with an empty ext4 in it, of which no block is taken yet. Raises Unsupported for who cannot mount it."""
    import shutil
    import subprocess

    program = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if os.geteuid() != 0 or program is None:
        missing = "root" if os.geteuid() != 0 else "mkfs.ext4 (e2fsprogs)"
        raise Unsupported(f"a volume of bounded size is a file system of its own, and needs {missing}")
    with Fd(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)) as file:
        os.ftruncate(file.fileno(), size)
        path = f"/proc/self/fd/{file.fileno()}"
        options = ["-q", "-F", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1"]
        done = subprocess.run(
            [program, *options, path],
            pass_fds=[file.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise Unsupported(f"mkfs.ext4 made no file system of {size} bytes: {done.stderr.strip()[-300:]}")
    with mount_image(directory, name) as tree:
        _check_kernel(tree)
        with suppress(FileNotFoundError):
            os.rmdir("lost+found", dir_fd=tree.fileno())  # what is empty is to look so; fsck makes it again
        os.fchmod(tree.fileno(), 0o755)


@contextmanager
def mount_image(directory: int, name: str) -> Iterator[Fd]:
    """A descriptor of the root directory of an image that nobody else knows; unmounted when the block ends."""
    with mount_locked(directory, name) as tree:
        root = Fd(tree.open("/", os.O_RDONLY | os.O_DIRECTORY))
        with root:
            yield root
            calls.syncfs(root.fileno())


def mount_shared(directory: int) -> MountTree:
    """The image of a volume, mounted once more and attached nowhere; all of these show the same file system."""
    with lock(directory, "lock"):
        return mount_locked(directory, IMAGE)


def _check_kernel(tree: Fd) -> None:
    """A container gets a copy of the mount."""
    try:
        MountTree(calls.open_tree(tree.fileno())).close()
    except SyscallError:
        raise Unsupported(
            "a volume of bounded size needs mounts that are copied while they are attached nowhere (Linux 6.15; this "
            f"is {os.uname().release})"
        ) from None


def mount_locked(directory: int, name: str) -> MountTree:
    """For who has the volume's lock, or alone knows the image."""
    with Fd(os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as file:
        device = _find(os.fstat(file.fileno())) or _attach(file.fileno())
        with device[1]:  # until it is mounted, this keeps the loop device
            return MountTree(make_fs("ext4", {"source": os.fsencode(device[0])}, _ATTRIBUTES))


def _find(wanted: os.stat_result) -> tuple[str, Fd] | None:
    """The loop device that this file has already."""
    for entry in os.listdir("/sys/block"):
        if not entry.startswith("loop") or not os.path.exists(f"/sys/block/{entry}/loop/backing_file"):
            continue
        path = f"/dev/{entry}"
        with suppress(OSError):
            held = Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            try:
                found = _INFO.unpack(fcntl.ioctl(held.fileno(), _GET_STATUS, bytes(_INFO.size)))
                if (found[0], found[1]) == (wanted.st_dev, wanted.st_ino):
                    return path, held
            except OSError:  # it is free by now
                pass
            held.close()
    return None


def _attach(file: int) -> tuple[str, Fd]:
    """A free loop device, made this file's; somebody else may be quicker, then another one."""
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, b"containerkit", b"", b"", 0, 0)
    config = struct.pack("=II", file, 0) + info + bytes(64)
    try:
        with Fd(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)) as control:
            for _ in range(100):
                path = f"/dev/loop{fcntl.ioctl(control.fileno(), _SET_FREE)}"
                device = Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                try:
                    fcntl.ioctl(device.fileno(), _CONFIGURE, config)
                    return path, device
                except OSError as error:
                    device.close()
                    if error.errno != errno.EBUSY:
                        raise
    except SyscallError:
        raise
    except OSError as error:
        hint = "a volume of bounded size needs a loop device (Linux 5.8, /dev/loop-control)"
        raise syscall_error(error.errno or 0, "ioctl", "/dev/loop-control", hint) from None
    raise Unsupported("no loop device is free for a volume of bounded size")
