"""A control group: one directory in each hierarchy that it needs, as one handle.

On v2 it is one directory; on v1 and the hybrid it is one for each hierarchy, v2's among them where it is mounted,
because killing and freezing are exact there (``cgroup.kill``, Linux 5.14). Groups are made below the caller's own, so
that whatever bounds the caller bounds them too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self

from ..errors import (
    CgroupUnavailable,
    ClosedHandle,
    ContainerkitError,
    Exists,
    InvalidValue,
    NotFound,
    SyscallError,
    syscall_error,
)
from ..kernel import calls
from . import base, members
from .apply import apply, find, set_raw
from .directory import Directory
from .layout import Layout, parse_cgroup
from .observed import Observed

if TYPE_CHECKING:
    from typing import Protocol

    from ..limits import Limits

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


__all__ = ["Cgroup"]

Manager = Literal["auto", "cgroupfs", "systemd"]

DEFAULT_CONTROLLERS = ("cgroup", "memory", "pids", "cpu", "cpuacct", "io", "freezer")
"""What a group gets when nothing was said: those that count and bound. The others are made where a limit needs them."""

SECONDS = 10.0
"""How long the processes of a group that is removed may take to end."""


class Cgroup(Observed):
    """A group of processes that are limited, counted, frozen and killed together (cgroups(7)).

    ::

        with Cgroup.create(limits=Limits(memory_max="256M", cpu_max=0.5)) as group:
            with Process(["make"], cgroup=group) as make:
                make.wait()

    :meth:`create` makes one below the caller's own group, :meth:`child` one below this; :meth:`open` and
    :meth:`current` take existing ones. A group that was made here is removed, with everything in it, at the end of the
    ``with`` block or by :meth:`remove`; :meth:`close` lets it stay.

    Attributes:
        name: the last component of its path.
        dirs: its directories, v2's first.
        limits: what was set by this handle, or None.
        lacking: what ``Limits(best_effort=True)`` goes without, {field: why}.
    """

    __slots__ = ("__weakref__", "_begun", "_created", "_made", "_maker", "lacking", "limits", "name")

    def __init__(self, name: str, dirs: Iterable[Directory] = ()) -> None:
        """Use :meth:`create`, :meth:`open` or :meth:`current`."""
        self.name = name
        self.dirs: tuple[Directory, ...] = _sorted(dirs)
        self.limits: Limits | None = None
        self.lacking: dict[str, str] = {}
        self._created, self._maker = False, os.getpid()
        self._begun: list[base.Parent] = []
        self._made: list[Directory] = []

    # ---- making ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        parent: Cgroup | None = None,
        limits: Limits | None = None,
        controllers: Iterable[str] | None = None,
        delegate: tuple[int, int] | None = None,
        manager: Manager = "auto",
    ) -> Cgroup:
        """Make a group. Nothing of it is left when this raises.

        Args:
            name: one that no other group beside it has; by default an unguessable one, "ck-PID-...".
            parent: below which group; the caller's own by default.
            limits: set before anything is in it.
            controllers: what it must have beside what the limits need; by default what the parent has, or what is
                there of memory, pids, cpu, io and (v1) freezer. "cgroup" stands for v2 without any controller.
            delegate: (user id, group id) that may make groups below it and move processes there (cgroups(7),
                "Delegation"). Its own limits stay out of that user's reach.
            manager: "cgroupfs" makes the directories itself; "systemd" asks the service manager for a place (needs
                ``containerkit[systemd]``); "auto" does the second where systemd owns the groups.

        Raises:
            CgroupUnavailable: no group, or not these limits, for this user on this machine; its text has the cure.
            Exists: there is one of that name.
        """
        asked = frozenset(DEFAULT_CONTROLLERS if controllers is None else controllers)
        needed = _needs(limits)
        required = (asked if controllers is not None else frozenset()) | (
            needed if limits is not None and not limits.best_effort else frozenset()
        )
        wanted = asked | needed
        if not wanted:
            raise InvalidValue("controllers=() asks for no hierarchy: 'cgroup' stands for v2 without any controller")
        if name is not None:
            _check_name(name)
        made: list[Cgroup] = []

        def make(parents: Sequence[base.Parent]) -> None:
            made[:] = [cls(name or new_name())]
            made[0].fill(parents, wanted=wanted, required=required, limits=limits)

        try:
            if parent is None:
                base.below_own(wanted, manager, make)
            else:
                parent.fileno()
                make([one for one in parent.dirs if controllers is None or base.serves(one, wanted)])
            if delegate is not None:
                for one in made[0].dirs:
                    one.delegate(*delegate)
        except BaseException:
            for group in made:
                group.undo()
            raise
        return made[0]

    def fill(
        self,
        parents: Sequence[base.Parent],
        *,
        wanted: frozenset[str],
        required: frozenset[str],
        limits: Limits | None,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        """Make its directories and set its limits, for create() and the start of a process; undo() when this fails.

        ``kept`` are limits that something else keeps as well.
        """
        try:
            for above in parents:
                self._begun.append(above)  # before it is: whoever interrupts us in between, undo() knows of it
                base.make(above, self.name, self._made)
                base.prepare(above, self._made[-1], wanted, required)
            self.dirs = _sorted(self._made)
            self._created = True
            if limits is not None:
                self._apply(limits, kept)
            if not self.dirs:
                why = base.why_absent(min(wanted - {"pids"}, default=base.CORE))
                raise CgroupUnavailable(f"no group can be made: {why}", "controller")
            if absent := required - self.controllers - {base.CORE, "devices"}:
                raise CgroupUnavailable(base.why_absent(min(absent)), "controller")
        except BaseException as error:
            if isinstance(error, Exists):
                self._begun.pop()  # somebody else's
            self.undo()
            raise
        self._begun.clear()

    @property
    def unfinished(self) -> bool:
        """Whether fill() was interrupted."""
        return bool(self._begun)

    def undo(self) -> None:
        """Remove what fill() has made so far."""
        members.remove([one for one in self._made if not one.closed], SECONDS)
        self.dirs = ()
        base.close_all(self._made)
        for above in self._begun:
            base.unmake(above, self.name)
        self._begun.clear()

    def child(
        self,
        name: str | None = None,
        *,
        limits: Limits | None = None,
        controllers: Iterable[str] | None = None,
        delegate: tuple[int, int] | None = None,
    ) -> Cgroup:
        """Make a group below this one, which in v2 must then have no processes of its own."""
        return Cgroup.create(name, parent=self, limits=limits, controllers=controllers, delegate=delegate)

    @classmethod
    def open(cls, which: int | str | os.PathLike[str]) -> Self:
        """An existing group: that of a process (its id), or a directory of a cgroup file system (its absolute path).

        Raises NotFound for a process that has ended or a path that is in no mounted hierarchy.
        """
        if isinstance(which, int):
            return cls._of_process(str(which))
        path = os.path.realpath(which)
        for one in sorted(Layout.current().hierarchies, key=lambda one: -len(one.mount)):
            if path == one.mount or path.startswith(one.mount + "/"):
                return cls(os.path.basename(path), [base.open_directory(one, path)])
        raise NotFound({"errno": 2, "syscall": "open", "path": path, "hint": "no cgroup file system is mounted there"})

    @classmethod
    def current(cls) -> Self:
        """The group of this process, in every hierarchy that is mounted."""
        return cls._of_process("self")

    @classmethod
    def _of_process(cls, pid: str) -> Self:
        paths = parse_cgroup(_cgroup_of(pid))
        made: list[Directory] = []
        try:
            for one in Layout.current().hierarchies:
                path = paths.get(() if one.version == 2 else one.controllers)
                if path is not None:
                    made.append(base.open_directory(one, one.locate(path)))
        except BaseException:
            base.close_all(made)
            raise
        self = cls("", made)
        self.name = os.path.basename(self.dirs[0].path) if made else ""
        return self

    @staticmethod
    def enter_leaf() -> None:
        """Move every process of the caller's own v2 cgroup into a child of it, "ck-leaf", so that it may have others.

        In v2 a group that has processes cannot give controllers to its children: this is the cure for "device or
        resource busy" in a container, or in a service with Delegate=yes. From then on new groups are made beside the
        leaf, also by the processes that were moved along and by their children. Called again, it does nothing; nor
        where there is no such rule: in v1, and in the root of the hierarchy.

        Raises CgroupUnavailable when this user may not, SyscallError when a process cannot be moved.
        """
        base.enter_leaf()

    @staticmethod
    def enter_scope() -> None:
        """Move this process into a scope that systemd gives it (``Delegate=yes``), so that it may have groups there.

        What ``systemd-run --user --scope -p Delegate=yes`` does, from inside: for a program of an ordinary user that is
        started in the session of a login, where the kernel lets it start nothing in groups of the user. Processes that
        it started before stay where they are. The scope ends with the last process in it. An ordinary user's ends with
        the user's manager as well, at the last logout, unless ``loginctl enable-linger`` lets that run on.

        Needs ``containerkit[systemd]`` and systemd 238. Raises CgroupUnavailable.
        """
        from .systemd import enter_scope

        enter_scope()

    # ---- its files -------------------------------------------------------------------------------------------------

    def directory(self, controller: str) -> Directory:
        """The directory that has a controller, by v2's name or the kernel's own; "cgroup" is v2's, or the first.

        Raises CgroupUnavailable when this group has it not.
        """
        self.fileno()
        found = find(self.dirs, controller)
        if found is None:
            raise CgroupUnavailable(f"{self!r} has no controller {controller!r}", "controller")
        return found

    @property
    def controllers(self) -> frozenset[str]:
        """What it has, by v2's names; v1's own beside them."""
        names = {name for one in self.dirs for name in one.controllers}
        return frozenset(names | {"io"} if "blkio" in names else names)

    @property
    def unified(self) -> Directory | None:
        """Its directory in the v2 hierarchy, if that is mounted."""
        return self.dirs[0] if self.dirs and self.dirs[0].version == 2 else None

    def fileno(self) -> int:
        """The descriptor of its first directory: v2's where there is one."""
        if not self.dirs:
            raise ClosedHandle(f"{self!r} is closed")
        return self.dirs[0].fileno()

    def update(self, limits: Limits) -> None:
        """Set limits, also while processes run. What this handle had set before and ``limits`` has not, is lifted.

        Raises CgroupUnavailable for a limit that cannot be had (unless ``limits.best_effort``), SyscallError for a
        value that the kernel refuses; some may have been set by then.
        """
        self.fileno()
        self._apply(limits)

    def _apply(self, limits: Limits, kept: frozenset[str] = frozenset()) -> None:
        lacking = apply(self.dirs, limits, self.limits, kept)
        self.limits, self.lacking = limits, {one.field: one.reason for one in lacking}

    def set_raw(self, file: str, value: str | int) -> None:
        """Write one of its files as it is."""
        self.fileno()
        set_raw(self.dirs, file, value)

    # ---- who is in it ----------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """The ids of the processes in it, not those of its children. Those of other pid namespaces are left out."""
        return members.pids(self.directory("cgroup"))

    def threads(self) -> list[int]:
        """The ids of the threads in it."""
        one = self.directory("cgroup")
        return members.pids(one, "cgroup.threads" if one.version == 2 else "tasks")

    def adopt(self, process: int | HasFileno) -> None:
        """Move a running process with all its threads into this group: by its id, a pidfd's owner, or a Process.

        It takes milliseconds, for it waits until no process on the machine is forking; start inside instead
        (``Process(cgroup=group)``) where you can. What it has used so far stays with its old group.

        Raises SyscallError (ESRCH) when it has ended; then, or when one hierarchy refuses, it is where it was.
        """
        self.fileno()
        pid = process if isinstance(process, int) else calls.pid_of(process.fileno())
        before = parse_cgroup(_cgroup_of(str(pid)))
        done: list[Directory] = []
        try:
            for one in self.dirs:
                one.write("cgroup.procs", pid)
                done.append(one)
        except SyscallError as error:
            with suppress(SyscallError, OSError):
                base.put_back(pid, done, before)
            raise syscall_error(error.errno or 0, "write", error.filename, base.why_not_moved(error)) from None

    def move(self, into: Cgroup) -> None:
        """Move all processes of this group, not of its children, into another one; those too that are just forked."""
        while found := self.processes():
            for pid in found:
                with suppress(ProcessLookupError):
                    into.adopt(pid)

    # ---- power over them -------------------------------------------------------------------------------------------

    def freeze(self, timeout: float | None = 5.0) -> None:
        """Stop every process of the tree, until :meth:`thaw`. They cannot see it, and can still be killed.

        Raises Busy after ``timeout`` seconds, and thaws what was frozen; CgroupUnavailable on v1 without the freezer.
        """
        self.fileno()
        if not any(one.version == 2 or "freezer" in one.controllers for one in self.dirs):
            raise CgroupUnavailable(
                f"{self!r} has neither v2 nor v1's freezer: controllers=('freezer', ...)", "controller"
            )
        if not members.freeze(self.dirs, timeout):
            members.thaw(self.dirs)
            raise members.not_frozen(self.dirs[0], timeout)

    def thaw(self) -> None:
        """Let them go on."""
        self.fileno()
        members.thaw(self.dirs)

    def kill(self) -> None:
        """SIGKILL for every process in it and in its children, frozen ones and those just being forked too.

        Raises InvalidValue when the caller itself is one of them.
        """
        self.fileno()
        if any(os.getpid() in members.pids(one) for one in self.dirs):
            raise InvalidValue(f"{self!r} has this very process in it: move it elsewhere first")
        members.kill(self.dirs)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def remove(self, timeout: float = SECONDS) -> None:
        """Kill what is in it, wait for the end, and delete it with its children. Idempotent; closes the handle.

        Raises Busy when processes have not ended after ``timeout`` seconds; the handle is then still open.
        """
        members.remove(self.dirs, timeout)
        self._created = False
        self.close()

    def close(self) -> None:
        """Close the descriptors; the group stays. Idempotent."""
        self._close_reader()
        dirs, self.dirs = self.dirs, ()
        base.close_all(dirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._leave()
        except BaseException as error:
            if not isinstance(error, ContainerkitError):
                self._leave()  # an interrupt of the cleaning up; a second one is meant
            raise

    def _leave(self) -> None:
        if self._created and self._maker == os.getpid():  # in a fork of the program it is the parent's
            self.remove()
        else:
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle or copy a Cgroup: one handle owns it")

    def __repr__(self) -> str:
        if not self.dirs:
            return f"<Cgroup {self.name!r} closed>"
        return f"<Cgroup {self.name!r} {'+'.join(','.join(one.controllers) or 'core' for one in self.dirs)}>"


def _check_name(name: str) -> None:
    if "/" in name or "\0" in name or "\n" in name or name[:1] in ("", ".") or len(os.fsencode(name)) > 255:
        raise InvalidValue(f"{name!r} is not a name of a cgroup: one component of a path, without a leading dot")


def new_name() -> str:
    return f"ck-{os.getpid()}-{os.urandom(6).hex()}"


def _needs(limits: Limits | None) -> frozenset[str]:
    from .files import controllers

    return frozenset() if limits is None else controllers(limits)


def _sorted(dirs: Iterable[Directory]) -> tuple[Directory, ...]:
    return tuple(sorted(dirs, key=lambda one: -one.version))


def _cgroup_of(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", f"/proc/{pid}/cgroup") from None
