"""How long it takes to start /bin/true in a container and reap it: containerkit, its floor, and its peers.

    python benchmarks/spawn.py [--runs N] [--only NAME,...] [--host-load] [--throughput] [--json F] [--svg F]

As root. One run, interleaved: every round gives each contestant a block of starts, so that all of them see
the same machine.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import chart
import machine
from area import Area
from contestants import ALL, Contestant
from load import host_load, throughput
from timing import first_reason, summary

RESULTS = Path(__file__).parent / "results"
RUNS, SLOW_RUNS, ROUNDS = 200, 20, 20
KINDS = {"containerkit": "ours", "reference": "floor"}

Row = dict[str, Any]


class Entry:
    """A contestant in the race. The first failure ends its part in it, and is its result."""

    def __init__(self, contestant: Contestant, runs: int) -> None:
        self.contestant = contestant
        self.left = runs
        self.seconds: list[float] = []
        self.version: str | None = None
        self.reason: str | None = None

    def prepare(self, area: Area) -> None:
        try:
            self.contestant.prepare(area)
            self.version = self.contestant.version()
            self.contestant.starts(1)
        except Exception as error:
            self.reason = first_reason(error)

    def block(self, size: int) -> None:
        """A fast one makes a start more, first, which warms up what the other contestants have cooled."""
        count = min(size, self.left)
        if self.reason is not None or count == 0:
            return
        warm_up = 0 if self.contestant.slow else 1
        try:
            self.seconds += self.contestant.starts(count + warm_up)[warm_up:]
            self.left -= count
        except Exception as error:
            self.reason = first_reason(error)

    def row(self) -> Row:
        row: Row = {"name": self.contestant.name, "label": self.contestant.label, "version": self.version}
        if self.reason is not None:
            return {**row, "status": "failed" if self.version else "unavailable", "reason": self.reason}
        return {**row, "status": "ok", **summary(self.seconds)}


def race(area: Area, contestants: list[Contestant], runs: int | None) -> list[Row]:
    entries = [Entry(c, runs or (SLOW_RUNS if c.slow else RUNS)) for c in contestants]
    for entry in entries:
        say(f"preparing {entry.contestant.name}")
        entry.prepare(area)
    size = {entry: -(-entry.left // ROUNDS) for entry in entries}
    for number in range(ROUNDS):
        say(f"round {number + 1} of {ROUNDS}")
        for entry in entries:
            entry.block(size[entry])
    rows = [entry.row() for entry in entries]
    add_ratios(rows)
    return sorted(rows, key=lambda row: row.get("median_ms", math.inf))


def add_ratios(rows: list[Row]) -> None:
    medians = {row["name"]: row["median_ms"] for row in rows if row["status"] == "ok"}
    for row in rows:
        if row["name"] in medians and "reference" in medians:
            row["over_reference"] = round(row["median_ms"] / medians["reference"], 3)


def say(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    lines = [f"{'':32}{'median':>10}{'p95':>10}{'min':>10}{'floor x':>9}"]
    for row in rows:
        if row["status"] == "ok":
            cells = "".join(f"{row[key]:10.2f}" for key in ("median_ms", "p95_ms", "min_ms"))
            lines.append(f"{row['label']:32}{cells}{row.get('over_reference', math.nan):9.2f}")
        else:
            lines.append(f"{row['label']:32}{row['status']}: {row['reason']}")
    return "\n".join(lines)


def draw(rows: list[Row], facts: dict[str, Any]) -> str:
    good = [row for row in rows if row["status"] == "ok"]
    bars = [chart.Bar(r["label"], r["median_ms"], r["p95_ms"], KINDS.get(r["name"], "peer")) for r in good]
    notes = [f"{row['label']}: {row['status']} ({row['reason']})" for row in rows if row not in good]
    where = f"Linux {facts['kernel']}, {facts['cpu']}, {facts['cores']} cores, {facts['date'][:10]}"
    title = "Start /bin/true in a container and reap it"
    return chart.render(title, f"median, whisker to p95, logarithmic; {where}", bars, notes)


def names(words: str) -> set[str]:
    known = {make().name for make in ALL}
    wanted = set(words.split(","))
    if wanted - known:
        raise argparse.ArgumentTypeError(f"known are {', '.join(sorted(known))}")
    return wanted


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    slow = f"{SLOW_RUNS} of docker and podman"
    parser.add_argument("--runs", type=int, help=f"starts of each contestant (default {RUNS}, {slow})")
    parser.add_argument("--only", type=names, help="comma-separated names of contestants")
    parser.add_argument("--host-load", action="store_true", help="also from a host of 2 GiB and 32 threads")
    parser.add_argument("--throughput", action="store_true", help="also 1,000 starts, 8 at a time")
    parser.add_argument("--json", type=Path, default=RESULTS / "spawn.json")
    parser.add_argument("--svg", type=Path, default=RESULTS / "spawn.svg")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    contestants = [make() for make in ALL]
    if options.only:
        contestants = [c for c in contestants if c.name in options.only]
    result: dict[str, Any] = {"machine": machine.facts()}
    with Area() as area:
        result["starts"] = race(area, contestants, options.runs)
        if options.throughput:
            say("throughput")
            result["throughput"] = throughput(area)
        if options.host_load:
            say("host load")
            result["host_load"] = host_load(area, options.runs or RUNS)
    say("")
    return result


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    result = measure(options)
    for path in (options.json, options.svg):
        path.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result["starts"]))
    for part in ("throughput", "host_load"):
        if part in result:
            print(f"{part}: {json.dumps(result[part], indent=2)}")
    if any(row["status"] == "ok" for row in result["starts"]):
        options.svg.write_text(draw(result["starts"], result["machine"]))


if __name__ == "__main__":
    main()
