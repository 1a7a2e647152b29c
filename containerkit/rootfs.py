"""The root directory of a process: how each kind of root, and the one that needs no image, compiles.

Every new root is built on a workbench: a tmpfs that covers the old "/" in the new mount namespace. Layers, covers and
the root itself are attached there (overlayfs and open_tree(2) want attached mounts before Linux 6.15), and it
disappears with the old root at the pivot.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from typing import TYPE_CHECKING

from . import plan as p
from .build import NODEV, NOSUID, RDONLY, Build, host_op, is_overlay, keep, parents
from .errors import InvalidValue
from .kernel import calls
from .kernel.calls import StrPath
from .mounttree import MountTree
from .plan import Code, Op, Stage

__all__ = ["HOST", "HostDirectories"]


class HostDirectories:
    """The root of ``run(rootfs=None)``: the host's own programs and libraries, read-only, and nothing else of it.

    A tmpfs with /usr and what belongs to it (/bin, /lib, ... as the host has them: links or directories), and the few
    files of /etc that programs need to run: the dynamic linker's cache, alternatives, certificates, the time zone,
    protocol and service names. Users, groups and hosts are written new. No home directory, no /var, no /run, no secret.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "HOST"


HOST = HostDirectories()

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol, TypeAlias

    from .overlayfs import OverlayFS

    class ImageConfig(Protocol):
        """What an image says of the program that it is for: data, and no more than the caller could say himself."""

        @property
        def cwd(self) -> str: ...
        @property
        def user(self) -> str: ...
        def environment(self) -> Mapping[str, str]: ...
        def argv(self, args: tuple[Any, ...] = ..., /) -> tuple[Any, ...]: ...

    class HeldRoot(Protocol):
        """The files of an image, which stay where they are until it is closed."""

        @property
        def root(self) -> StrPath | OverlayFS | MountTree: ...
        def close(self) -> None: ...

    class ImageRoot(Protocol):
        """An image of a store, as the root of a process."""

        @property
        def config(self) -> ImageConfig: ...
        def hold(self) -> HeldRoot: ...

    Files: TypeAlias = StrPath | OverlayFS | MountTree | HostDirectories
    Root: TypeAlias = Files | ImageRoot

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "nix/store", "gnu/store")
_ETC = (
    "alternatives", "ca-certificates", "crypto-policies", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "localtime", "mime.types", "nsswitch.conf", "pki", "protocols", "services", "ssl", "terminfo", "timezone", "xml",
)  # fmt: skip


def compile_root(build: Build, root: Files | None, *, net_host: bool, room: int) -> bool:
    """Add the operations that make ``root`` on the workbench, which gets ``room`` bytes for files of ours.

    Returns whether the root is to be read-only in the end.
    """
    room = (room | 0xFFFFF) + 1
    if is_overlay(root):
        ephemeral = root.upper is None
        build.workbench(*_scratch(room + root.size if ephemeral else room, root.inodes if ephemeral else 4096))
        root.compile_root(build)
        return root.read_only
    build.workbench(*_scratch(room, 4096))
    if isinstance(root, HostDirectories):
        build.plan.add(*_host_ops(net_host))
        return True
    slot = build.plan.slot()
    if root is None:
        build.take(
            Op(
                Code.TREE,
                Stage.INSIDE,
                "take the caller's own root",
                b"/",
                flags=p.RECURSIVE,
                slot=slot,
                b=calls.MS_PRIVATE,
            )
        )
    else:
        what = repr(root) if isinstance(root, MountTree) else os.fsdecode(root)
        mode = build.tree(root, slot, f"take {what} as the root", attr=NOSUID | NODEV, flags=p.RECURSIVE | p.IDMAP)
        if not stat.S_ISDIR(mode):
            raise InvalidValue(f"root {what} is not a directory")
    build.plan.add(
        keep("root", slot, "put the root on the workbench"),
        # The slot's number is this plan's own; a clone puts the root where the other operations look for it.
        Op(
            Code.CLONE,
            Stage.INSIDE,
            "open the root",
            b"root",
            flags=p.SAME_MOUNT,
            base=p.SLOT_SCRATCH,
            slot=p.SLOT_ROOT,
        ),
    )
    return False


@cache
def _scratch(size: int, inodes: int) -> tuple[Op, ...]:
    options = (b"size", b"%d" % size, b"nr_inodes", b"%d" % inodes, b"mode", b"755")
    return (
        Op(Code.FS, Stage.INSIDE, f"make a tmpfs of {size >> 20} MiB as the workbench", b"tmpfs", *options,
           slot=p.SLOT_SCRATCH, a=NOSUID | NODEV),
        Op(Code.SCRATCH, Stage.INSIDE, "cover the old root with it", slot=p.SLOT_SCRATCH),
    )  # fmt: skip


@cache
def _host_ops(net_host: bool) -> tuple[Op, ...]:
    attr = RDONLY | NOSUID | NODEV
    ops = [
        Op(Code.FS, Stage.INSIDE, "make a small tmpfs as the root", b"tmpfs", b"size", b"1m", b"mode", b"755",
           slot=p.SLOT_ROOT, a=NOSUID | NODEV),
        keep("root", p.SLOT_ROOT, "put the root on the workbench"),
    ]  # fmt: skip
    shown = host_names(net_host)
    ops += parents([*shown, "etc/passwd"], p.SLOT_ROOT)
    for name in shown:
        ops += _shown(name, attr)
    for name, content in _own_files(net_host).items():
        ops.append(Op(Code.FILE, Stage.INSIDE, f"write /{name}", name.encode(), content, base=p.SLOT_ROOT, a=0o644))
    return tuple(ops)


def host_names(net_host: bool) -> list[str]:
    """What of the host's is shown, below "/"."""
    etc = [f"etc/{name}" for name in _ETC] + (["etc/resolv.conf", "etc/hosts"] if net_host else [])
    return [name for name in (*_SYSTEM, *etc) if os.path.exists(f"/{name}")]


def _shown(name: str, attr: int) -> list[Op]:
    """One of the host's directories or files at the same place, a link as the same link."""
    path = f"/{name}"
    if os.path.islink(path) and not name.startswith("etc/"):
        target = os.fsencode(os.readlink(path))
        words = f"link {path} to {os.fsdecode(target)}"
        return [Op(Code.SYMLINK, Stage.INSIDE, words, target, name.encode(), flags=p.OURS, base=p.SLOT_ROOT)]
    flags = p.OURS | (p.MKDIR if os.path.isdir(path) else p.MKFILE)
    words = f"mount it on {path}, read-only"
    return [
        host_op(path, p.SLOT_TEMP, attr),
        Op(Code.ATTACH, Stage.INSIDE, words, name.encode(), flags=flags, base=p.SLOT_ROOT, slot=p.SLOT_TEMP, a=0o755),
    ]


def _own_files(net_host: bool) -> dict[str, bytes]:
    files = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    }
    if not net_host:
        files["etc/hosts"] = b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
        files["etc/resolv.conf"] = b""
    return files
