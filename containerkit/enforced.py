"""Reading back from the kernel which walls a running sandbox has.

Half of them are its namespaces, which PID 1 holds. The other half only its programs have. So one is started like any
other, and looked at where it waits in front of its exec; then it is gone again, and has run nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from . import spawn
from .errors import SpawnError, Unsupported
from .kernel import procfs
from .kernel.procfs import Mounted
from .launch import Launch, compile_launch
from .plan import Code, Op

if TYPE_CHECKING:
    from .process import Process
    from .security import Security

__all__ = ["enforced"]


def enforced(process: Process, namespaces: Sequence[tuple[str, int]], joiner: Launch) -> dict[str, str]:
    """Walls by name, with what the kernel says of each. A wall that is not there is not in the answer.

    ``namespaces`` are the (kind, descriptor) pairs that the sandbox opened for its joiners, and ``joiner`` a program
    that joins it.
    """
    walls: dict[str, str] = {}
    for kind, fd in namespaces:
        if os.fstat(fd).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
            walls[f"{kind} namespace"] = f"{kind}:[{os.fstat(fd).st_ino}]"
    try:
        look = _look(joiner)
        walls["user ids"] = " ".join(procfs.read(f"/proc/{process.pid}/uid_map").split())
    except (SpawnError, FileNotFoundError, ProcessLookupError) as error:
        if process._try_wait(0):
            raise Unsupported("the sandbox has ended: there is nothing to read back") from error
        raise
    walls.update(_privilege(look.status, joiner.security, look.ops))
    if "user namespace" in walls and not joiner.security.user_namespaces:
        walls["nested user namespaces"] = "none: user.max_user_namespaces is 0"
    walls.update(_mounts(look.mounts))
    if process._bounds is not None:
        walls.update(process._bounds.enforced())
    return walls


class _Looked(Exception):
    """Enough was seen: the program need not run."""


class _Look:
    """What there is to see of a program's process before its exec."""

    def __init__(self) -> None:
        self.status: Mapping[str, str] = {}
        self.mounts: list[Mounted] = []
        self.ops: list[Op] = []

    def __call__(self, pid: int) -> None:
        self.status, self.mounts = procfs.status(pid), procfs.mounts(pid)
        raise _Looked


class _Nobody:
    """Takes the listener of a filter whose calls nobody is going to make."""

    def attach(self, listener: int) -> None:
        os.close(listener)


def _look(joiner: Launch) -> _Look:
    import attrs

    joiner.security = attrs.evolve(joiner.security, attest=True)
    look = _Look()
    plan = compile_launch(joiner, None)
    try:
        plan.attest, look.ops = look, plan.ops
        plan.supervision = _Nobody()  # type: ignore[assignment]
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            spawn.Starting(plan, (null, null, null)).drive()
        except _Looked:
            return look
        finally:
            os.close(null)
    finally:
        plan.close()
    raise AssertionError("the program ran though it was not let go")


# ---- what a program is -----------------------------------------------------------------------------------------------


def _privilege(status: Mapping[str, str], security: Security, ops: Iterable[Op]) -> Iterator[tuple[str, str]]:
    had = max(int(status[name], 16) for name in ("CapBnd", "CapPrm", "CapInh", "CapAmb"))
    if not had:
        yield "capabilities", "none, and none to be had"
    elif had != _all_capabilities():
        from .security.capabilities import NAMES

        kept = " ".join(f"CAP_{name}" for number, name in enumerate(NAMES) if had >> number & 1)
        yield "capabilities", f"{kept}, and no others to be had"
    if status["NoNewPrivs"] == "1":
        yield "no_new_privs", "set"
    if not status["Groups"]:
        yield "groups", "none beside its own"
    if status["Seccomp"] == "2":
        filters = int(status.get("Seccomp_filters", "1"))  # Linux 5.9
        inherited = f", and {filters - 1} of the caller's" if filters > 1 and security.seccomp is not None else ""
        yield "seccomp", str(security.seccomp or "the caller's filters").removeprefix("seccomp: ") + inherited
    for op in ops:
        if op.code is Code.LANDLOCK:
            yield "Landlock", op.words.removeprefix("confine it with Landlock ")


def _all_capabilities() -> int:
    return int((1 << int(procfs.read("/proc/sys/kernel/cap_last_cap")) + 1) - 1)


# ---- what it sees ----------------------------------------------------------------------------------------------------


def _mounts(found: Sequence[Mounted]) -> Iterator[tuple[str, str]]:
    below_proc = [one for one in found if one.target.startswith("/proc/")]
    yield "mounts", f"{len(found)}, {sum('ro' in one.options for one in found)} of them read-only"
    covers = {one.target for one in below_proc if one.fstype == "tmpfs"}
    kept = {one.target for one in below_proc if one.fstype == "proc" and "ro" in one.options}
    if covers or kept:
        yield "covers", f"{len(covers)} paths of /proc are covered, {len(kept)} read-only"
    yield "of the host", _host_mounts(found)


def _host_mounts(found: Sequence[Mounted]) -> str:
    """Which of its mounts show a file system that is mounted for the caller too: that is what the host's tree is."""
    devices = {one.device for one in procfs.mounts("self")}
    shown = [one for one in found if one.device in devices]
    nodes = sorted(one.target for one in shown if one.target.startswith("/dev/"))
    parts = {
        "read-only": sorted({one.target for one in shown if "ro" in one.options} - {*nodes}),
        "writable": sorted({one.target for one in shown if "ro" not in one.options} - {*nodes}),
        "devices": nodes,
    }
    return "; ".join(f"{name} {' '.join(paths)}" for name, paths in parts.items() if paths) or "nothing"
