"""How one start is timed, and how many are summed up: in the benchmark and in its worker processes."""

from __future__ import annotations

import math
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TypedDict

PROGRAM = "/bin/true"


class Unavailable(Exception):
    """A contestant that cannot run here; the message says why."""


class Summary(TypedDict):
    n: int
    min_ms: float
    median_ms: float
    p95_ms: float


def summary(seconds: Sequence[float]) -> Summary:
    """Nearest-rank p95: a value that was really measured."""
    ordered = sorted(seconds)
    rank = math.ceil(0.95 * len(ordered)) - 1
    low, median, p95 = (round(x * 1000, 4) for x in (ordered[0], statistics.median(ordered), ordered[rank]))
    return {"n": len(ordered), "min_ms": low, "median_ms": median, "p95_ms": p95}


def first_reason(error: Exception) -> str:
    """One line; whatever a library under development raises is reported like any other failure."""
    words = str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
    return last_line(words.encode())


def last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def timed_command(argv: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """Seconds of one `subprocess.run`. No timeout: `Popen.wait` would then poll with sleeps."""
    begin = perf_counter()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False)
    seconds = perf_counter() - begin
    if done.returncode != 0:
        reason = last_line(done.stderr or done.stdout)
        raise Unavailable(f"`{Path(argv[0]).name}` ended with status {done.returncode}: {reason}")
    return seconds


def timed_run(rootfs: str) -> float:
    """Seconds of one `containerkit.run` with all defaults, in this process."""
    import containerkit

    begin = perf_counter()
    done = containerkit.run([PROGRAM], rootfs=rootfs)
    seconds = perf_counter() - begin
    if done.returncode != 0:
        raise Unavailable(f"containerkit.run: {done!r}")
    return seconds
