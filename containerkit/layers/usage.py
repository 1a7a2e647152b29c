"""What a tree takes on its file system."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from .walk import walk

__all__ = ["TreeUsage", "usage"]


class TreeUsage(NamedTuple):
    """``size`` in bytes as they are on disk, holes not counted; ``inodes`` with each hard link once."""

    size: int
    inodes: int


def usage(tree: int) -> TreeUsage:
    """Count a directory and what is in it, by descriptor. Reflinked data counts in each file that has it."""
    opened = os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    seen: set[tuple[int, int]] = set()
    try:
        top = os.fstat(opened)
        blocks, inodes = top.st_blocks, 1
        for found in walk(opened):
            status = found.status
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            blocks += status.st_blocks
            inodes += 1
    finally:
        os.close(opened)
    return TreeUsage(blocks * 512, inodes)
