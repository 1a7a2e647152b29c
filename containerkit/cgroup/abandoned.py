"""Groups of starts whose program was killed before it could remove them.

What was in them has ended with it; the empty directories stay, and in v1 cost the kernel memory. Their names tell whose
they are: ``ck-PID-NAMESPACE-RANDOM``, with the number of the pid namespace in which that id means something. A group
that a user made by Cgroup.create() has another form, and is nobody's to remove.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ..errors import ContainerkitError
from . import base, members
from .layout import Hierarchy

__all__ = ["name", "remove_once"]

_done = 0


def name() -> str:
    """A new name for the group of one start."""
    return f"ck-{os.getpid()}-{_pid_namespace()}-{os.urandom(6).hex()}"


def remove_once() -> None:
    """Remove those that lie where this process makes its own; the first call in a process does it, others nothing."""
    global _done
    if _done == os.getpid():
        return
    _done = os.getpid()
    namespace = _pid_namespace()
    for hierarchy in base.layout().hierarchies:
        with suppress(OSError, ContainerkitError):
            for found in os.listdir(hierarchy.base):
                if _is_abandoned(found, namespace):
                    _remove(hierarchy, found)


def _is_abandoned(found: str, namespace: int) -> bool:
    parts = found.split("-")
    if len(parts) != 4 or parts[0] != "ck" or not parts[1].isdecimal() or parts[2] != str(namespace):
        return False
    return not os.path.exists(f"/proc/{parts[1]}")


def _remove(hierarchy: Hierarchy, found: str) -> None:
    """If it is empty, and nobody else was quicker."""
    with suppress(OSError, ContainerkitError), base.open_directory(hierarchy, f"{hierarchy.base}/{found}") as directory:
        members.rmdir(directory)


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
