"""What this user can do on this machine, found out by doing it in a fresh process that ends at once.

Each trial starts ck-init with a small plan that takes the step for real: making a user namespace says little
while a security module may leave it without rights, so a trial also uses them. A trial takes about a
millisecond and is made once in a process. ``kernel.probe`` has what needs no process.
"""

from __future__ import annotations

import os
from functools import cache

from . import plan as p
from .errors import ContainerkitError, SpawnError
from .holder import Holder
from .idmap import IdMap
from .kernel import helper, probe
from .kernel.probe import Finding
from .namespaces import Namespaces
from .plan import Code, Mode, Op, Plan, Stage

__all__ = [
    "exit_status_of_reaped",
    "idmapped_mount",
    "namespace",
    "new_proc",
    "overlay",
    "overlay_appends",
    "start",
    "subordinate_ids",
    "user_namespace",
]


@cache
def start() -> Finding:
    """Start ck-init, without any isolation."""
    found = _try(Plan(Mode.HOLD))
    if not found:
        return found
    program = os.readlink(f"/proc/self/fd/{helper.fd()}")
    sealed = program.startswith("/memfd:")
    return Finding(True, "from a sealed memory file" if sealed else "from the installed file")


@cache
def user_namespace() -> Finding:
    """Make a user namespace, map an id, and use the rights in it: make a tmpfs, bring the loopback up."""
    return _try(_plan(Namespaces(user="new", mnt="new", net="new"), _tmpfs()))


@cache
def namespace(kind: str) -> Finding:
    """Make a namespace of one of the eight kinds, with a user namespace around it."""
    kinds: dict[str, str] = {"user": "new", kind: "new"}
    return _try(_plan(Namespaces(**kinds)))  # type: ignore[arg-type]


@cache
def new_proc() -> Finding:
    """Make a proc file system for a new pid namespace: refused where the visible one is partly covered."""
    values = Namespaces(user="new", mnt="new", pid="new")
    return _try(_plan(values, Op(Code.FS, Stage.INSIDE, "make a new proc", b"proc", slot=p.SLOT_PROC)))


@cache
def overlay() -> Finding:
    """Mount an overlay in a user namespace (Linux 5.11)."""
    return _try(_overlay_plan(b"lowerdir", b"l"))


@cache
def overlay_appends() -> Finding:
    """Give an overlay its layers one by one, so that names may hold commas and colons (Linux 6.8)."""
    return _try(_overlay_plan(b"lowerdir+", b"l"))


@cache
def idmapped_mount(directory: str) -> Finding:
    """Map the ids of a mount of this directory, so that its files need no chown (Linux 5.12).

    Needs root, and a file system that can (mount_setattr(2), MOUNT_ATTR_IDMAP).
    """
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    plan = _plan(Namespaces(user="new"))
    plan.owned.append(fd)
    words, path = f"map the ids of a mount of {directory}", os.fsencode(directory)
    plan.add(Op(Code.TREE, Stage.OUTSIDE, words, path, flags=p.IDMAP, fd=plan.fd(fd), slot=p.SLOT_TEMP))
    return _try(plan)


@cache
def subordinate_ids() -> Finding:
    """Map the ranges that /etc/subuid and /etc/subgid grant to this user."""
    try:
        idmap = IdMap.subordinate()
    except ContainerkitError as error:
        return Finding(False, str(error))
    found = _try(_plan(Namespaces(user="new"), idmap=idmap))
    ids = sum(count for _, _, count in idmap.uid)
    return Finding(True, f"{ids} ids") if found else found


@cache
def exit_status_of_reaped() -> Finding:
    """Learn the exit status of a process that somebody else has reaped (Linux 6.15)."""
    with Holder(Plan(Mode.HOLD)) as holder:
        pidfd = holder.take_pidfd()
    try:
        works = probe.pidfd_exit_status(pidfd)
    finally:
        os.close(pidfd)
    return Finding(works, "" if works else "the kernel does not keep it")


# ---- plans -----------------------------------------------------------------------------------------------


def _plan(namespaces: Namespaces, *ops: Op, idmap: IdMap | None = None) -> Plan:
    """A first process with id 0 in its own namespaces, that takes some steps and stays."""
    idmap = idmap or IdMap.single()
    plan = Plan(Mode.HOLD, namespaces.clone_flags())
    namespaces.compile(plan, root_caller=False)
    idmap.compile(plan)
    flags = p.NO_GROUPS if idmap.denies_setgroups else 0
    plan.add(Op(Code.BECOME, Stage.INSIDE, "become id 0 of the user namespace", flags=flags), *ops)
    return plan


def _tmpfs() -> Op:
    return Op(Code.FS, Stage.INSIDE, "make a tmpfs", b"tmpfs", b"size", b"64k", slot=p.SLOT_SCRATCH)


def _overlay_plan(key: bytes, lower: bytes) -> Plan:
    """An overlay of directories of a tmpfs. That is the working directory, so their names are relative."""
    make = [
        Op(Code.MKDIR, Stage.INSIDE, "make a directory for a layer", name, base=p.SLOT_SCRATCH, a=0o755)
        for name in (lower, b"u", b"w")
    ]
    options = (key, lower, b"upperdir", b"u", b"workdir", b"w", b"userxattr", b"")
    return _plan(
        Namespaces(user="new", mnt="new"),
        Op(Code.PRIVATE, Stage.INSIDE, "make all mounts private"),
        _tmpfs(),
        Op(Code.SCRATCH, Stage.INSIDE, "work in it", slot=p.SLOT_SCRATCH),
        *make,
        Op(Code.FS, Stage.INSIDE, "make an overlay", b"overlay", *options, slot=p.SLOT_TEMP),
    )


def _try(plan: Plan) -> Finding:
    try:
        Holder(plan).close()
    except SpawnError as error:
        reason = f"{error.syscall}: {error.strerror}" if error.syscall else error.strerror
        return Finding(False, f"could not {error.step}: {reason}", error.hint or "")
    except ContainerkitError as error:
        return Finding(False, str(error))
    return Finding(True, "")
