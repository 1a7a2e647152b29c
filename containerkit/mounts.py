"""What is mounted where inside a root: frozen values that compile to operations, and a handle for a detached mount.

Destinations are absolute paths of the new root. They are resolved inside it by descriptor, and created when they are
missing; a link never leads out, and for /proc, /dev and /sys a link on the way is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from functools import cache
from typing import Literal, Self

import attrs

from . import plan as p
from .errors import InvalidValue, syscall_error
from .kernel import calls
from .kernel.calls import StrPath
from .kernel.fd import Fd
from .plan import Code, Op, Plan, Stage
from .units import size as parse_size
from .value import Value

__all__ = ["Bind", "Build", "Dev", "File", "MountTree", "Proc", "Sysfs", "Tmpfs"]

RDONLY, NOSUID, NODEV, NOEXEC, NOSYMFOLLOW = (
    calls.MOUNT_ATTR_RDONLY,
    calls.MOUNT_ATTR_NOSUID,
    calls.MOUNT_ATTR_NODEV,
    calls.MOUNT_ATTR_NOEXEC,
    calls.MOUNT_ATTR_NOSYMFOLLOW,
)
_PROPAGATION = {"private": calls.MS_PRIVATE, "slave": calls.MS_SLAVE}


class Build:
    """A plan under construction, and what its parts must know of each other.

    ``outside`` says that the caller may clone mounts itself (root); otherwise the first process does it, by path and
    with a check that the path is still the object that was opened. ``idmap`` says that such clones can be mapped
    through a new user namespace. ``host_root`` says that the host's root has a place inside.
    """

    __slots__ = ("files", "host_root", "idmap", "masks", "outside", "plan")

    def __init__(self, plan: Plan, *, outside: bool, idmap: bool, host_root: bool) -> None:
        self.plan, self.outside, self.idmap, self.host_root = plan, outside, idmap, host_root
        self.files = 0
        self.masks = False

    def tree(
        self,
        source: StrPath | MountTree,
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
        path = calls.encode(source)
        if not path.startswith(b"/"):
            path = os.path.abspath(path)
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise syscall_error(
                error.errno or 0, "open", os.fsdecode(path), f"the source of a mount: {words}"
            ) from None
        self.plan.owned.append(fd)
        stage = Stage.OUTSIDE if self.outside else Stage.INSIDE
        if not (self.outside and self.idmap):
            flags &= ~p.IDMAP
        if flags & p.IDMAP:
            words += ", ids mapped"
        self.plan.add(
            Op(Code.TREE, stage, words, path, flags=flags, fd=self.plan.fd(fd), slot=slot, a=attr, b=propagation)
        )
        return os.fstat(fd).st_mode

    def need_masks(self) -> None:
        """A small tmpfs of ours with an empty file and an empty directory, to cover what must not be seen."""
        if not self.masks:
            self.masks = True
            self.plan.add(*_MASKS)


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


_MASKS = (
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


def _target(value: StrPath) -> bytes:
    raw = inside_path(value)
    if not raw:
        raise InvalidValue("destination '/' is the root itself: pass it as root= or rootfs=")
    return raw


def _show(target: bytes) -> str:
    return "/" + os.fsdecode(target)


def _target_repr(target: bytes) -> str:
    return repr(_show(target))


def _attach(
    slot: int, target: bytes, what: str, *, flags: int = p.MKDIR, mode: int = 0o755, base: int = p.SLOT_ROOT
) -> Op:
    return Op(
        Code.ATTACH, Stage.INSIDE, f"mount {what} on {_show(target)}", target, flags=flags, slot=slot, base=base, a=mode
    )


def _attach_ours(slot: int, shown: str, name: bytes, *, base: int, make: int = p.MKDIR) -> Op:
    """Onto a plain name in a new file system of ours: no path of the root's is resolved."""
    flags = p.OURS | make
    return Op(Code.ATTACH, Stage.INSIDE, f"mount it on {shown}", name, flags=flags, slot=slot, base=base, a=0o755)


# ---- values ----------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, repr=False)
class Bind(Value):
    """A directory or file of the caller's, seen at ``target`` inside.

    ``source`` is a path, looked up once when the start is compiled and held from then on, or a :class:`MountTree`.
    Read-only covers everything that is mounted below, too (mount_setattr(2), AT_RECURSIVE). ``idmap`` makes the
    caller's ids appear as the same ids inside, without changing the files: ``None`` does so for writable binds of root,
    so that what is written belongs to the caller (Linux 5.12, and a file system that supports it). ``propagation`` is
    ``"private"`` or ``"slave"`` (mounts that the host makes later below it appear inside).
    """

    source: StrPath | MountTree
    target: bytes = attrs.field(converter=_target, repr=_target_repr)
    read_only: bool = attrs.field(default=True, kw_only=True)
    recursive: bool = attrs.field(default=True, kw_only=True)
    nosuid: bool = attrs.field(default=True, kw_only=True)
    nodev: bool = attrs.field(default=True, kw_only=True)
    noexec: bool = attrs.field(default=False, kw_only=True)
    nosymfollow: bool = attrs.field(default=False, kw_only=True)
    propagation: Literal["private", "slave"] = attrs.field(default="private", kw_only=True)
    idmap: bool | None = attrs.field(default=None, kw_only=True)

    @propagation.validator
    def _check(self, attribute: object, value: str) -> None:
        if value not in _PROPAGATION:
            raise InvalidValue(f"propagation {value!r} must be 'private' or 'slave'")

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        attr = RDONLY * self.read_only | NOSUID * self.nosuid | NODEV * self.nodev | NOEXEC * self.noexec
        attr |= NOSYMFOLLOW * self.nosymfollow
        idmap = not self.read_only if self.idmap is None else self.idmap
        slot = build.plan.slot()
        what = f"{self.source!r}" if isinstance(self.source, MountTree) else os.fsdecode(self.source)
        words = f"bind {what} ({'read-only' if self.read_only else 'writable'})"
        flags = p.RECURSIVE * self.recursive | p.IDMAP * idmap
        mode = build.tree(self.source, slot, words, attr=attr, flags=flags, propagation=_PROPAGATION[self.propagation])
        make = p.MKDIR if stat.S_ISDIR(mode) else p.MKFILE
        build.plan.add(_attach(slot, self.target, what, flags=make, mode=0o755 if make == p.MKDIR else 0o644))


@attrs.frozen(eq=False, repr=False)
class Tmpfs(Value):
    """A new file system in memory (tmpfs(5)). ``size`` (bytes) and ``inodes`` bound it; ``mode`` is its root's."""

    target: bytes = attrs.field(converter=_target, repr=_target_repr)
    size: int = attrs.field(default=64 << 20, converter=parse_size, kw_only=True)
    inodes: int = attrs.field(default=65536, kw_only=True)
    mode: int = attrs.field(default=0o1777, kw_only=True)
    noexec: bool = attrs.field(default=False, kw_only=True)
    uid: int = attrs.field(default=0, kw_only=True)
    gid: int = attrs.field(default=0, kw_only=True)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        build.plan.add(*_tmpfs_ops(self.target, self.size, self.inodes, self.mode, self.noexec, self.uid, self.gid))


@cache
def _tmpfs_ops(target: bytes, size: int, inodes: int, mode: int, noexec: bool, uid: int, gid: int) -> tuple[Op, ...]:
    options = (
        b"size",
        b"%d" % size,
        b"nr_inodes",
        b"%d" % inodes,
        b"mode",
        b"%o" % mode,
        b"uid",
        b"%d" % uid,
        b"gid",
        b"%d" % gid,
    )
    attr = NOSUID | NODEV | NOEXEC * noexec
    make = Op(Code.FS, Stage.INSIDE, f"make a tmpfs of {size >> 20} MiB", b"tmpfs", *options, slot=p.SLOT_TEMP, a=attr)
    return make, _attach(p.SLOT_TEMP, target, "it")


# The union of what docker, podman and systemd hide, and what else shows the host without need. A path that this kernel
# does not have is skipped; nothing here is needed by a program that minds its own business.
MASKED = (
    "acpi", "asound", "bootconfig", "buddyinfo", "bus/pci", "cmdline", "config.gz", "diskstats", "driver",
    "dynamic_debug", "interrupts", "iomem", "ioports", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup",
    "kpagecount", "kpageflags", "latency_stats", "modules", "mtrr", "pagetypeinfo", "partitions", "sched_debug", "scsi",
    "slabinfo", "swaps", "timer_list", "timer_stats", "version_signature", "vmallocinfo", "zoneinfo",
)  # fmt: skip
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidValue(f"{value!r} must be a sequence of paths, not one string")
    return tuple(value)  # type: ignore[arg-type]


@attrs.frozen(eq=False, repr=False)
class Proc(Value):
    """A new /proc that shows the processes of the new pid namespace (proc(5)).

    ``masked`` and ``read_only`` are paths below it; covers are inodes of our own. ``subset="pid"`` shows nothing but
    processes, and ``hidepid`` hides those of other users ("noaccess", "invisible", "ptraceable"; Linux 5.8).
    """

    target: bytes = attrs.field(default=b"/proc", converter=_target, repr=_target_repr)
    masked: tuple[str, ...] = attrs.field(default=MASKED, converter=_names, kw_only=True)
    read_only: tuple[str, ...] = attrs.field(default=READ_ONLY, converter=_names, kw_only=True)
    subset: Literal["pid"] | None = attrs.field(default=None, kw_only=True)
    hidepid: Literal["off", "noaccess", "invisible", "ptraceable"] | None = attrs.field(default=None, kw_only=True)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        if self.subset is None and self.masked:
            build.need_masks()
        build.plan.add(*self._ops(build))

    def _ops(self, build: Build) -> tuple[Op, ...]:
        return _proc_ops(self.target, self.masked, self.read_only, self.subset, self.hidepid, build.host_root)

    def compile_over(self, build: Build) -> None:
        """For a process that joined a sandbox and has a pid namespace of its own: a new /proc over the sandbox's.

        There is no workbench here; the tmpfs with the covers lies below the new /proc instead, where nobody reaches it.
        """
        build.plan.add(*_over(_MASKS, self.target))
        build.plan.add(*_over(self._ops(build), self.target))


def _over(ops: tuple[Op, ...], target: bytes) -> list[Op]:
    """The same operations from the root directory as it is."""
    return [
        Op(op.code, op.stage, op.words, target, flags=p.NOSYMLINK, slot=op.slot, a=op.a)
        if op.code is Code.ATTACH and op.base in (p.SLOT_ROOT, p.SLOT_SCRATCH)
        else op
        for op in ops
    ]


@cache
def _existing(names: tuple[str, ...], host_root: bool, mode: int) -> list[bytes]:
    """Those that need a cover: the host's /proc has them (the kernel is the same one), and grants ``mode`` to others.

    Everything there belongs to the host's root. Where its id has no place in the user namespace, what is closed to
    others is closed by the kernel, whatever the program becomes inside (capabilities(7): DAC_OVERRIDE needs a mapped
    owner).
    """
    found = []
    for name in names:
        try:
            st = os.lstat(f"/proc/{name}")
        except OSError:
            continue
        if host_root or st.st_mode & mode or name == "sys":
            found.append(name.encode())
    return found


@cache
def _proc_ops(
    target: bytes,
    masked: tuple[str, ...],
    read_only: tuple[str, ...],
    subset: str | None,
    hidepid: str | None,
    host_root: bool,
) -> tuple[Op, ...]:
    options = [b"subset", subset.encode()] if subset else []
    options += [b"hidepid", hidepid.encode()] if hidepid else []
    ops = [
        Op(Code.FS, Stage.INSIDE, "make a new proc", b"proc", *options, slot=p.SLOT_PROC, a=NOSUID | NODEV | NOEXEC),
        _attach(p.SLOT_PROC, target, "proc", flags=p.MKDIR | p.NOSYMLINK),
    ]
    if subset is None:
        covered, kept = _existing(masked, host_root, 0o004), _existing(read_only, host_root, 0o002)
        if kept:
            ops.append(
                Op(Code.READONLY, Stage.INSIDE, f"make {_list(target, kept)} read-only", *kept, base=p.SLOT_PROC)
            )
        if covered:
            ops.append(
                Op(
                    Code.MASK,
                    Stage.INSIDE,
                    f"cover {_list(target, covered)}",
                    *covered,
                    base=p.SLOT_PROC,
                    slot=p.SLOT_MASKS,
                )
            )
    return tuple(ops)


def _list(target: bytes, names: list[bytes]) -> str:
    return f"{_show(target)}/{{{','.join(os.fsdecode(name) for name in names)}}}"


@attrs.frozen(eq=False, repr=False)
class Sysfs(Value):
    """The parts of /sys that programs ask for, read-only (sysfs(5)).

    ``paths`` below /sys are shown and nothing else is: what the kernel adds to /sys stays hidden without a list of
    things to hide. With ``paths=None`` it is the whole sysfs of the new network namespace, read-only.
    """

    target: bytes = attrs.field(default=b"/sys", converter=_target, repr=_target_repr)
    paths: tuple[str, ...] | None = attrs.field(
        default=("devices/system/cpu", "devices/system/node"), converter=attrs.converters.optional(_names), kw_only=True
    )

    def compile(self, build: Build, *, own_net: bool = True) -> None:
        """Add its operations to a plan under construction."""
        build.plan.add(*_sysfs_ops(self.target, self.paths, own_net))


@cache
def _sysfs_ops(target: bytes, paths: tuple[str, ...] | None, own_net: bool) -> tuple[Op, ...]:
    attr = RDONLY | NOSUID | NODEV | NOEXEC
    # A new sysfs shows a network namespace, and only its owner may make one: with the host's network, the host's is
    # bound.
    fresh = Op(Code.FS, Stage.INSIDE, "make a new sysfs", b"sysfs", slot=p.SLOT_SYS, a=attr)
    if paths is None:
        if own_net:
            return fresh, _attach(p.SLOT_SYS, target, "sysfs", flags=p.MKDIR | p.NOSYMLINK)
        return host_op("/sys", p.SLOT_TEMP, attr), _attach(
            p.SLOT_TEMP, target, "the host's sysfs", flags=p.MKDIR | p.NOSYMLINK
        )
    ops = [
        Op(Code.FS, Stage.INSIDE, "make a tmpfs for the shown part of sysfs", b"tmpfs", b"size", b"64k", b"mode",
           b"755", slot=p.SLOT_TEMP2, a=NOSUID | NODEV | NOEXEC),
        _attach(p.SLOT_TEMP2, target, "it", flags=p.MKDIR | p.NOSYMLINK),
    ]  # fmt: skip
    if own_net:
        ops += [
            fresh,
            keep("s", p.SLOT_SYS, "keep it on the workbench"),
        ]
    shown = [path for path in paths if os.path.isdir(f"/sys/{path}")]
    ops += parents(shown, p.SLOT_TEMP2)
    for path in shown:
        raw = path.encode()
        if own_net:
            ops.append(
                Op(
                    Code.CLONE,
                    Stage.INSIDE,
                    f"take {path} of sysfs",
                    raw,
                    flags=p.RECURSIVE,
                    slot=p.SLOT_TEMP,
                    base=p.SLOT_SYS,
                    a=attr,
                )
            )
        else:
            ops.append(host_op(f"/sys/{path}", p.SLOT_TEMP, attr))
        ops.append(_attach_ours(p.SLOT_TEMP, f"{_show(target)}/{path}", raw, base=p.SLOT_TEMP2))
    ops.append(Op(Code.ATTR, Stage.INSIDE, f"make {_show(target)} read-only", slot=p.SLOT_TEMP2, a=RDONLY))
    return tuple(ops)


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


NODES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
)


@attrs.frozen(eq=False, repr=False)
class Dev(Value):
    """A new /dev: the harmless device nodes of the host, a terminal file system of its own, shm, and mqueue.

    Nothing of the root's own /dev is read or written. ``mqueue`` needs a new ipc namespace, and is left out without.
    """

    target: bytes = attrs.field(default=b"/dev", converter=_target, repr=_target_repr)
    nodes: tuple[str, ...] = attrs.field(default=NODES, converter=_names, kw_only=True)
    shm_size: int = attrs.field(default=64 << 20, converter=parse_size, kw_only=True)
    read_only: bool = attrs.field(default=True, kw_only=True)

    def compile(self, build: Build, *, own_ipc: bool = True) -> None:
        """Add its operations to a plan under construction."""
        build.plan.add(*_dev_ops(self.target, self.nodes, self.shm_size, self.read_only, own_ipc))


@cache
def _dev_ops(target: bytes, nodes: tuple[str, ...], shm_size: int, read_only: bool, own_ipc: bool) -> tuple[Op, ...]:
    def fs(kind: str, path: str, slot: int, attr: int, *options: bytes) -> tuple[Op, Op]:
        return (
            Op(Code.FS, Stage.INSIDE, f"make a new {kind}", kind.encode(), *options, slot=slot, a=attr),
            _attach_ours(slot, f"{_show(target)}/{path}", path.encode(), base=p.SLOT_DEV),
        )

    ops = [
        Op(Code.FS, Stage.INSIDE, "make a tmpfs for devices", b"tmpfs", b"size", b"64k", b"mode", b"755",
           slot=p.SLOT_DEV, a=NOSUID | NOEXEC),
        _attach(p.SLOT_DEV, target, "it", flags=p.MKDIR | p.NOSYMLINK),
    ]  # fmt: skip
    ops += parents(nodes, p.SLOT_DEV)
    for node in nodes:
        ops += [
            # Read-only is about the node's mode, owner and times: writing to a device is not writing to its file system.
            host_op(f"/dev/{node}", p.SLOT_TEMP, RDONLY | NOSUID | NOEXEC, recursive=False),
            _attach_ours(p.SLOT_TEMP, f"{_show(target)}/{node}", node.encode(), base=p.SLOT_DEV, make=p.MKFILE),
        ]
    for link_to, name in (*_LINKS, ("pts/ptmx", "ptmx")):
        ops.append(
            Op(
                Code.SYMLINK,
                Stage.INSIDE,
                f"link {_show(target)}/{name} to {link_to}",
                link_to.encode(),
                name.encode(),
                flags=p.OURS,
                base=p.SLOT_DEV,
            )
        )
    ops += fs("devpts", "pts", p.SLOT_PTS, NOSUID | NOEXEC, b"newinstance", b"", b"ptmxmode", b"666", b"mode", b"620")
    ops += fs("tmpfs", "shm", p.SLOT_TEMP, NOSUID | NODEV | NOEXEC, b"size", b"%d" % shm_size, b"mode", b"1777")
    if own_ipc:
        ops += fs("mqueue", "mqueue", p.SLOT_TEMP, NOSUID | NODEV | NOEXEC)
    if read_only:
        ops.append(Op(Code.ATTR, Stage.INSIDE, f"make {_show(target)} read-only", slot=p.SLOT_DEV, a=RDONLY))
    return tuple(ops)


def _content(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


@attrs.frozen(eq=False, repr=False)
class File(Value):
    """Bytes placed at a path: a file of ours, mounted read-only. The root below it does not change."""

    target: bytes = attrs.field(converter=_target, repr=_target_repr)
    content: bytes = attrs.field(converter=_content, repr=lambda content: f"<{len(content)} bytes>")
    mode: int = attrs.field(default=0o644, kw_only=True)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        build.files += 1
        name = b"f%d" % build.files
        build.plan.add(
            Op(Code.FILE, Stage.INSIDE, f"write {len(self.content)} bytes for {_show(self.target)}", name, self.content,
               base=p.SLOT_SCRATCH, a=self.mode),
            Op(Code.CLONE, Stage.INSIDE, "take the file", name,
               slot=p.SLOT_TEMP, base=p.SLOT_SCRATCH, a=RDONLY | NOSUID | NODEV),
            _attach(p.SLOT_TEMP, self.target, "the file", flags=p.MKFILE, mode=0o644),
        )  # fmt: skip


Mount = Bind | Tmpfs | Proc | Sysfs | Dev | File


# ---- the handle ------------------------------------------------------------------------------------------------------


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
        wanted = ((read_only, RDONLY), (nosuid, NOSUID), (nodev, NODEV), (noexec, NOEXEC), (nosymfollow, NOSYMFOLLOW))
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
