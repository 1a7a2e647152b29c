"""A mountinfo file (proc_pid_mountinfo(5)) as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from leaks import is_foreign


@dataclass(frozen=True)
class Mount:
    id: int
    parent: int
    device: str
    root: str
    target: str
    options: frozenset[str]
    tags: frozenset[str]
    fstype: str
    source: str


def _plain(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def parse(text: str) -> list[Mount]:
    mounts = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        number, parent, device, root, target, options, *tags = head.split(" ")
        fstype, source, *_ = tail.split(" ")
        flags, names = frozenset(options.split(",")), frozenset(tags)
        mounts.append(
            Mount(int(number), int(parent), device, _plain(root), _plain(target), flags, names, fstype, source)
        )
    return mounts


def ours() -> str:
    """The file of this process, as text: to compare before and after. Without what other test workers mount."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines(keepends=True)
    return "".join(line for line in lines if not is_foreign(_plain(line.split(" ")[4])))
