"""The file systems that a root needs beside its own, /tmp, /proc, /sys and /dev, as frozen values."""

from __future__ import annotations

from typing import Literal

from .build import MASKS, Build, Mount, target_path, target_repr
from .errors import InvalidValue
from .filesystems import MASKED, NODES, READ_ONLY, SYS_PATHS, dev_ops, over, proc_ops, sysfs_ops, tmpfs_ops
from .plan import Op
from .units import size as parse_size
from .value import Value, field, frozen

__all__ = ["Dev", "Proc", "Sysfs", "Tmpfs"]

_OPTIONS = frozenset({"nosuid", "nodev"})


@frozen()
class Tmpfs(Value, Mount):
    """A new file system in memory (tmpfs(5)). ``size`` (bytes) and ``inodes`` bound it; ``mode`` is its root's."""

    grants, fstype = "write", "tmpfs"

    @property
    def options(self) -> frozenset[str]:  # type: ignore[override]
        """What mountinfo must say of it."""
        return _OPTIONS | {"noexec"} if self.noexec else _OPTIONS

    target: bytes = field(converter=target_path, repr=target_repr)
    size: int = field(default=64 << 20, converter=parse_size, kw_only=True)
    inodes: int = field(default=65536, kw_only=True)
    mode: int = field(default=0o1777, kw_only=True)
    noexec: bool = field(default=False, kw_only=True)
    uid: int = field(default=0, kw_only=True)
    gid: int = field(default=0, kw_only=True)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        build.plan.add(*tmpfs_ops(self.target[1:], self.size, self.inodes, self.mode, self.noexec, self.uid, self.gid))


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidValue(f"{value!r} must be a sequence of paths, not one string")
    return tuple(value)  # type: ignore[arg-type]


def _kernel_names(value: object) -> tuple[str, ...]:
    """Paths of proc that mean the same to every process; what is behind a process's own could be anywhere."""
    names = _names(value)
    for name in names:
        parts = name.split("/")
        if not all(parts) or "." in parts or ".." in parts or parts[0] in _OF_PROCESSES or parts[0].isdecimal():
            raise InvalidValue(
                f"{name!r} must be a path below /proc of the kernel's own, like 'kcore' or 'bus/pci', not of a process"
            )
    return names


_OF_PROCESSES = ("self", "thread-self", "net", "mounts")


def _optional_names(value: object) -> tuple[str, ...] | None:
    return None if value is None else _names(value)


@frozen()
class Proc(Value, Mount):
    """A new /proc that shows the processes of the new pid namespace (proc(5)).

    ``masked`` and ``read_only`` are paths below it; covers are inodes of our own. ``subset="pid"`` shows nothing but
    processes, and ``hidepid`` hides those of other users ("noaccess", "invisible", "ptraceable"; Linux 5.8).
    """

    grants, fstype = "write_file truncate", "proc"
    options = _OPTIONS | {"noexec"}

    target: bytes = field(default=b"/proc", converter=target_path, repr=target_repr)
    masked: tuple[str, ...] = field(default=MASKED, converter=_kernel_names, kw_only=True)
    read_only: tuple[str, ...] = field(default=READ_ONLY, converter=_kernel_names, kw_only=True)
    subset: Literal["pid"] | None = field(default=None, kw_only=True)
    hidepid: Literal["off", "noaccess", "invisible", "ptraceable"] | None = field(default=None, kw_only=True)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        if self.subset is None and self.masked:
            build.need_masks()
        build.plan.add(*self._ops(build))

    def _ops(self, build: Build) -> tuple[Op, ...]:
        return proc_ops(self.target[1:], self.masked, self.read_only, self.subset, self.hidepid, build.host_root)

    def compile_over(self, build: Build) -> None:
        """For a process that joined a sandbox and has a pid namespace of its own: a new /proc over the sandbox's.

        There is no workbench here; the tmpfs with the covers lies below the new /proc instead, where nobody reaches it.
        """
        build.plan.add(*over(MASKS, self.target[1:]), *over(self._ops(build), self.target[1:]))


@frozen()
class Sysfs(Value, Mount):
    """The parts of /sys that programs ask for, read-only (sysfs(5)).

    ``paths`` below /sys are shown and nothing else is: what the kernel adds to /sys stays hidden without a list of
    things to hide. With ``paths=None`` it is the whole sysfs of the new network namespace, read-only.
    """

    options = _OPTIONS | {"noexec", "ro"}

    target: bytes = field(default=b"/sys", converter=target_path, repr=target_repr)
    paths: tuple[str, ...] | None = field(default=SYS_PATHS, converter=_optional_names, kw_only=True)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        build.need_network()
        build.plan.add(*sysfs_ops(self.target[1:], self.paths, build.own_net))


@frozen()
class Dev(Value, Mount):
    """A new /dev: the harmless device nodes of the host, a terminal file system of its own, shm, and mqueue.

    Nothing of the root's own /dev is read or written. ``mqueue`` needs a new ipc namespace, and is left out without.
    """

    has_dev = True
    grants, fstype = "write ioctl_dev", "tmpfs"

    @property
    def options(self) -> frozenset[str]:  # type: ignore[override]
        """What mountinfo must say of it."""
        return frozenset({"nosuid", "noexec", "ro" if self.read_only else "rw"})

    target: bytes = field(default=b"/dev", converter=target_path, repr=target_repr)
    nodes: tuple[str, ...] = field(default=NODES, converter=_names, kw_only=True)
    shm_size: int = field(default=64 << 20, converter=parse_size, kw_only=True)
    read_only: bool = field(default=True, kw_only=True)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        build.plan.add(*dev_ops(self.target[1:], self.nodes, self.shm_size, self.read_only, build.own_ipc))
