"""Whether quotas hold against real load: each limit, what was measured under it, and how far that is off.

    python benchmarks/quotas.py [--seconds S] [--only NAME,...] [--json F]

As root. The measures count what the kernel counts (processor time against the periods of the quota, bytes of direct I/O
against the time of their own loop, the peak of memory), so that a machine that is busy with something else does not
make a quota look better or worse. `tests/test_quotas.py` runs the same functions against the tolerances below, and each
without its limit, which must miss.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import containerkit as ck
from containerkit.cgroup import Cgroup

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
SECONDS = 3.0


class Measured(NamedTuple):
    """What was asked for and what was seen, in one unit. `tolerance` is relative; `at_most`: less is right as well."""

    what: str
    unit: str
    wanted: float
    seen: float
    tolerance: float
    at_most: bool = False

    @property
    def off(self) -> float:
        """By which part of it the limit was missed."""
        return self.seen / self.wanted - 1

    @property
    def holds(self) -> bool:
        return self.off <= self.tolerance if self.at_most else abs(self.off) <= self.tolerance


class NoDevice(Exception):
    """There is no block device to measure on; the message says why."""


# ---- load -----------------------------------------------------------------------------------------------------------

BURN = "while True: pass"
ALLOCATE = """
import mmap, os, sys
size, kept = 1 << 20, []
try:
    for _ in range(int(sys.argv[1])):
        kept.append(mmap.mmap(-1, size))
        kept[-1].write(b"x" * size)
except MemoryError:
    pass
"""
FORK = """
import os, signal
pids = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
except BlockingIOError:
    print(len(pids), flush=True)
for pid in pids:
    os.kill(pid, signal.SIGKILL)
for pid in pids:
    os.waitpid(pid, 0)
"""
# Direct I/O, one request at a time; the first quarter second is the burst that a new limit lets pass.
TRANSFER = """
import mmap, os, sys, time
path, kind, size, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
fd = os.open(path, (os.O_RDONLY if kind == "r" else os.O_WRONLY) | os.O_DIRECT)
call, buffer, at = (os.preadv if kind == "r" else os.pwritev), mmap.mmap(-1, size), 0
def until(end):
    global at
    count = 0
    while time.monotonic() < end:
        call(fd, [buffer], at)
        at = (at + size) % (32 << 20)
        count += 1
    return count
until(time.monotonic() + seconds / 4)
begin = time.monotonic()
count = until(begin + seconds)
print(count / (time.monotonic() - begin))
"""


@contextmanager
def running(code: str, group: Cgroup, *args: str, **options: Any) -> Iterator[ck.Process]:
    argv = [sys.executable, "-I", "-S", "-c", code, *args]
    with ck.Process(argv, cgroup=group, **options) as process:
        yield process


def output(code: str, group: Cgroup, *args: str) -> str:
    with running(code, group, *args, stdout=ck.PIPE, text=True) as process:
        text, _ = process.communicate()
    return str(text)


@contextmanager
def loop_device(size: int = 64 * MIB) -> Iterator[str]:
    """A block device of our own, over a file."""
    if shutil.which("losetup") is None:
        raise NoDevice("losetup is not installed (util-linux)")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "disk")
        with file.open("wb") as disk:
            disk.truncate(size)
        attach = ["losetup", "--find", "--show", str(file)]
        done = subprocess.run(attach, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoDevice(f"losetup: {done.stderr.strip()}")
        device = done.stdout.strip()
        try:
            yield device
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


# ---- the measures; `limited=False` leaves the limit out, everything else being the same -----------------------------


def cpu_quota(seconds: float = SECONDS, *, limited: bool = True, cpus: float = 0.3) -> Measured:
    """Two processes that never sleep may together use `cpu_max` of each period, and by their weight nobody keeps them
    from it."""
    limits = ck.Limits(cpu_max=cpus if limited else len(os.sched_getaffinity(0)), cpu_weight=10000)
    with Cgroup.create(limits=limits) as group, running(BURN, group), running(BURN, group):
        time.sleep(0.3)
        first = group.stats().cpu
        time.sleep(seconds)
        last = group.stats().cpu
    assert first.usage is not None and last.usage is not None and first.periods is not None and last.periods is not None  # noqa: PT018
    time_of_periods = (last.periods - first.periods) * limits.cpu_period
    return Measured("cpu_max", "CPUs", cpus, (last.usage - first.usage) / time_of_periods, 0.05)


def cpu_weights(seconds: float = SECONDS, *, limited: bool = True) -> Measured:
    """Two groups that want the same processor share it as their weights say."""
    processor = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        groups = [
            stack.enter_context(Cgroup.create(limits=ck.Limits(cpu_weight=weight)))
            for weight in ((200, 100) if limited else (100, 100))
        ]
        for group in groups:
            stack.enter_context(running(BURN, group, affinity=[processor]))
        time.sleep(0.3)
        first = [group.stats().cpu.usage or 0.0 for group in groups]
        time.sleep(seconds)
        heavy, light = ((group.stats().cpu.usage or 0.0) - before for group, before in zip(groups, first, strict=True))
    return Measured("cpu_weight", "to 1", 2.0, heavy / light, 0.10)


def io_rate(kind: str, seconds: float = SECONDS, *, limited: bool = True) -> Measured:
    """Direct I/O on a loop device. `kind` is a key of io_max: rbps, wbps, riops, wiops."""
    size, rate = (64 << 10, MIB) if kind.endswith("bps") else (4 << 10, 50)
    with loop_device() as device:
        limits = ck.Limits(io_max={device: {kind: rate}}) if limited else ck.Limits()
        with Cgroup.create(limits=limits, controllers=["io"]) as group:
            requests = float(output(TRANSFER, group, device, kind[0], str(size), str(seconds)))
    seen = requests * size / MIB if kind.endswith("bps") else requests
    wanted, unit = (rate / MIB, "MiB/s") if kind.endswith("bps") else (rate, "1/s")
    return Measured(f"io_max {kind}", unit, wanted, seen, 0.10)


def memory(seconds: float = SECONDS, *, limited: bool = True) -> Measured:
    """A program that writes to four times the memory that it may have: the peak is never more than that."""
    limit = 64 * MIB
    limits = ck.Limits(memory_max=limit, memory_swap_max=0) if limited else ck.Limits(memory_max=limit * 8)
    with Cgroup.create(limits=limits) as group:
        output(ALLOCATE, group, str(4 * limit // MIB))
        peak = group.stats().memory.peak
    assert peak is not None
    return Measured("memory_max", "MiB", limit / MIB, peak / MIB, 0.0, at_most=True)


def pids(seconds: float = SECONDS, *, limited: bool = True) -> Measured:
    """A program that forks until it is refused: itself and its children are exactly as many as it may have."""
    most = 40
    with Cgroup.create(limits=ck.Limits(pids_max=most if limited else most * 2)) as group:
        children = int(output(FORK, group))
    return Measured("pids_max", "tasks", most, children + 1, 0.0)


MEASURES: dict[str, Callable[..., Measured]] = {
    "cpu_max": cpu_quota,
    "cpu_weight": cpu_weights,
    "memory_max": memory,
    "pids_max": pids,
    **{
        f"io_max-{kind}": lambda *args, kind=kind, **options: io_rate(kind, *args, **options)
        for kind in ("rbps", "wbps", "riops", "wiops")
    },
}


# ---- the report -----------------------------------------------------------------------------------------------------


def row(name: str, seconds: float) -> dict[str, Any]:
    try:
        found = MEASURES[name](seconds)
    except (ck.ContainerkitError, NoDevice) as error:
        return {"name": name, "status": "unavailable", "reason": str(error)}
    return {"name": name, "status": "ok", **found._asdict(), "off": round(found.off, 4), "holds": found.holds}


def line(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['name']:16}{row['status']}: {row['reason']}"
    allowed = "never more" if row["at_most"] else f"within {row['tolerance']:.0%}" if row["tolerance"] else "exactly"
    numbers = f"{row['wanted']:10.2f}{row['seen']:10.2f} {row['unit']:8}{row['off']:+8.2%}"
    return f"{row['what']:16}{numbers}   {allowed}: {'holds' if row['holds'] else 'MISSED'}"


def main() -> None:
    import machine

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of load for each (default {SECONDS:g})")
    parser.add_argument("--only", type=lambda words: words.split(","), default=list(MEASURES), help="names of measures")
    parser.add_argument("--json", type=Path, default=RESULTS / "quotas.json")
    options = parser.parse_args()
    result = {"machine": machine.facts(), "quotas": [row(name, options.seconds) for name in options.only]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'':16}{'limit':>10}{'seen':>10}")
    for one in result["quotas"]:
        print(line(one))


if __name__ == "__main__":
    main()
