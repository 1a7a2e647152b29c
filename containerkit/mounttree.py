"""A mount that is attached nowhere, as a handle."""

from __future__ import annotations

import os
from typing import Self

from .kernel import calls
from .kernel.calls import StrPath
from .kernel.fd import Fd
from .units import size as parse_size

__all__ = ["MountTree", "make_fs"]


class MountTree(Fd):
    """A mount, or a tree of mounts, that is attached nowhere: visible to nobody, gone when the last handle closes.

    Making one needs CAP_SYS_ADMIN in the caller's mount namespace (root); an ordinary user describes the mount by a
    value and a start makes it in the new user namespace. A tree is used up by the start that gets it as root or source:
    the mount then belongs to the sandbox.
    """

    __slots__ = ()

    @classmethod
    def clone(cls, path: StrPath, *, recursive: bool = True) -> Self:
        """A detached copy of what is mounted at ``path`` (open_tree(2), Linux 5.2)."""
        return cls(calls.open_tree(calls.AT_FDCWD, path, recursive=recursive))

    @classmethod
    def tmpfs(cls, *, size: int | str = "64M", mode: int = 0o755) -> Self:
        """A new tmpfs."""
        return cls(make_fs("tmpfs", {"size": b"%d" % parse_size(size), "mode": b"%o" % mode}))

    def copy(self) -> Self:
        """Another detached copy of this tree (Linux 6.15 while it is detached; any kernel once it is attached)."""
        return type(self)(calls.open_tree(self.fileno(), recursive=True))

    def set(
        self,
        *,
        read_only: bool | None = None,
        nosuid: bool | None = None,
        nodev: bool | None = None,
        noexec: bool | None = None,
        nosymfollow: bool | None = None,
        recursive: bool = True,
    ) -> Self:
        """Change mount attributes, of every mount in the tree unless told otherwise (mount_setattr(2), Linux 5.12)."""
        add = clear = 0
        wanted = (
            (read_only, calls.MOUNT_ATTR_RDONLY),
            (nosuid, calls.MOUNT_ATTR_NOSUID),
            (nodev, calls.MOUNT_ATTR_NODEV),
            (noexec, calls.MOUNT_ATTR_NOEXEC),
            (nosymfollow, calls.MOUNT_ATTR_NOSYMFOLLOW),
        )
        for value, bit in wanted:
            if value is not None:
                add, clear = (add | bit, clear) if value else (add, clear | bit)
        calls.mount_setattr(self.fileno(), set=add, clear=clear, recursive=recursive)
        return self

    def map_ids(self, userns: Fd) -> Self:
        """Show the ids of the files through a user namespace; the files do not change (Linux 5.12, root)."""
        calls.mount_setattr(self.fileno(), set=calls.MOUNT_ATTR_IDMAP, userns=userns.fileno(), recursive=True)
        return self

    def attach(self, path: StrPath) -> None:
        """Mount it at ``path`` in the caller's mount namespace (move_mount(2)); :meth:`detach_at` takes it off again.

        The handle stays open and keeps naming the mount.
        """
        calls.move_mount(self.fileno(), calls.AT_FDCWD, path)

    @staticmethod
    def detach_at(path: StrPath) -> None:
        """Unmount what is mounted at ``path``, and wait for nobody who uses it (umount2(2), MNT_DETACH)."""
        calls.umount2(path, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)

    def open(self, path: StrPath, flags: int = os.O_RDONLY) -> int:
        """Open a file of the tree; no link leads out of it (openat2(2), RESOLVE_IN_ROOT). The caller closes it."""
        return calls.open_in_root(self.fileno(), path, flags)


def make_fs(kind: str, options: dict[str, bytes | None], attrs: int = 0) -> int:
    """fsopen, fsconfig, fsmount: a detached mount of a new file system; the caller closes it."""
    fs = calls.fsopen(kind)
    try:
        for key, value in options.items():
            if value is None:
                calls.fsconfig_flag(fs, key)
            else:
                calls.fsconfig_string(fs, key, value)
        calls.fsconfig_create(fs, kind)
        return calls.fsmount(fs, attrs)
    finally:
        os.close(fs)
