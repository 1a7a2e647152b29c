"""A control group: one directory in each hierarchy that it needs, as one handle.

On v2 it is one directory; on v1 and the hybrid it is one for each hierarchy, v2's among them where it is mounted,
because killing and freezing are exact there (``cgroup.kill``, Linux 5.14). Groups are made below the caller's own, so
that whatever bounds the caller bounds them too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal, Self

from ..errors import Busy, ClosedHandle, InvalidValue, NotFound, Unsupported, syscall_error
from ..kernel import calls
from .directory import OPEN, Directory
from .layout import Hierarchy, Layout, parse_cgroup

__all__ = ["Cgroup"]

DEFAULT_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "io", "freezer")
"""What a group gets when nothing was said: those that count and bound. The others are made where a limit needs them."""

_MAGIC = {1: 0x27E0EB, 2: 0x63677270}
_SIGKILL = 9


class Cgroup:
    """Owns the directories of one control group.

    Attributes:
        name: the last component of its path.
        dirs: its directories, v2's first.
    """

    __slots__ = ("__weakref__", "_created", "_maker", "dirs", "name")

    def __init__(self, name: str, dirs: Iterable[Directory], *, created: bool = False) -> None:
        """Use :meth:`create`, :meth:`open` or :meth:`current`."""
        self.name = name
        self.dirs: tuple[Directory, ...] = tuple(sorted(dirs, key=lambda one: -one.version))
        self._created, self._maker = created, os.getpid()

    # ---- making ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        parent: Cgroup | None = None,
        controllers: Iterable[str] | None = None,
        manager: Literal["auto", "cgroupfs", "systemd"] = "auto",
    ) -> Self:
        """Make a group below ``parent``, or below the caller's own. The context manager removes it."""
        if name is None:
            name = f"ck-{os.getpid()}-{os.urandom(6).hex()}"
        _check_name(name)
        wanted = frozenset(DEFAULT_CONTROLLERS if controllers is None else controllers)
        parents = _own_base(wanted) if parent is None else [one for one in parent.dirs if _serves(one, wanted)]
        made: list[Directory] = []
        try:
            for above in parents:
                made.append(_make(above, name, wanted))
        except BaseException:
            for one in made:
                _rmdir(one, name)
                one.close()
            raise
        finally:
            if parent is None:
                for one in parents:
                    one.close()
        return cls(name, made, created=True)

    def child(self, name: str | None = None, *, controllers: Iterable[str] | None = None) -> Cgroup:
        """Make a group below this one."""
        return Cgroup.create(name, parent=self, controllers=controllers)

    @classmethod
    def open(cls, which: int | str | os.PathLike[str]) -> Self:
        """An existing group: that of a process id, or a directory of a cgroup file system by its absolute path."""
        if isinstance(which, int):
            return cls._of_process(str(which))
        path = os.path.realpath(which)
        layout = Layout.current()
        for one in sorted(layout.hierarchies, key=lambda one: -len(one.mount)):
            if path == one.mount or path.startswith(one.mount + "/"):
                return cls(os.path.basename(path), [_open(one, path)])
        raise NotFound({"errno": 2, "syscall": "open", "path": path, "hint": "no cgroup file system is mounted there"})

    @classmethod
    def current(cls) -> Self:
        """The group of this process, in every hierarchy."""
        return cls._of_process("self")

    @classmethod
    def _of_process(cls, pid: str) -> Self:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            paths = parse_cgroup(file.read())
        made: list[Directory] = []
        try:
            for one in Layout.current().hierarchies:
                path = paths.get(() if one.version == 2 else one.controllers)
                if path is not None:
                    made.append(_open(one, one.locate(path)))
        except BaseException:
            for directory in made:
                directory.close()
            raise
        return cls(os.path.basename(made[0].path) if made else "", made)

    # ---- its files -------------------------------------------------------------------------------------------------

    def directory(self, controller: str) -> Directory:
        """The directory that has a controller, by v2's name or the kernel's own; "cgroup" is v2's, or the first.

        Raises Unsupported when this group has none.
        """
        names = (controller, "blkio") if controller == "io" else (controller,)
        for one in self.dirs:
            if any(name in one.controllers for name in names):
                return one
        if controller == "cgroup" and self.dirs:
            return self.dirs[0]
        raise Unsupported(f"{self!r} has no controller {controller!r}")

    @property
    def unified(self) -> Directory | None:
        """Its directory in the v2 hierarchy, if that is mounted."""
        return self.dirs[0] if self.dirs and self.dirs[0].version == 2 else None

    def fileno(self) -> int:
        """The descriptor of its first directory: v2's where there is one."""
        if not self.dirs:
            raise ClosedHandle(f"{self!r} is closed")
        return self.dirs[0].fileno()

    # ---- who is in it ----------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """The ids of the processes in it, not those of its children. Those of other pid namespaces are left out."""
        return sorted({int(pid) for pid in self.directory("cgroup").read("cgroup.procs").split()} - {0})

    def adopt(self, pid: int) -> None:
        """Move a running process with all its threads into this group."""
        for one in self.dirs:
            one.write("cgroup.procs", pid)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Kill what is in it, and delete it and its children. Idempotent; closes the handle."""
        for one in self.dirs:
            _remove(one)
        self._created = False
        self.close()

    def close(self) -> None:
        """Close the descriptors; the group stays. Idempotent."""
        dirs, self.dirs = self.dirs, ()
        for one in dirs:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._created and self._maker == os.getpid():
            self.remove()
        else:
            self.close()

    def __repr__(self) -> str:
        if not self.dirs:
            return f"<Cgroup {self.name!r} closed>"
        return f"<Cgroup {self.name!r} {'+'.join(','.join(one.controllers) or 'core' for one in self.dirs)}>"


def _check_name(name: str) -> None:
    if "/" in name or "\0" in name or "\n" in name or name in ("", ".", "..") or "." in name[:1]:
        raise InvalidValue(f"{name!r} is not a name of a cgroup: one component, without a leading dot")


def _serves(directory: Directory, wanted: frozenset[str]) -> bool:
    return directory.version == 2 or any(
        name in wanted or (name == "blkio" and "io" in wanted) for name in directory.controllers
    )


def _own_base(wanted: frozenset[str]) -> list[Directory]:
    """The directories below which this process makes groups."""
    found: list[Directory] = []
    try:
        for one in Layout.current().hierarchies:
            if one.version == 2 or any(
                name in wanted or (name == "blkio" and "io" in wanted) for name in one.controllers
            ):
                found.append(_open(one, one.base))
    except BaseException:
        for directory in found:
            directory.close()
        raise
    return found


def _open(hierarchy: Hierarchy, path: str) -> Directory:
    try:
        fd = os.open(path, OPEN)
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", path) from None
    directory = Directory(fd, hierarchy.controllers, hierarchy.version, path)
    try:
        if calls.fs_magic(fd) != _MAGIC[hierarchy.version]:
            raise Unsupported(f"{path!r} is not a directory of a cgroup v{hierarchy.version} file system")
        if hierarchy.version == 2:
            directory.controllers = tuple(directory.read("cgroup.controllers").split())
    except BaseException:
        directory.close()
        raise
    return directory


def _make(above: Directory, name: str, wanted: frozenset[str]) -> Directory:
    path = f"{above.path}/{name}"
    try:
        os.mkdir(name, 0o755, dir_fd=above.fileno())
    except OSError as error:
        raise syscall_error(error.errno or 0, "mkdir", path) from None
    made = Directory(os.open(name, OPEN, dir_fd=above.fileno()), above.controllers, above.version, path)
    if above.version == 2:
        made.controllers = tuple(made.read("cgroup.controllers").split())
        if missing := sorted((wanted & set(above.controllers)) - set(made.controllers)):
            with suppress(Busy):
                above.write("cgroup.subtree_control", " ".join(f"+{one}" for one in missing))
                made.controllers = tuple(made.read("cgroup.controllers").split())
    elif "cpuset" in above.controllers:
        for file in ("cpuset.mems", "cpuset.cpus"):  # a v1 group without these takes no process
            made.write(file, above.read(file))
    return made


def _remove(directory: Directory, seconds: float = 10.0) -> None:
    for child in _children(directory):
        _remove(child, seconds)
        child.close()
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while not _rmdir(directory, os.path.basename(directory.path)):
        if time.monotonic() > deadline:
            raise Busy({"errno": 16, "syscall": "rmdir", "path": directory.path, "hint": "processes in it do not end"})
        for pid in directory.read("cgroup.procs").split():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), _SIGKILL)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _children(directory: Directory) -> list[Directory]:
    found: list[Directory] = []
    with os.scandir(directory.fileno()) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                fd = os.open(entry.name, OPEN, dir_fd=directory.fileno())
                found.append(Directory(fd, directory.controllers, directory.version, f"{directory.path}/{entry.name}"))
    return found


def _rmdir(directory: Directory, name: str) -> bool:
    """False while something is in it. By its own parent: no path is looked up."""
    try:
        os.rmdir(f"../{name}", dir_fd=directory.fileno())
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == 16:
            return False
        raise syscall_error(error.errno or 0, "rmdir", directory.path) from None
    return True
