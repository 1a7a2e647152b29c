"""What attack tests are run against: our own start, and its naive twin on which the same test must go red.

A test says what it wants by ``subject(root, ...)`` and complains by :class:`Breach` alone. For the twin, a Breach is
what makes the test pass (``attack.plugin``): whatever else goes wrong there proves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import canary
import naive

from containerkit import (
    PIPE,
    STDOUT,
    Bind,
    ContainerkitError,
    Dev,
    File,
    Namespaces,
    Proc,
    Process,
    Security,
    Sysfs,
    TimeoutExpired,
    Tmpfs,
)

STANDARD = (Proc(), Sysfs(), Dev(), Tmpfs("/tmp"))
NAIVE = str(Path(next(iter(naive.__path__))) / "container.py")


class Breach(AssertionError):
    """The attack succeeded."""


def breach_if(condition: object, what: str) -> None:
    if condition:
        raise Breach(what)


@dataclass(frozen=True)
class Result:
    """How a start ended: the output of the program, or the error that refused it."""

    output: str
    status: int | None
    refused: Exception | None = None


def ours(
    root: Path,
    *args: str,
    binds: Sequence[tuple[Path, str, bool]] = (),
    tmpfs: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    timeout: float = 10,
    **options: Any,
) -> Result:
    """A program in the very root, with all that a sandbox has but an overlay. ``binds``: from, to, read-only."""
    mounts = (
        *STANDARD,
        *(Bind(source, target, read_only=read_only) for source, target, read_only in binds),
        *(Tmpfs(target) for target in tmpfs),
        *(File(target, content) for target, content in (files or {}).items()),
    )
    try:
        process = Process(
            args,
            root=root,
            namespaces=Namespaces.all(),
            mounts=mounts,
            security=Security.strict(),
            stdout=PIPE,
            stderr=STDOUT,
            errors="replace",
            start_timeout=timeout,
            **options,
        )
    except ContainerkitError as error:
        return Result("", None, error)
    with process:
        try:
            output = process.communicate(timeout=timeout)[0]
        except TimeoutExpired as error:
            raise Breach(f"a hang: {args}") from error
        return Result(output, process.returncode)


def naive_container(
    root: Path,
    *args: str,
    binds: Sequence[tuple[Path, str, bool]] = (),
    timeout: float = 10,
    **options: Any,
) -> Result:
    """The same by tests/naive/container.py."""
    spec = {"root": str(root), "args": args, "binds": [(str(source), *rest) for source, *rest in binds], **options}
    command = [sys.executable, "-I", "-S", NAIVE, json.dumps(spec)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        close_fds=False,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise Breach(f"a hang: {args}") from error
        return Result(output, process.returncode)


class Watched:
    """A canary tree of the host. ``check`` raises Breach when it is not what it was."""

    def __init__(self, tree: Path) -> None:
        self.tree = canary.plant(tree)
        self._before = canary.fingerprint(self.tree)

    def __truediv__(self, name: str) -> Path:
        return self.tree / name

    def __str__(self) -> str:
        return str(self.tree)

    def __fspath__(self) -> str:
        return str(self.tree)

    def check(self, where: str = "") -> None:
        now = canary.fingerprint(self.tree)
        changed = [name for name in self._before.keys() | now.keys() if self._before.get(name) != now.get(name)]
        breach_if(changed, f"the host was changed {where}: {sorted(changed)}")
