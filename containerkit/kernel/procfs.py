"""What /proc says of another process, asked by descriptor (proc_pid_status(5), proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["Mounted", "child_of", "mounted_on", "mounts", "outside_id", "read", "status"]


class Mounted:
    """A line of mountinfo: what is mounted, from where, with which options."""

    __slots__ = ("device", "fstype", "number", "options", "parent", "root", "target")

    def __init__(self, line: str) -> None:
        head, _, tail = line.partition(" - ")
        self.number, self.parent, self.device, root, target, options = head.split(" ")[:6]
        self.root, self.target = _plain(root), _plain(target)
        self.options = frozenset(options.split(","))
        self.fstype = tail.split(" ")[0]

    def __repr__(self) -> str:
        return f"<{self.fstype} on {self.target} ({','.join(sorted(self.options))})>"


def _plain(word: str) -> str:
    """The kernel writes a space, tab, newline or backslash of a path as three octal digits."""
    first, *rest = word.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def read(path: str) -> str:
    with open(path, errors="surrogateescape") as file:
        return file.read()


def child_of(pid: int) -> int:
    """Its only child."""
    try:
        children = [int(word) for word in read(f"/proc/{pid}/task/{pid}/children").split()]
    except FileNotFoundError:  # without CONFIG_PROC_CHILDREN
        numbers = map(int, filter(str.isdecimal, os.listdir("/proc")))
        children = [number for number in numbers if _parent(number) == pid]
    (child,) = children
    return child


def _parent(pid: int) -> int:
    try:
        return int(status(pid)["PPid"])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def status(pid: int) -> Mapping[str, str]:
    lines = (line.partition(":") for line in read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def mounts(pid: int | str) -> list[Mounted]:
    """Its mounts (proc_pid_mountinfo(5))."""
    return [Mounted(line) for line in read(f"/proc/{pid}/mountinfo").splitlines()]


def mounted_on(found: list[Mounted], path: str) -> Mounted | None:
    """What a path leads to, as the kernel walks it: over each mount that lies on the way, the topmost at last."""
    numbers = {one.number for one in found}
    on = {(one.parent, one.target): one for one in found}
    here = next((one for one in found if one.parent not in numbers), None)
    parts = path.strip("/").split("/") if path != "/" else []
    for depth in range(len(parts) + 1):
        place = "/" + "/".join(parts[:depth])
        while here is not None and (here.number, place) in on:
            here = on[here.number, place]
    return here


def outside_id(text: str, number: int) -> int:
    """What a uid_map or gid_map (user_namespaces(7)) makes of an id inside; -1 when it has no place."""
    for line in text.splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= number < inside + count:
            return outside + number - inside
    return -1
