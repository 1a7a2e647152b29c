"""A plan under construction: what mounts, layers and roots have in common when they compile to operations.

Destinations are absolute paths of the new root. They are resolved inside it by descriptor, and created when they are
missing; a link never leads out, and for /proc, /dev and /sys a link on the way is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import plan as p
from .errors import InvalidValue, syscall_error
from .kernel import calls
from .kernel.calls import StrPath
from .kernel.fd import put
from .kernel.held import HeldPath
from .mounttree import MountTree
from .namespaces import ENTER_NETWORK
from .plan import Code, Op, Plan, Stage

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from .overlayfs import OverlayFS
    from .rootfs import ImageRoot

__all__ = ["Build", "Mount"]

RDONLY, NOSUID, NODEV, NOEXEC, NOSYMFOLLOW = (
    calls.MOUNT_ATTR_RDONLY,
    calls.MOUNT_ATTR_NOSUID,
    calls.MOUNT_ATTR_NODEV,
    calls.MOUNT_ATTR_NOEXEC,
    calls.MOUNT_ATTR_NOSYMFOLLOW,
)


def _open(fds: list[int], path: bytes) -> int:
    """Add a handle to ``fds``. What it is of: S_IFDIR, or S_IFREG for all else.

    stat(2) would ask the server of a file system that has one, and wait for as long as that does not answer.
    """
    try:
        put(fds, os.open, path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return stat.S_IFDIR
    except NotADirectoryError:
        put(fds, os.open, path, os.O_PATH | os.O_CLOEXEC)
        return stat.S_IFREG


class Build:
    """A plan under construction, and what its parts must know of each other.

    ``outside`` says that the caller may clone mounts itself (root); otherwise the first process does it, by path and
    with a check that the path is still the object that was opened. ``idmap`` says that such clones can be mapped
    through a new user namespace. ``host_root`` says that the host's root has a place inside. ``own_net`` and
    ``own_ipc`` say that these namespaces are new, and so may be shown by file systems of their own.
    """

    __slots__ = ("_sources", "files", "host_root", "idmap", "masks", "network", "outside", "own_ipc", "own_net", "plan")

    def __init__(
        self, plan: Plan, *, outside: bool, idmap: bool, host_root: bool, own_net: bool = True, own_ipc: bool = True
    ) -> None:
        self.plan, self.outside, self.idmap, self.host_root = plan, outside, idmap, host_root
        self.own_net, self.own_ipc = own_net, own_ipc
        self.files = 0
        self.masks = False
        self.network = not own_net  # whether the first process is in its network namespace
        self._sources = len(plan.ops)

    def workbench(self, *ops: Op) -> None:
        """Cover the old root. Whatever the first process takes from there by name comes before."""
        self._sources = len(self.plan.ops)
        self.plan.add(*ops)

    def take(self, op: Op) -> None:
        """Add a clone of a source: by the first process before the workbench, which would be cloned with "/"."""
        if op.stage is Stage.INSIDE:
            self.plan.ops.insert(self._sources, op)
            self._sources += 1
        else:
            self.plan.add(op)

    def tree(
        self,
        source: StrPath | MountTree | HeldPath,
        slot: int,
        words: str,
        *,
        attr: int,
        flags: int = 0,
        propagation: int = calls.MS_PRIVATE,
    ) -> int:
        """Clone what ``source`` names into a slot. Returns the mode of the source (stat(2), st_mode)."""
        if isinstance(source, MountTree):
            fd = source.fileno()
            mode = os.fstat(fd).st_mode
            op = Op(
                Code.TREE,
                Stage.OUTSIDE,
                words,
                flags=flags & ~p.IDMAP | p.RECURSIVE | p.DETACHED,  # attributes are for all of the tree
                fd=self.plan.fd(fd),
                slot=slot,
                a=attr,
                b=propagation,
            )
            self.plan.add(op)
            return mode
        path = os.fsencode(source) if isinstance(source, HeldPath) else calls.encode(source)
        if not path.startswith(b"/"):
            path = os.path.abspath(path)
        try:
            if isinstance(source, HeldPath):
                put(self.plan.owned, os.dup, source.fileno())
                mode = os.fstat(self.plan.owned[-1]).st_mode
            else:
                mode = _open(self.plan.owned, path)
        except OSError as error:
            raise syscall_error(
                error.errno or 0, "open", os.fsdecode(path), f"the source of a mount: {words}"
            ) from None
        fd = self.plan.owned[-1]
        stage = Stage.OUTSIDE if self.outside else Stage.INSIDE
        if not (self.outside and self.idmap):
            flags &= ~p.IDMAP
        if flags & p.IDMAP:
            words += ", ids mapped"
        self.take(Op(Code.TREE, stage, words, path, flags=flags, fd=self.plan.fd(fd), slot=slot, a=attr, b=propagation))
        return mode

    def need_network(self) -> None:
        """The first process in its network namespace, which the helper makes meanwhile: as late as can be."""
        if not self.network:
            self.network = True
            self.plan.add(ENTER_NETWORK)

    def need_masks(self) -> None:
        """A small tmpfs of ours with an empty file and an empty directory, to cover what must not be seen."""
        if not self.masks:
            self.masks = True
            self.plan.add(*MASKS)


def keep(name: str, slot: int, words: str) -> Op:
    """Attach a mount on the workbench under a name of its own."""
    return Op(
        Code.ATTACH, Stage.INSIDE, words, name.encode(), flags=p.OURS | p.MKDIR, base=p.SLOT_SCRATCH, slot=slot, a=0o755
    )


def parents(names: Iterable[str], base: int) -> list[Op]:
    """The directories that hold these paths, made in a new file system of ours; none when they are all plain names."""
    made: dict[str, None] = {}
    for name in names:
        parts = name.split("/")
        made.update({"/".join(parts[:depth]): None for depth in range(1, len(parts))})
    if not made:
        return []
    words = f"make directories {', '.join(made)}"
    return [Op(Code.MKDIR, Stage.INSIDE, words, *map(os.fsencode, made), flags=p.OURS, base=base, a=0o755)]


MASKS = (
    Op(Code.FS, Stage.INSIDE, "make a tmpfs for covers", b"tmpfs", b"size", b"64k", b"nr_inodes", b"8",
       slot=p.SLOT_MASKS, a=NOSUID | NODEV | NOEXEC),
    keep("m", p.SLOT_MASKS, "keep it on the workbench"),
    Op(Code.MKDIR, Stage.INSIDE, "make the empty directory", b"dir", flags=p.OURS, base=p.SLOT_MASKS, a=0o555),
    Op(Code.FILE, Stage.INSIDE, "make the empty file", b"file", b"", base=p.SLOT_MASKS, a=0o444),
    Op(Code.ATTR, Stage.INSIDE, "make the covers read-only", slot=p.SLOT_MASKS, a=RDONLY),
)  # fmt: skip


def inside_path(path: StrPath, what: str = "destination") -> bytes:
    """An absolute path of the new root, as the bytes below it. Raises InvalidValue on anything ambiguous."""
    raw = calls.encode(path)
    if not raw.startswith(b"/"):
        raise InvalidValue(f"{what} {path!r} must be an absolute path inside the root, like '/data'")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidValue(f"{what} {path!r} must not contain '..'")
    return b"/".join(parts)


def target_path(value: StrPath) -> bytes:
    """A destination, in its one way of writing: absolute, without empty parts."""
    raw = inside_path(value)
    if not raw:
        raise InvalidValue("destination '/' is the root itself: pass it as root= or rootfs=")
    return b"/" + raw


def show(target: bytes) -> str:
    return "/" + os.fsdecode(target)


def target_repr(target: bytes) -> str:
    return repr(os.fsdecode(target))


def attach(
    slot: int, target: bytes, what: str, *, flags: int = p.MKDIR, mode: int = 0o755, base: int = p.SLOT_ROOT
) -> Op:
    return Op(
        Code.ATTACH, Stage.INSIDE, f"mount {what} on {show(target)}", target, flags=flags, slot=slot, base=base, a=mode
    )


def attach_ours(slot: int, shown: str, name: bytes, *, base: int, make: int = p.MKDIR) -> Op:
    """Onto a plain name in a new file system of ours: no path of the root's is resolved."""
    flags = p.OURS | make
    return Op(Code.ATTACH, Stage.INSIDE, f"mount it on {shown}", name, flags=flags, slot=slot, base=base, a=0o755)


def host_op(path: str, slot: int, attr: int, *, recursive: bool = True) -> Op:
    """Clone a path of the host's that is trusted by name: nobody but root can replace it."""
    flags = p.RECURSIVE if recursive else 0
    return Op(
        Code.TREE,
        Stage.INSIDE,
        f"take {path} of the host",
        path.encode(),
        flags=flags,
        slot=slot,
        a=attr,
        b=calls.MS_PRIVATE,
    )


class Mount:
    """The base of what can be mounted inside a root."""

    __slots__ = ()

    room = 0
    """Bytes that it needs on the workbench."""
    receives_mounts = False
    """Whether mounts that the host makes later are to appear below it."""
    has_dev = False
    """Whether it brings a terminal file system (the slot SLOT_PTS)."""
    target = b""
    grants = ""
    """What Landlock is to allow at its target beside reading and executing, by the names of its rights."""
    options: frozenset[str] = frozenset()
    fstype = ""
    """What mountinfo must say of it (proc_pid_mountinfo(5)); "" for any type."""

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        raise NotImplementedError

    def compile_over(self, build: Build) -> None:
        """For a process that joined a sandbox: what it needs anew in its own pid namespace. Only /proc is."""


def is_image(root: object) -> TypeIs[ImageRoot]:
    """Whether a root must be held in its store while something runs from it."""
    return hasattr(root, "hold")


def is_overlay(root: object) -> TypeIs[OverlayFS]:
    """Whether a root is stacked on the workbench; asked so that other roots need not import the class."""
    return hasattr(root, "compile_root")
