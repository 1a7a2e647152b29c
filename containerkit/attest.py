"""Comparing a process that waits in front of its exec with what was asked for.

The caller does it, from outside, through its own /proc: nothing inside has a say. What is compared are the values that
the start was given, not the steps that were made of them, so a mistake in those is found too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from .build import is_image, is_overlay
from .errors import SpawnError
from .kernel import procfs
from .kernel.procfs import Mounted
from .rootfs import HOST, host_names

if TYPE_CHECKING:
    from .build import Mount
    from .security import Security

__all__ = ["Attestation"]


class Attestation:
    """What a start was asked for, as far as it can be read back.

    ``ids`` are the program's (uid, gid) inside, None when they come from names in the root or stay the caller's.
    ``groups`` are its supplementary groups inside, None when they cannot be known. Without mounts and a root, the
    caller's mounts are the program's, and are not looked at.
    """

    def __init__(
        self,
        security: Security,
        *,
        ids: tuple[int, int] | None,
        groups: tuple[int, ...] | None,
        mounts: Iterable[Mount],
        root: object,
    ) -> None:
        self._security, self._ids, self._groups = security, ids, groups
        self._mounts = {os.fsdecode(mount.target): (mount.fstype, mount.options) for mount in mounts}
        self._root = _root_options(root) if self._mounts or root is not None else None
        shown = _shown_places(root)
        self._shown = None if shown is None else (*self._mounts, *shown)

    def __call__(self, pid: int) -> None:
        """Raise SpawnError, with every difference, unless the process is what was asked for."""
        differences = list(self.differences(pid))
        if differences:
            raise SpawnError(
                {
                    "errno": errno.ECANCELED,
                    "step": "attest the process: it is not what was asked for",
                    "syscall": None,
                    "path": None,
                    "hint": "; ".join(differences),
                }
            )

    def differences(self, pid: int) -> Iterator[str]:
        status = procfs.status(pid)
        yield from self._privilege(status)
        yield from self._identity(pid, status)
        if self._root is not None:
            yield from self._mounted(procfs.mounts(pid), self._root)

    # ---- privilege

    def _privilege(self, status: Mapping[str, str]) -> Iterator[str]:
        security = self._security
        if security.capabilities is not None:
            kept = security.capabilities.mask
            ambient = kept if security.ambient else 0
            wanted = {"CapInh": ambient, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": ambient}
            for name, mask in wanted.items():
                yield from _differs(f"{name} mask", int(status[name], 16), mask, "{:#x}")
        if security.no_new_privs:
            yield from _differs("NoNewPrivs", status["NoNewPrivs"], "1")
        if security.seccomp is not None:
            yield from _differs("Seccomp mode", status["Seccomp"], "2")

    # ---- ids

    def _identity(self, pid: int, status: Mapping[str, str]) -> Iterator[str]:
        for index, (name, kind) in enumerate((("Uid", "uid_map"), ("Gid", "gid_map"))):
            found = set(map(int, status[name].split()))  # real, effective, saved, and that of the file system
            if self._ids is None:
                wanted = found if len(found) == 1 else {min(found)}
            else:
                wanted = {procfs.outside_id(procfs.read(f"/proc/{pid}/{kind}"), self._ids[index])}
            yield from _differs(name, sorted(found), sorted(wanted))
        if self._groups is not None:
            gid_map = procfs.read(f"/proc/{pid}/gid_map")
            found = set(map(int, status["Groups"].split()))
            wanted = {procfs.outside_id(gid_map, group) for group in self._groups}
            if procfs.read(f"/proc/{pid}/setgroups").strip() == "deny":
                wanted |= found & set(os.getgroups())  # the kernel lets nobody drop the caller's then
            yield from _differs("Groups", sorted(found), sorted(wanted))

    # ---- mounts

    def _mounted(self, found: list[Mounted], root: frozenset[str]) -> Iterator[str]:
        for target, (fstype, options) in (("/", ("", root)), *self._mounts.items()):
            yield from _place(found, target, fstype, options)
        if self._shown is None:
            return
        for one in found:
            if one.target != "/" and not any(_is_below(one.target, place) for place in self._shown):
                yield f"a mount that nobody asked for: {one}"


def _root_options(root: object) -> frozenset[str]:
    if root is HOST:
        return frozenset({"ro", "nosuid", "nodev"})
    if is_overlay(root):
        return frozenset({"nodev", "ro"} if root.read_only else {"nodev"})
    if is_image(root):
        return frozenset({"nodev"})
    return frozenset()


def _shown_places(root: object) -> list[str] | None:
    """Where mounts may be beside those that were asked for; None for a root that comes with mounts of its own."""
    if root is HOST:
        return [f"/{name}" for name in host_names(net_host=True)]
    return [] if is_overlay(root) or is_image(root) else None


def _place(found: list[Mounted], target: str, fstype: str, options: frozenset[str]) -> Iterator[str]:
    """Whether what a path leads to was mounted right there, and is what it should be."""
    one = procfs.mounted_on(found, target)
    if one is None or one.target != target:
        hidden = any(other.target == target for other in found)
        why = f"it is hidden below {one}" if hidden else "a destination must not lead through links to be attested"
        yield f"nothing is mounted on {target} ({why})"
        return
    if fstype and one.fstype != fstype:
        yield f"{target} is {one.fstype} and not {fstype}"
    if not options <= one.options:
        yield f"{target} is mounted without {', '.join(sorted(options - one.options))}"


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _differs(what: str, found: object, wanted: object, form: str = "{}") -> Iterator[str]:
    if found != wanted:
        yield f"{what} is {form.format(found)} and not {form.format(wanted)}"
