"""Which control group hierarchies there are, where they are mounted, and where in them this process is.

Two files tell it: /proc/self/mountinfo (proc_pid_mountinfo(5)) and /proc/self/cgroup (cgroups(7)). Paths in both count
from the root of the reader's cgroup namespace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import CgroupUnavailable

__all__ = ["Hierarchy", "Layout", "parse_cgroup", "parse_mountinfo"]

LEAF = "ck-leaf"
"""The child into which :meth:`Cgroup.enter_leaf` moves: whoever is in it makes new groups beside it."""


class Hierarchy(NamedTuple):
    """One mounted hierarchy.

    ``controllers`` are those of a v1 hierarchy, by the kernel's names ("blkio", "cpuacct"); of v2, those that the
    cgroup of this process has. ``mount`` is where it is mounted, ``root`` what of it is mounted there, ``path`` the
    cgroup of this process in it. ``read_only`` says that the mount is.
    """

    version: int
    controllers: tuple[str, ...]
    mount: str
    root: str
    path: str
    read_only: bool

    @property
    def key(self) -> tuple[str, ...]:
        """As /proc/PID/cgroup names it: by its controllers in v1, by nothing in v2."""
        return self.controllers if self.version == 1 else ()

    @property
    def directory(self) -> str:
        """The directory of this process's own cgroup."""
        return self.locate(self.path)

    @property
    def base(self) -> str:
        """The directory below which this process makes groups: its own, or the parent of the leaf it has entered."""
        directory = self.directory
        head, _, tail = directory.rpartition("/")
        return head if tail == LEAF and len(directory) > len(self.mount) else directory

    def locate(self, path: str) -> str:
        """The directory of a cgroup. Raises CgroupUnavailable for one outside of what is mounted."""
        inside = path if self.root == "/" else path.removeprefix(self.root)
        if (self.root != "/" and path == inside) or inside[:1] not in ("", "/") or "/.." in inside:
            raise CgroupUnavailable(
                f"the cgroup {path!r} lies outside of what is mounted on {self.mount!r} ({self.root!r} of the "
                "hierarchy): mount the cgroup file system anew inside this cgroup namespace",
                "outside",
            )
        return self.mount + inside.rstrip("/")


class Layout(NamedTuple):
    """The hierarchies of this process. A process that changes its namespaces or its cgroup has a new one."""

    hierarchies: tuple[Hierarchy, ...]

    @classmethod
    def current(cls) -> Layout:
        """Read it from the kernel, in about 0.1 ms."""
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            ours = parse_cgroup(file.read())
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            found = parse_mountinfo(file.read(), ours)
        return cls(tuple(one._replace(controllers=_available(one)) if one.version == 2 else one for one in found))

    @property
    def version(self) -> str:
        """ "v2", "v1", "hybrid" (v2 beside v1), or "none" where nothing is mounted."""
        versions = {one.version for one in self.hierarchies}
        return "hybrid" if len(versions) == 2 else "v2" if 2 in versions else "v1" if versions else "none"

    @property
    def unified(self) -> Hierarchy | None:
        """The v2 hierarchy."""
        return next((one for one in self.hierarchies if one.version == 2), None)

    def find(self, controller: str) -> Hierarchy | None:
        """The hierarchy that has a controller, by v2's name ("io") or v1's ("blkio")."""
        for one in self.hierarchies:
            if controller in one.controllers or (controller == "io" and "blkio" in one.controllers):
                return one
        return None


def parse_cgroup(text: str) -> dict[tuple[str, ...], str]:
    """/proc/PID/cgroup: the cgroup for each set of controllers; v2's set is empty. Named hierarchies are left out."""
    found: dict[tuple[str, ...], str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if not colon or not path.startswith("/") or names.startswith("name="):
            continue
        if names or number == "0":
            found[tuple(names.split(",")) if names else ()] = path
    return found


def parse_mountinfo(text: str, ours: Mapping[tuple[str, ...], str]) -> list[Hierarchy]:
    """/proc/PID/mountinfo: the hierarchies that are mounted and that ``ours`` knows; of several mounts of one, the one
    that shows most, and of those the last, which covers the others."""
    found: dict[tuple[str, ...], Hierarchy] = {}
    for line in text.splitlines():
        fields, dash, rest = line.partition(" - ")
        before, after = fields.split(" "), rest.split(" ")
        if not dash or len(before) < 6 or len(after) < 3 or after[0] not in ("cgroup", "cgroup2"):
            continue
        root, mount, options = _unescape(before[3]), _unescape(before[4]), before[5].split(",")
        names = _controllers(after[0], after[2], ours)
        if names is None or root.startswith("/.."):
            continue
        one = Hierarchy(
            2 if after[0] == "cgroup2" else 1,
            names,
            mount,
            root,
            ours[names],
            "ro" in options or "ro" in after[2].split(","),
        )
        if names not in found or len(one.root) <= len(found[names].root):
            found[names] = one
    return list(found.values())


def _controllers(kind: str, options: str, ours: Mapping[tuple[str, ...], str]) -> tuple[str, ...] | None:
    if kind == "cgroup2":
        return () if () in ours else None
    known = set(options.split(","))
    return next((names for names in ours if names and known.issuperset(names)), None)


def _unescape(path: str) -> str:
    """Space, tab, newline and backslash are written in octal."""
    if "\\" not in path:
        return path
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _available(one: Hierarchy) -> tuple[str, ...]:
    """The controllers that groups below ours may have: those that our base itself was given."""
    try:
        fd = os.open(f"{one.base}/cgroup.controllers", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, CgroupUnavailable):
        return ()
    try:
        return tuple(os.read(fd, 4096).decode().split())
    finally:
        os.close(fd)
