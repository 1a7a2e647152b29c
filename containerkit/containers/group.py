"""The control group of a container: made for a start, and read and removed after the end by whoever comes next.

What a start makes outside the store is written to the row first (``run``): after a crash, of this program or the
machine, it is known what to clear away. That is :func:`settle`, and doing it twice does no harm.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from ..cgroup import base
from ..cgroup.account import exact_usage
from ..cgroup.cgroup import Cgroup
from ..cgroup.layout import Layout
from ..cgroup.oom import oom
from ..errors import CgroupUnavailable, ContainerkitError, Exists, NotFound
from .events import emit
from .possession import possessed
from .state import read_record

if TYPE_CHECKING:
    from ..completed import Usage
    from ..limits import Limits
    from .container import Container, Row

__all__ = ["clean", "group", "make_group", "open_group", "run_of", "settle", "settle_with", "usage", "write_run"]

_CONTROLLERS = ("cgroup", "memory", "cpu", "pids")
"""What a container's group has where there is any, for stats() and pause(), beside what its limits need."""


def make_group(container: Container, limits: Limits, stack: ExitStack) -> Cgroup | None:
    """Its group, by a name of its own, so that whoever comes next finds it; its handle is closed with the stack."""
    name = f"ck-{container.id[:24]}"
    try:
        made = _created(name, limits)
    except CgroupUnavailable:
        if limits.grouped and not limits.best_effort:
            raise
        write_run(container, {"boot": _boot_id()})
        return None
    stack.callback(made.close)
    try:
        write_run(container, {"boot": _boot_id(), "cgroup": [one.path for one in made.dirs]})
    except BaseException:
        made.remove()
        raise
    return made


def _created(name: str, limits: Limits) -> Cgroup:
    wanted = frozenset(_CONTROLLERS)
    group = Cgroup(name)
    try:
        base.below_own(wanted | _needed(limits), "auto", lambda parents: _fill(group, parents, wanted, limits))
    except Exists:
        # Of a start that was killed before it could say so; nobody else may have that name, and we have the lock.
        for one in base.layout().hierarchies:
            with suppress(OSError, ContainerkitError):
                Cgroup(name, [base.open_directory(one, f"{one.base}/{name}")]).remove()
        group = Cgroup(name)
        base.below_own(wanted | _needed(limits), "auto", lambda parents: _fill(group, parents, wanted, limits))
    return group


def _fill(group: Cgroup, parents: Any, wanted: frozenset[str], limits: Limits) -> None:
    required = frozenset() if limits.best_effort else _needed(limits)
    group.fill(parents, wanted=wanted | _needed(limits), required=required, limits=limits)


def _needed(limits: Limits) -> frozenset[str]:
    from ..cgroup.files import controllers

    return controllers(limits) - {"pids"}  # a container has a range of ids, whose processes the kernel counts


@cache
def _layout() -> Layout:
    return Layout.current()


def group(container: Container) -> Cgroup | None:
    """A handle of its control group, which the caller closes; None when it has none, or none any more."""
    return open_group(run_of(container.row()))


def open_group(run: dict[str, Any]) -> Cgroup | None:
    paths = run.get("cgroup") or ()
    if not paths or run.get("boot") != _boot_id():
        return None
    mounts = sorted(_layout().hierarchies, key=lambda one: -len(one.mount))
    dirs = []
    for path in paths:
        with suppress(NotFound):
            hierarchy = next((one for one in mounts if path.startswith(one.mount + "/")), None)
            if hierarchy is not None:
                dirs.append(base.open_directory(hierarchy, path))
    return Cgroup(os.path.basename(paths[0]), dirs) if dirs else None


@cache
def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


# ---- after the end ---------------------------------------------------------------------------------------------------


def settle(container: Container) -> bool:
    """Write down what its last run has used, and remove its control group, when it does not run. Idempotent.

    Returns whether that is so. Raises ContainerNotFound when it was removed.
    """
    with possessed(container) as lock:
        if lock is not None:
            settle_with(container, container.row())
        return lock is not None


def settle_with(container: Container, row: Row) -> None:
    """With its lock."""
    run = run_of(row)
    if "cgroup" not in run:
        return
    found = open_group(run)
    ended: dict[str, Any] = {}
    if found is not None:
        ended = _account(container, found)
        found.remove()
    write_run(container, {"boot": run.get("boot"), "ended": ended})


def clean(container: Container, row: Row) -> None:
    """Remove what the latest start has made outside the store. For who has its lock, and removes the container."""
    found = open_group(run_of(row))
    if found is not None:
        found.remove()


def _account(container: Container, found: Cgroup) -> dict[str, Any]:
    record = read_record(container.directory.fileno())
    if record is None:
        return {}
    exact = exact_usage(record.used(), found)
    killed = oom(found)
    if killed is not None:
        emit(container, "oom")
    changed = {key: value for key, value in exact._asdict().items() if value != getattr(record.used(), key)}
    return {"usage": changed, "oom": None if killed is None else str(killed)}


def run_of(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row.run) if row.run else {}
    return found


def write_run(container: Container, run: dict[str, Any]) -> None:
    """What this container has outside the store. Not synced: it names what does not outlive the machine either."""
    with container._store.database.write(durable=False) as rows:
        rows.execute("UPDATE containers SET run = ?, state = 'started' WHERE id = ?", (json.dumps(run), container.id))


def usage(container: Container) -> Usage | None:
    """What the run that ended last has used; None while there was none. Exact where it had a control group."""
    record = read_record(container.directory.fileno())
    if record is None or not record.finished_ns:
        return None
    settle(container)
    used = record.used()
    ended = run_of(container.row()).get("ended") or {}
    return used._replace(**ended.get("usage", {}))
