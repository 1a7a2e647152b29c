"""What tests of starts share: the ways to start a program, what it said, and a host program of their own.

A host program is a Python process that a test may kill, fork, starve or let ignore signals.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import PATIENCE

import containerkit
from containerkit import HOST, PIPE, Dev, Namespaces, Proc, Process, Tmpfs

ISOLATED: dict[str, Any] = {
    "namespaces": Namespaces(user="new", mnt="new", pid="new"),
    "root": HOST,
    "mounts": (Proc(), Dev(), Tmpfs("/tmp")),
}
"""Namespaces, the host's programs, and ck-init as PID 1: the program is its child."""

STARTS: dict[str, dict[str, Any]] = {"bare": {}, "init": ISOLATED, "no-init": {**ISOLATED, "init": False}}
"""Every way in which a first process becomes, or starts, the program."""


def isolated(*mounts: Any, **options: Any) -> dict[str, Any]:
    """ISOLATED with more mounts and other options."""
    return {**ISOLATED, "mounts": (*ISOLATED["mounts"], *mounts), **options}


def in_root(root: Any, *mounts: Any, **options: Any) -> dict[str, Any]:
    """Isolated in a root of the test's own, with a /proc."""
    return {"namespaces": ISOLATED["namespaces"], "root": root, "mounts": (Proc(), *mounts), **options}


def said(args: Sequence[Any], **options: Any) -> str:
    """The standard output of a program that ends well."""
    with Process(args, stdout=PIPE, text=True, **options) as process:
        output, _ = process.communicate(timeout=20 * PATIENCE)
        assert process.returncode == 0
    return str(output)


def shell(script: str, **options: Any) -> str:
    return said(["sh", "-c", script], **options)


class Directory:
    """A directory as a handle, for ``cgroup=``."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def fileno(self) -> int:
        return self._fd

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


@contextmanager
def sleeping(**options: Any) -> Iterator[Process]:
    """A program that does nothing until it is killed."""
    with Process(["sleep", "60"], **options) as process:
        yield process


def status(pid: int | str) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def is_gone(pid: int) -> bool:
    try:
        return status(pid)["State"].startswith(("Z", "X"))
    except (FileNotFoundError, ProcessLookupError):
        return True


def settled(process: Process) -> Process:
    """Once it sleeps: the dynamic linker has then closed what it opened."""
    wait_until(lambda: status(process.pid)["State"].startswith("S"))
    return process


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> float:
    """How long it took; fails when it does not come true."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds * PATIENCE, "it did not come true"
        time.sleep(0.002)
    return time.monotonic() - begin


# ---- a host program ----------------------------------------------------------------------------------------

_PREAMBLE = """
import ctypes, errno, gc, os, pickle, resource, signal, socket, subprocess, sys, threading, time
import containerkit as ck
from containerkit import DEVNULL, PIPE, STDOUT, Process
from starts import ISOLATED, STARTS, Directory, is_gone, isolated, said, shell, sleeping, status, wait_until
"""
_PATH = [str(Path(containerkit.__file__).parent.parent), str(Path(__file__).parent)]


@contextmanager
def host(code: str, *arguments: str, prefix: Sequence[str] = (), **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A running Python program with the names above, after ``prefix`` (setpriv, unshare, ...)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_PATH), "PYTHONDONTWRITEBYTECODE": "1"}
    # In a session of its own: what it leaves to the machine's init is no orphan of this test's session.
    options = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "env": environment, "start_new_session": True, **options}
    command = [*prefix, sys.executable, "-c", _PREAMBLE + textwrap.dedent(code), *arguments]
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def host_said(code: str, *arguments: str, **options: Any) -> list[str]:
    """The lines that a host program prints; it has to end well and silently."""
    with host(code, *arguments, **options) as process:
        output, errors = process.communicate(timeout=40 * PATIENCE)
        assert (process.returncode, errors) == (0, "")
    return list(output.split("\n")[:-1])
