"""The two errors that carry a finished run; apart because they need the subprocess module."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from .errors import ContainerkitError

if TYPE_CHECKING:
    from .completed import Completed


class TimeoutExpired(ContainerkitError, subprocess.TimeoutExpired, TimeoutError):
    """A wait took longer than its timeout (seconds). ``stdout`` and ``stderr`` hold what had been read by then."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cmd, self.timeout, self.output, self.stderr)


class ProcessFailed(ContainerkitError, subprocess.CalledProcessError):
    """``run(check=True)`` and the program did not end with status 0. ``completed`` is the whole result."""

    def __init__(self, completed: Completed[Any]) -> None:
        super().__init__(completed.returncode, list(completed.args), completed.stdout, completed.stderr)
        self.completed = completed

    def __str__(self) -> str:
        done = self.completed
        text = f"{done.args[0]!r} failed: {done.outcome.value}, return code {done.returncode}"
        if done.oom is not None:
            text += f" ({done.oom})"
        tail = done.stderr[-1000:] if done.stderr else ""
        if isinstance(tail, bytes):
            tail = tail.decode(errors="backslashreplace")
        return f"{text}; the end of its standard error:\n{tail}" if tail else text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.completed,)
