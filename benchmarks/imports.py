"""What `import containerkit` costs over a bare interpreter, and the imports of a first run with it.

    python benchmarks/imports.py [--runs N] [--json FILE]

As root, because the modules of a first run are found by making one. Every measurement is a fresh interpreter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import machine
from area import Area
from timing import PROGRAM, Unavailable, first_reason, last_line

RUNS = 40
RESULTS = Path(__file__).parent / "results"

CHILD = """\
import sys
from importlib import import_module
from time import perf_counter
begin = perf_counter()
for name in sys.argv[1:]:
    import_module(name)
print(perf_counter() - begin)
"""
MODULES_OF_A_RUN = """\
import sys
before = set(sys.modules)
import containerkit
done = containerkit.run([sys.argv[1]], rootfs=sys.argv[2])
assert done.returncode == 0, done
print(*(name for name in sys.modules if name not in before and not name.endswith(".__main__")))
"""


def interpreter(code: str, *arguments: str) -> str:
    argv = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise Unavailable(last_line(done.stderr))
    return done.stdout.decode()


def modules_of_a_run() -> list[str]:
    with Area() as area:
        return interpreter(MODULES_OF_A_RUN, PROGRAM, area.rootfs).split()


def candidates() -> tuple[dict[str, list[str]], dict[str, str]]:
    """What to import, under a name; and the reasons of what cannot be imported."""
    wanted = {
        "bare interpreter": [],
        "dependencies": ["attrs", "typing_extensions", "_cffi_backend"],
        "containerkit": ["containerkit"],
    }
    reasons = {}
    try:
        wanted["first containerkit.run"] = modules_of_a_run()
    except Exception as error:
        reasons["first containerkit.run"] = first_reason(error)
    for name, modules in list(wanted.items()):
        try:
            interpreter(CHILD, *modules)
        except Unavailable as error:
            reasons[name] = str(error)
            del wanted[name]
    return wanted, reasons


def measure(wanted: dict[str, list[str]], runs: int) -> dict[str, dict[str, float]]:
    inside: dict[str, list[float]] = {name: [] for name in wanted}
    wall: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(runs):
        for name, modules in wanted.items():
            begin = perf_counter()
            inside[name].append(float(interpreter(CHILD, *modules)))
            wall[name].append(perf_counter() - begin)
    bare = statistics.median(wall["bare interpreter"])
    return {name: row(inside[name], wall[name], bare, len(wanted[name])) for name in wanted}


def row(inside: list[float], wall: list[float], bare: float, modules: int) -> dict[str, float]:
    median = statistics.median(wall)
    return {
        "named_modules": modules,
        "import_ms": round(statistics.median(inside) * 1000, 3),
        "wall_ms": round(median * 1000, 3),
        "wall_over_bare_ms": round((median - bare) * 1000, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"interpreters of each kind (default {RUNS})")
    parser.add_argument("--json", type=Path, default=RESULTS / "imports.json")
    options = parser.parse_args()
    facts = machine.facts()
    wanted, reasons = candidates()
    result: dict[str, Any] = {
        "machine": facts,
        "runs": options.runs,
        "imports": measure(wanted, options.runs),
        "unavailable": reasons,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("imports", "unavailable")}, indent=2))


if __name__ == "__main__":
    main()
