"""The group that one start makes for its limits, and how it goes away again.

It has the controllers that the limits need and no others: each hierarchy of v1 costs a start about 0.1 ms. It is made
before the program is, which starts inside it, and is removed when the handle of the process is closed: nothing is in it
then, so that takes some ten microseconds. What does not go at once goes in a thread, for which the interpreter's end
waits. What a program leaves that is killed is empty, and goes with the first group of the next one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import CgroupUnavailable, ContainerkitError, SpawnError
from . import abandoned, base, members
from .apply import read_back
from .cgroup import SECONDS, Cgroup
from .directory import Directory
from .files import controllers

if TYPE_CHECKING:
    from ..limits import Limits

__all__ = ["Bounds"]

_BY_RLIMIT = frozenset({"pids_max"})


class Bounds:
    """Owns the group of one start.

    Attributes:
        group: the group that has the limits. Without directories where ``Limits(best_effort=True)`` went without.
        limits: those that it was made for.
        dirs: where the first process starts, with those of the sandbox's group that it joins.
    """

    __slots__ = ("_count", "_hold", "_inner", "_maker", "_within", "dirs", "group", "limits")

    def __init__(
        self, limits: Limits, *, within: Bounds | None = None, hold: bool = False, count: bool = False
    ) -> None:
        """``within`` are the sandbox's own; ``hold`` says that others may be made inside these; ``count`` that
        ``pids_max`` is kept by nothing else.
        """
        self._maker = os.getpid()
        self._inner: list[Directory] = []
        self._within, self._hold, self._count = within, hold, count
        self.limits = limits
        self.group = Cgroup("none")
        self.dirs: Sequence[Directory] = ()

    def make(self) -> None:
        """Make the group. Whatever interrupts it, close() removes what there is of it."""
        try:
            base.below_own(self._needed(), "auto", self._make)
        except CgroupUnavailable as error:
            if not self.limits.best_effort:
                raise
            self.group.lacking = dict.fromkeys(self.limits.grouped, str(error))
        outer = {one.key: one for one in (self._within.dirs if self._within is not None else ())}
        own = {one.key: one for one in (*self.group.dirs, *self._inner)}
        self.dirs = tuple({**outer, **own}.values())

    def _needed(self) -> frozenset[str]:
        needed = controllers(self.limits)
        if self._count or any(file.startswith("pids.") for file, _ in self.limits.raw or ()):
            return needed
        return needed - {"pids"}

    def _make(self, parents: Sequence[base.Parent]) -> None:
        limits, needed = self.limits, self._needed()
        inside = {one.key: one for one in (self._within.group.dirs if self._within is not None else ())}
        for above in parents:
            if above.version == 2 and above.key in inside:  # what was not needed for the sandbox may be for this one
                base.prepare(above, inside[above.key], needed, frozenset())
        self.group = Cgroup(abandoned.name())
        self.group.fill(
            [inside.get(one.key, one) for one in parents],
            wanted=needed | {"pids"},  # in v2 it is there for nothing
            required=frozenset() if limits.best_effort else needed,
            limits=limits,
            kept=frozenset() if self._count else _BY_RLIMIT,
        )
        if limits.memory_max is not None and limits.memory_oom_group is None and not self._hold:
            _die_whole(self.group)
        if self._hold:
            for one in self.group.dirs:
                if one.version == 2:
                    # A group that has processes gives its children no controllers: they go into a child without any.
                    base.make(one, "main", self._inner)

    @property
    def second_best(self) -> dict[str, int | str]:
        """What the caller agreed to have kept by other means: {limit: value}."""
        found = {name: getattr(self.limits, name) for name in ("memory_max", "cpuset_cpus")}
        return {name: value for name, value in found.items() if value is not None and name in self.group.lacking}

    def enforced(self) -> dict[str, str]:
        """What the kernel says of its limits, and what is kept by other means."""
        kept = {f"limit {name}": text for name, text in read_back(self.group.dirs, self.limits).items()}
        if self.limits.devices is not None and "devices" not in self.group.lacking:
            kept["limit devices"] = ", ".join(map(str, self.limits.devices))
        means = {"memory_max": "RLIMIT_DATA, of each process", "cpuset_cpus": "sched_setaffinity(2), of each process"}
        return kept | {f"limit {name}": f"{means[name]}: {value}" for name, value in self.second_best.items()}

    def explain(self, error: BaseException) -> None:
        """A start that died without a word died of its limit, if the kernel has counted that."""
        if isinstance(error, SpawnError) and error.errno == errno.ECHILD:
            from .oom import oom

            found = oom(self.group)
            if found is not None:
                error.hint = f"{found}; the set-up itself needs more: raise memory_max"

    def close(self) -> None:
        """Remove it: what was in it has ended, or is about to. Idempotent; in a fork of the program it only closes."""
        self.dirs = ()
        base.close_all(self._inner)
        group = self.group
        if self._maker == os.getpid() and group.unfinished:
            group.undo()
        elif self._maker == os.getpid() and [one for one in group.dirs if not members.rmdir(one)]:
            _remove_later(group)
        else:
            group.close()
        if self._maker == os.getpid():
            abandoned.remove_once()

    def __del__(self) -> None:
        """Of a start that was interrupted between two of its parts."""
        if getattr(self, "dirs", ()):
            self.close()


def _die_whole(group: Cgroup) -> None:
    """A run that has lost a part of itself is not what was asked for. A sandbox, which has many runs, goes on."""
    for one in group.dirs:
        if one.version == 2 and "memory" in one.controllers:
            one.write("memory.oom.group", 1)


def _remove_later(group: Cgroup) -> None:
    import threading

    thread = threading.Thread(target=_remove, args=(group,), name="ck-remove")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending, or no thread may be added
        _remove(group)


def _remove(group: Cgroup) -> None:
    try:
        group.remove(SECONDS)
    except ContainerkitError as error:
        import warnings

        warnings.warn(f"{group!r} was not removed: {error}", ResourceWarning, stacklevel=2)
        group.close()
