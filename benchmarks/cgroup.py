"""What a control group costs: to make it, start in it and remove it, beside a C program that does the same; its stats.

    python benchmarks/cgroup.py [--runs N] [--json F]

As root. By turns: every round makes a block of runs of each contestant and layout, so that all of them see the same
machine. A run is /bin/true, started and reaped; `added` is what the group adds to that.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import machine
from timing import PROGRAM, Summary, Unavailable, first_reason, summary

import containerkit as ck
from containerkit.cgroup import Cgroup, Layout

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS, ROUNDS = 400, 20
CORE = ("cgroup",)  # v2 without any controller
FIVE = ("cpu", "cpuacct", "memory", "pids", "io")
PARTS = ("plain", "inside", "create", "remove")
REFERENCE = "cgroup_reference.c"

Times = dict[str, list[float]]


@dataclass
class Case:
    """One contestant on one layout; `seconds` of each part of its runs."""

    layout: str
    contestant: str
    block: Callable[[int], Times]
    seconds: Times = field(default_factory=lambda: {part: [] for part in PARTS})
    reason: str | None = None

    def go(self, count: int) -> None:
        """One run more than counted, first: the others have cooled the caches."""
        if self.reason is not None:
            return
        try:
            for part, values in self.block(count + 1).items():
                self.seconds[part] += values[1:]
        except Exception as error:
            self.reason = first_reason(error)

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"layout": self.layout, "contestant": self.contestant}
        if self.reason is not None:
            return {**row, "status": "failed", "reason": self.reason}
        parts = {part: summary(values) for part, values in self.seconds.items() if values}
        most = added(self.seconds, statistics.median)
        return {**row, "status": "ok", "added_ms": most, "added_at_best_ms": added(self.seconds, min), **parts}


def added(seconds: Times, of: Callable[[list[float]], float]) -> float:
    """The difference between runs that took turns, in milliseconds."""
    return round((of(seconds["inside"]) - of(seconds["plain"])) * 1000, 4)


# ---- the contestants ------------------------------------------------------------------------------------------------


def start(group: Cgroup | None) -> None:
    process = ck.Process([PROGRAM], cgroup=group)
    if process.wait() != 0:
        raise Unavailable(f"{PROGRAM} ended with {process.returncode}")
    process.close()


def ours(controllers: Sequence[str], count: int) -> Times:
    times: Times = {part: [] for part in PARTS}
    for _ in range(count):
        begin = perf_counter()
        start(None)
        times["plain"].append(perf_counter() - begin)

        begin = perf_counter()
        with Cgroup.create(controllers=controllers) as group:
            made = perf_counter()
            start(group)
            ended = perf_counter()
        removed = perf_counter()
        times["create"].append(made - begin)
        times["remove"].append(removed - ended)
        times["inside"].append(removed - begin)
    return times


def limited_run(limits: ck.Limits, count: int) -> Times:
    """`containerkit.run` with limits that need a group, beside one with those that need none."""
    times: Times = {part: [] for part in PARTS}
    for _ in range(count):
        for part, given in (("plain", None), ("inside", limits)):
            begin = perf_counter()
            done = ck.run([PROGRAM], **({} if given is None else {"limits": given}))
            times[part].append(perf_counter() - begin)
            if not done.ok:
                raise Unavailable(repr(done))
    return times


def reference(binary: Path, directories: Sequence[str], count: int) -> Times:
    command = [str(binary), str(count), PROGRAM, *directories]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(done.stderr)
    found = json.loads(done.stdout)
    return {part: [us / 1e6 for us in found[f"{part}_us"]] for part in PARTS}


def build_reference(directory: Path) -> Path:
    binary = directory / "cgroup_reference"
    flags = ("-O2", "-std=gnu17", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *flags, "-o", str(binary), str(HERE / "cgroup_reference.c")], check=True)
    return binary


def cases(scratch: Path) -> Iterator[Case]:
    """The layouts that this machine has: v2 alone, and v1 with five controllers (with v2 beside it, where that is)."""
    layout = Layout.current()
    binary = build_reference(scratch)
    unified = [] if layout.unified is None else [layout.unified.base]
    v1 = {one.base: None for name in FIVE if (one := layout.find(name)) is not None and one.version == 1}
    if unified:
        yield from pair("v2", CORE, unified, binary)
    if v1:
        yield from pair(
            f"v1, {len(v1)} hierarchies" + (", and v2" if unified else ""), (*CORE, *FIVE), [*unified, *v1], binary
        )


def pair(name: str, controllers: Sequence[str], directories: Sequence[str], binary: Path) -> Iterator[Case]:
    yield Case(name, "containerkit.Cgroup", lambda count: ours(controllers, count))
    yield Case(name, REFERENCE, lambda count: reference(binary, directories, count))


# ---- reading --------------------------------------------------------------------------------------------------------


def stats_times(controllers: Sequence[str], count: int) -> Summary:
    """`stats()` of a group in which something runs."""
    with Cgroup.create(controllers=controllers) as group, ck.Process(["/bin/sleep", "60"], cgroup=group):
        group.stats()
        seconds = []
        for _ in range(count):
            begin = perf_counter()
            group.stats()
            seconds.append(perf_counter() - begin)
    return summary(seconds)


# ---- the report -----------------------------------------------------------------------------------------------------


def measure(runs: int) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": machine.facts()}
    with tempfile.TemporaryDirectory() as scratch:
        entered = list(cases(Path(scratch)))
        limits = {"run(limits=memory and pids)": ck.Limits(memory_max="256M", pids_max=64)}
        entered += [
            Case(name, "containerkit.run", lambda n, g=given: limited_run(g, n)) for name, given in limits.items()
        ]
        for number in range(ROUNDS):
            say(f"round {number + 1} of {ROUNDS}")
            for case in entered:
                case.go(-(-runs // ROUNDS))
        result["groups"] = with_ratios([case.row() for case in entered])
    result["stats"] = {"v2": stats_times(CORE, runs), "with five controllers": stats_times((*CORE, *FIVE), runs)}
    say("")
    return result


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of medians, over those of the C program on the same layout."""
    floors = {row["layout"]: row for row in rows if row["contestant"] == REFERENCE and row["status"] == "ok"}
    for row in rows:
        floor = floors.get(row["layout"])
        if floor is not None and row["status"] == "ok":
            row["over_reference"] = {
                part: round(row[part]["median_ms"] / floor[part]["median_ms"], 3) for part in PARTS if part in row
            }
    return rows


def say(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def table(result: dict[str, Any]) -> str:
    lines = [f"{'median ms':30}{'':22}" + "".join(f"{name:>9}" for name in (*PARTS, "added", "at best", "p95"))]
    for row in result["groups"]:
        head = f"{row['layout']:30}{row['contestant']:22}"
        if row["status"] == "ok":
            cells = [row[part]["median_ms"] if part in row else float("nan") for part in PARTS]
            lines.append(
                head
                + "".join(
                    f"{value:9.3f}"
                    for value in (*cells, row["added_ms"], row["added_at_best_ms"], row["inside"]["p95_ms"])
                )
            )
        else:
            lines.append(f"{head}{row['status']}: {row['reason']}")
    for name, row in result["stats"].items():
        lines.append(f"stats(), {name}: {row['median_ms'] * 1000:.0f} us, p95 {row['p95_ms'] * 1000:.0f} us")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each contestant on each layout (default {RUNS})")
    parser.add_argument("--json", type=Path, default=RESULTS / "cgroup.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    result = measure(options.runs)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
