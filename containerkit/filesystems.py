"""The file systems that a root needs beside its own, /tmp, /proc, /sys and /dev, as operations of a plan."""

from __future__ import annotations

import os
import stat
from functools import cache

from . import plan as p
from .build import (
    NODEV,
    NOEXEC,
    NOSUID,
    RDONLY,
    attach,
    attach_ours,
    host_op,
    keep,
    parents,
    show,
)
from .plan import Code, Op, Stage

__all__ = [
    "MASKED",
    "NODES",
    "READ_ONLY",
    "SYS_PATHS",
    "dev_ops",
    "over",
    "proc_ops",
    "sysfs_ops",
    "tmpfs_ops",
]

# The union of what docker, podman and systemd hide, and what else shows the host without need. A path that this kernel
# does not have is skipped; nothing here is needed by a program that minds its own business.
MASKED = (
    "acpi", "asound", "bootconfig", "buddyinfo", "bus/pci", "cmdline", "config.gz", "diskstats", "driver",
    "dynamic_debug", "interrupts", "iomem", "ioports", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup",
    "kpagecount", "kpageflags", "latency_stats", "modules", "mtrr", "pagetypeinfo", "partitions", "sched_debug", "scsi",
    "slabinfo", "swaps", "timer_list", "timer_stats", "version_signature", "vmallocinfo", "zoneinfo",
)  # fmt: skip
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


SYS_PATHS = ("devices/system/cpu", "devices/system/node")
NODES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
)


@cache
def tmpfs_ops(target: bytes, size: int, inodes: int, mode: int, noexec: bool, uid: int, gid: int) -> tuple[Op, ...]:
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
    return make, attach(p.SLOT_TEMP, target, "it")


def over(ops: tuple[Op, ...], target: bytes) -> list[Op]:
    """The same operations from the root directory as it is."""
    return [
        Op(op.code, op.stage, op.words, target, flags=p.NOSYMLINK, slot=op.slot, a=op.a)
        if op.code is Code.ATTACH and op.base in (p.SLOT_ROOT, p.SLOT_SCRATCH)
        else op
        for op in ops
    ]


@cache
def _existing(names: tuple[str, ...], host_root: bool, mode: int) -> list[tuple[bytes, bool]]:
    """Those that need a cover, and whether each is a directory.

    The host's /proc has them (the kernel is the same one), and grants ``mode`` to others.
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
            found.append((name.encode(), stat.S_ISDIR(st.st_mode)))
    return found


@cache
def proc_ops(
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
        attach(p.SLOT_PROC, target, "proc", flags=p.MKDIR | p.NOSYMLINK),
    ]
    if subset is None:
        covered, kept = _existing(masked, host_root, 0o004), _existing(read_only, host_root, 0o002)
        if kept:
            paths = [name for name, _ in kept]
            words = f"make {_list(target, paths)} read-only"
            ops.append(Op(Code.READONLY, Stage.INSIDE, words, *paths, base=p.SLOT_PROC))
        for flags in (0, p.MKDIR):
            if paths := [name for name, directory in covered if directory == bool(flags)]:
                words = f"cover {_list(target, paths)}"
                ops.append(Op(Code.MASK, Stage.INSIDE, words, *paths, flags=flags, base=p.SLOT_PROC, slot=p.SLOT_MASKS))
    return tuple(ops)


def _list(target: bytes, names: list[bytes]) -> str:
    return f"{show(target)}/{{{','.join(os.fsdecode(name) for name in names)}}}"


@cache
def sysfs_ops(target: bytes, paths: tuple[str, ...] | None, own_net: bool) -> tuple[Op, ...]:
    attr = RDONLY | NOSUID | NODEV | NOEXEC
    # A new sysfs shows a network namespace, and only its owner may make one: with the host's network, the host's is
    # bound.
    fresh = Op(Code.FS, Stage.INSIDE, "make a new sysfs", b"sysfs", slot=p.SLOT_SYS, a=attr)
    if paths is None:
        if own_net:
            return fresh, attach(p.SLOT_SYS, target, "sysfs", flags=p.MKDIR | p.NOSYMLINK)
        return host_op("/sys", p.SLOT_TEMP, attr), attach(
            p.SLOT_TEMP, target, "the host's sysfs", flags=p.MKDIR | p.NOSYMLINK
        )
    ops = [
        Op(Code.FS, Stage.INSIDE, "make a tmpfs for the shown part of sysfs", b"tmpfs", b"size", b"64k", b"mode",
           b"755", slot=p.SLOT_TEMP2, a=NOSUID | NODEV | NOEXEC),
        attach(p.SLOT_TEMP2, target, "it", flags=p.MKDIR | p.NOSYMLINK),
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
        ops.append(attach_ours(p.SLOT_TEMP, f"{show(target)}/{path}", raw, base=p.SLOT_TEMP2))
    ops.append(Op(Code.ATTR, Stage.INSIDE, f"make {show(target)} read-only", slot=p.SLOT_TEMP2, a=RDONLY))
    return tuple(ops)


@cache
def dev_ops(target: bytes, nodes: tuple[str, ...], shm_size: int, read_only: bool, own_ipc: bool) -> tuple[Op, ...]:
    def fs(kind: str, path: str, slot: int, attr: int, *options: bytes) -> tuple[Op, Op]:
        return (
            Op(Code.FS, Stage.INSIDE, f"make a new {kind}", kind.encode(), *options, slot=slot, a=attr),
            attach_ours(slot, f"{show(target)}/{path}", path.encode(), base=p.SLOT_DEV),
        )

    ops = [
        Op(Code.FS, Stage.INSIDE, "make a tmpfs for devices", b"tmpfs", b"size", b"64k", b"mode", b"755",
           slot=p.SLOT_DEV, a=NOSUID | NOEXEC),
        attach(p.SLOT_DEV, target, "it", flags=p.MKDIR | p.NOSYMLINK),
    ]  # fmt: skip
    ops += parents(nodes, p.SLOT_DEV)
    for node in nodes:
        ops += [
            # Read-only is about the node's mode, owner and times: its file system is not what a device writes to.
            host_op(f"/dev/{node}", p.SLOT_TEMP, RDONLY | NOSUID | NOEXEC, recursive=False),
            attach_ours(p.SLOT_TEMP, f"{show(target)}/{node}", node.encode(), base=p.SLOT_DEV, make=p.MKFILE),
        ]
    for link_to, name in (*_LINKS, ("pts/ptmx", "ptmx")):
        ops.append(
            Op(
                Code.SYMLINK,
                Stage.INSIDE,
                f"link {show(target)}/{name} to {link_to}",
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
        ops.append(Op(Code.ATTR, Stage.INSIDE, f"make {show(target)} read-only", slot=p.SLOT_DEV, a=RDONLY))
    return tuple(ops)
