"""What each wall of ``Security.strict()`` costs: at a start, and at the calls of a program that runs behind it.

    python benchmarks/walls.py [--rounds N] [--json FILE]

Needs a C compiler. The starts are made in turn. Of the calls, the fastest of many short batches counts.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import attrs
import machine
from timing import Summary, summary

import containerkit as ck

RESULTS = Path(__file__).parent / "results"

STRICT = ck.Security.strict()
POLICIES = {
    "none": attrs.evolve(STRICT, seccomp=None, landlock=None, user_namespaces=True),
    "seccomp": attrs.evolve(STRICT, landlock=None, user_namespaces=True),
    "landlock": attrs.evolve(STRICT, seccomp=None, user_namespaces=True),
    "no user namespaces": attrs.evolve(STRICT, seccomp=None, landlock=None),
    "strict": STRICT,
    "strict, attested": attrs.evolve(STRICT, attest=True),
}
STEPS = {"load the system call filter": "seccomp", "confine it with Landlock": "landlock", "set user.max": "sysctl"}


def starts(rounds: int) -> tuple[dict[str, Summary], dict[str, float]]:
    """Seconds of whole starts, and microseconds of the steps alone, as the timeline of each start has them."""
    seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    steps: dict[str, list[float]] = {name: [] for name in STEPS.values()}
    for turn in range(rounds + 3):
        for name, security in random.sample(list(POLICIES.items()), len(POLICIES)):
            begin = perf_counter()
            done = ck.run(["/bin/true"], security=security)
            if turn >= 3:  # the first ones import and compile
                seconds[name].append(perf_counter() - begin)
                if name == "strict":
                    for event in done.timeline:
                        for words, step in STEPS.items():
                            if event.what.startswith(words):
                                steps[step].append(event.duration / 1e3)
    return (
        {name: summary(values) for name, values in seconds.items()},
        {name: round(statistics.median(values), 1) for name, values in steps.items() if values},
    )


def calls() -> dict[str, dict[str, float]]:
    """Nanoseconds of a getppid, and of an open and close at two depths."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("no C compiler")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(__file__).with_name("walls_calls.c")
        Path(scratch).chmod(0o755)
        subprocess.run([compiler, "-O2", "-static", "-o", f"{scratch}/calls", source], check=True)
        for name in ("none", "seccomp", "landlock", "strict"):
            bound = [ck.Bind(scratch, "/bench")]
            done = ck.run(["/bench/calls"], mounts=bound, security=POLICIES[name], check=True)
            getppid, shallow, deep = map(float, done.stdout.split())
            found[name] = {"getppid_ns": getppid, "open_tmp_ns": shallow, "open_usr_bin_ns": deep}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path, default=RESULTS / "walls.json")
    options = parser.parse_args()
    facts = machine.facts()
    whole, steps = starts(options.rounds)
    behind = calls()
    base = whole["none"]["median_ms"]
    for name, row in whole.items():
        more = row["median_ms"] / base - 1
        print(f"{name:20} median {row['median_ms']:7.3f} ms ({more:+6.1%})  p95 {row['p95_ms']:.3f}")
    print("steps: " + ", ".join(f"{name} {value} us" for name, value in steps.items()))
    for name, row in behind.items():
        print(f"{name:20} " + "  ".join(f"{call} {value:.0f}" for call, value in row.items()))
    report = {"machine": facts, "rounds": options.rounds, "starts": whole, "steps_us": steps, "calls": behind}
    options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
