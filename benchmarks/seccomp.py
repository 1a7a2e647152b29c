"""What the system call filter costs: loading it, every call after that, and a call that a supervisor answers.

    python benchmarks/seccomp.py [--rounds N] [--json FILE]

Needs a C compiler. Each filter is loaded in fresh processes, in turn with the others. All numbers are medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine

import containerkit as ck

RESULTS = Path(__file__).parent / "results"
ALLOW_ALL = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
POLICIES = {"strict": ck.Seccomp.strict, "service": ck.Seccomp.service, "compat": ck.Seccomp.compat}

ANSWERED = """\
import os, time
begin = time.perf_counter()
for _ in range({calls}):
    os.getppid()
print((time.perf_counter() - begin) / {calls})
"""


def loaded(rounds: int) -> dict[str, dict[str, float]]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("no C compiler")
    programs = {"none": b"", "allow all": ALLOW_ALL, **{name: make().program() for name, make in POLICIES.items()}}
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "seccomp_load"
        subprocess.run([compiler, "-O2", "-o", program, Path(__file__).with_name("seccomp_load.c")], check=True)
        files = []
        for name, content in programs.items():
            file = Path(scratch) / name
            file.write_bytes(content)
            files.append(str(file) if content else "-")
        command = [str(program), str(rounds), "2000", *files]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for (name, content), line in zip(programs.items(), output.splitlines(), strict=True):
        load, call = map(int, line.split())
        found[name] = {"instructions": len(content) // 8, "load_us": load / 1e3, "getppid_ns": call / 1e3}
    return found


class Answers(ck.Supervisor):
    def handle(self, call: Any) -> ck.Answer:
        return ck.Answer.value(1)


def answered(calls: int = 5000) -> float:
    security = ck.Security(capabilities=ck.Capabilities(), seccomp=ck.Seccomp.strict().notify("getppid"))
    done = ck.run(
        ["python3", "-I", "-c", ANSWERED.format(calls=calls)], security=security, supervisor=Answers(), check=True
    )
    return float(done.stdout) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--json", type=Path, default=RESULTS / "seccomp.json")
    options = parser.parse_args()
    facts = machine.facts()
    filters = loaded(options.rounds)
    supervised = sorted(answered() for _ in range(5))[2]
    for name, row in filters.items():
        print(
            f"{name:10} {row['instructions']:4} instructions  load {row['load_us']:6.1f} us  "
            f"getppid {row['getppid_ns']:6.1f} ns ({row['getppid_ns'] - filters['none']['getppid_ns']:+.1f})"
        )
    print(f"a call that a supervisor answers: {supervised:.1f} us")
    report = {"machine": facts, "rounds": options.rounds, "filters": filters, "answered_us": supervised}
    options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
