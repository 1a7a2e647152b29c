"""How the first process of a plan comes to be in its cgroups from its first instruction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ..errors import InvalidValue
from ..kernel import calls
from ..kernel.fd import put
from ..plan import Code, Op, Plan, Stage
from .base import MAGIC
from .cgroup import Cgroup
from .directory import Directory
from .start import Bounds

if TYPE_CHECKING:

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


__all__ = ["join"]

_RLIMIT_DATA = 2


def join(plan: Plan, cgroup: Cgroup | Bounds | HasFileno | Sequence[HasFileno]) -> None:
    """Start in a group: by its handle, that of a start, or those of directories that the caller has opened."""
    if isinstance(cgroup, Cgroup):
        cgroup.fileno()  # raises when it is closed
        _enter_all(plan, cgroup.dirs)
    elif isinstance(cgroup, Bounds):
        _enter_all(plan, cgroup.dirs)
        _second_best(plan, cgroup)
    else:
        handles = cgroup if isinstance(cgroup, (list, tuple)) else (cgroup,)
        for handle in handles:
            _enter(plan, handle.fileno(), _version(handle), "")


def _enter_all(plan: Plan, directories: Sequence[Directory]) -> None:
    for one in directories:
        _enter(plan, one.fileno(), one.version, ",".join(one.controllers))


def _enter(plan: Plan, fd: int, version: int, controllers: str) -> None:
    """A v2 directory is entered by clone3(2) itself. A v1 directory is entered by the process: the kernel then skips
    the lock for which a move from outside waits milliseconds.
    """
    if version == 2:
        plan.cgroup_fd = plan.fd(fd)
        return
    tasks = put(plan.owned, partial(os.open, dir_fd=fd), "tasks", os.O_WRONLY | os.O_CLOEXEC)
    words = f"enter the cgroup (v1{': ' + controllers if controllers else ''})"
    plan.add(Op(Code.CGROUP1, Stage.EARLY, words, fd=plan.fd(tasks)))


def _version(handle: HasFileno) -> int:
    magic = calls.fs_magic(handle.fileno())
    for version, number in MAGIC.items():
        if magic == number:
            return version
    raise InvalidValue(f"cgroup={handle!r} is not a directory of a cgroup file system")


def _second_best(plan: Plan, bounds: Bounds) -> None:
    """With the caller's consent: each process by itself, in the place of all together."""
    instead = bounds.second_best
    if (most := instead.get("memory_max")) is not None:
        words = f"limit data to {most}, as no cgroup keeps memory_max"
        plan.add(Op(Code.RLIMIT, Stage.PROGRAM, words, fd=_RLIMIT_DATA, a=int(most), b=int(most)))
    if (cpus := instead.get("cpuset_cpus")) is not None:
        from ..limit_values import cpus_of

        mask = sum(1 << cpu for cpu in cpus_of(str(cpus)))
        raw = mask.to_bytes(mask.bit_length() // 64 * 8 + 8, "little")
        plan.add(Op(Code.AFFINITY, Stage.JOIN, f"run on processors {cpus}, as no cgroup keeps cpuset_cpus", raw))
