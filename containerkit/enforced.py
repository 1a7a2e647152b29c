"""Reading back from the kernel which walls a running sandbox has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import Unsupported

if TYPE_CHECKING:
    from .process import Process


def enforced(process: Process, namespaces: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Walls by name, with what the kernel says of each. A wall that is not there is not in the answer.

    ``namespaces`` are the (kind, descriptor) pairs that the sandbox opened for its joiners.
    """
    pid = process.pid
    walls: dict[str, str] = {}
    for kind, fd in namespaces:
        if os.fstat(fd).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
            walls[f"{kind} namespace"] = f"{kind}:[{os.fstat(fd).st_ino}]"
    status = _status(pid)
    if not int(status["CapBnd"], 16) and not int(status["CapPrm"], 16):
        walls["capabilities"] = "none, and none to be had"
    if status.get("NoNewPrivs") == "1":
        walls["no_new_privs"] = "set"
    if status.get("Seccomp") == "2":
        walls["seccomp"] = f"{status.get('Seccomp_filters', '1')} filters"
    walls["user ids"] = " ".join(_read(f"/proc/{pid}/uid_map").split())
    mounts = _read(f"/proc/{pid}/mountinfo").splitlines()
    walls["mounts"] = f"{len(mounts)}, the host's not among them"
    if process._try_wait(0):
        raise Unsupported("the sandbox has ended: there is nothing to read back")
    return walls


def _status(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
