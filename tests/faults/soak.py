"""Starts and stops, very many, and compares what is on the machine after each round with what was there before.

Arguments: a file that keeps the count, so that a soak that was stopped goes on; how many starts in all; "user" when
root is to do it as an ordinary user. Ends with a line of JSON: how many it has reached, what has leaked, by how many
bytes the memory of this process has grown.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import leaks
import ordinary_user
from starts import ISOLATED

import containerkit as ck
from containerkit import PIPE, Process, Sandbox

ROUND = 500


def runs() -> int:
    assert ck.run(["true"]).returncode == 0
    return 1


def fails() -> int:
    try:
        ck.run(["/there/is/no/such/program"])
    except ck.SpawnError:
        return 1
    raise AssertionError("it started")


def is_killed() -> int:
    with Process(["sleep", "60"], stdout=PIPE, **ISOLATED):
        return 1


def is_bare() -> int:
    with Process(["true"]) as process:
        process.wait(20)
    return 1


def is_joined() -> int:
    with Sandbox() as box:
        box.run(["true"])
        box.process(["sleep", "60"])
    return 3


MIXTURE: tuple[Callable[[], int], ...] = (runs, runs, runs, is_killed, runs, is_bare, runs, fails, runs, is_joined)


def rounds(total: int) -> Iterator[int]:
    """The starts of each round."""
    done = 0
    acts = itertools.cycle(MIXTURE)
    while done < total:
        begin = done
        while done - begin < min(ROUND, total - begin):
            done += next(acts)()
        yield done - begin


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(state: Path, wanted: int) -> int:
    record = {"done": 0, "seconds": 0.0, "leaks": [], "grown": 0}
    if state.exists() and state.stat().st_size:
        record = json.loads(state.read_text())
    for act in MIXTURE * 20:  # what is made once in a process is there, and its memory has found its size
        act()
    before, memory = leaks.snapshot(), resident()
    begin = time.monotonic()
    for count in rounds(wanted - record["done"]):
        record["leaks"] = leaks.leaks_since(before)
        if record["leaks"]:
            break
        record["done"] += count
        record["seconds"] += time.monotonic() - begin
        record["grown"] = max(record["grown"], resident() - memory)
        begin = time.monotonic()
        state.write_text(json.dumps(record))
    print(json.dumps(record))
    return 1 if record["leaks"] else 0


def as_user(state: Path, wanted: str) -> int:
    state.touch()
    os.chown(state, ordinary_user.account().pw_uid, -1)
    with tempfile.TemporaryDirectory(prefix="ck-soak-") as directory:
        os.chmod(directory, 0o711)
        home = Path(directory, "home")
        ordinary_user.make_home(home)
        tree = Path(__file__).parents[2]
        argv = [sys.executable, __file__, str(state), wanted]
        command = ordinary_user.command(argv, tree=tree, stage=Path(directory, "stage"))
        environment = ordinary_user.environment(home, {"PYTHONPATH": os.pathsep.join(sys.path)})
        return subprocess.run(command, cwd=home, env=environment).returncode


if __name__ == "__main__":
    path = Path(sys.argv[1]).absolute()
    with suppress(PermissionError):  # what others orphan is not taken for ours
        os.setsid()
    if "user" in sys.argv[3:]:
        sys.exit(as_user(path, sys.argv[2]))
    with tempfile.TemporaryDirectory(prefix="ck-soak-") as tempfile.tempdir:
        sys.exit(main(path, int(sys.argv[2])))
