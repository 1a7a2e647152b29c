"""KeyboardInterrupt at every moment of a start, a run and their end at which Python may run a signal handler.

CPython looks for signals after a call, when a function begins, and when a loop goes round (its eval breaker). A trace
function counts these moments in the library's code, and raises at one of them, as the handler of SIGINT does.

Run as a program of its own. Arguments: a scenario, a seed, and how many moments to try (0: all). Prints a line of JSON
for each moment after which a descriptor, a child or a temporary file was left, or the interrupt got lost, and at the
end how many were tried.
"""

from __future__ import annotations

import dis
import gc
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from leaks import descriptors
from starts import ISOLATED

import containerkit as ck
from containerkit import DEVNULL, PIPE, Process, Sandbox

LIBRARY = str(Path(ck.__file__).parent)
CHECKED = {
    number
    for name, number in dis.opmap.items()
    if name.startswith(("JUMP_BACKWARD", "POP_JUMP_BACKWARD"))
    or name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME")
}


def run() -> None:
    ck.run(["true"])


def process() -> None:
    with Process(["true"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True, **ISOLATED) as started:
        started.communicate(timeout=5)


def killed() -> None:
    Process(["sleep", "60"], stdout=PIPE, **ISOLATED).close()


def terminal() -> None:
    with Process(["true"], tty=True) as started:
        started.wait(5)


def failed() -> None:
    try:
        ck.run(["/there/is/no/such/program"])
    except ck.SpawnError:
        return
    raise AssertionError("it started")


def sandbox() -> None:
    with Sandbox() as box:
        box.run(["true"])
        box.process(["sleep", "60"])


def naive() -> None:
    """As it is done without a thought; what is found here shows that the search finds."""
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)


SCENARIOS: dict[str, Callable[[], None]] = {
    act.__name__: act for act in (run, process, killed, terminal, failed, sandbox, naive)
}


class Interrupter:
    """A trace function: counts the moments, and raises at number ``at``."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        self.place = ""
        self._codes: dict[Any, bytes] = {}
        self._last: dict[int, int] = {}  # by the frame's id: a frame that is held would hold what it lost
        self._library: dict[str, bool] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> Interrupter | None:
        if event == "call":
            name = frame.f_code.co_filename
            ours = self._library.get(name)
            if ours is None:
                ours = self._library[name] = name.startswith(LIBRARY) or frame.f_code is naive.__code__
            if not ours:
                return None
            self._last.pop(id(frame), None)
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return self
        if event == "exception":
            self._last.pop(id(frame), None)  # a call that raises looks for no signal
        if event == "opcode" and self._may_be_interrupted(frame):
            if self.count == self.at:
                name = os.path.relpath(frame.f_code.co_filename, LIBRARY)
                self.place = f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
                raise KeyboardInterrupt
            self.count += 1
        return self

    def _may_be_interrupted(self, frame: FrameType) -> bool:
        """Whether the instruction that ran before this one lets signal handlers run."""
        code = frame.f_code
        text = self._codes.get(code)
        if text is None:
            text = self._codes[code] = code.co_code
        before, self._last[id(frame)] = self._last.get(id(frame), -1), frame.f_lasti
        return before >= 0 and text[before] in CHECKED


def attempt(scenario: Callable[[], None], at: int) -> tuple[Interrupter, bool]:
    """Whether the interrupt came out."""
    interrupter = Interrupter(at)
    sys.settrace(interrupter)
    try:
        scenario()
    except KeyboardInterrupt:
        return interrupter, True
    finally:
        sys.settrace(None)
    return interrupter, False


def left(before: set[str], seconds: float = 0.5) -> list[str]:
    """What is there that was not, once what ends by itself has ended."""
    deadline = time.monotonic() + seconds
    while True:
        gc.collect()
        found = [f"descriptor left: {item}" for item in sorted(set(descriptors()) - before)]
        found += [f"descriptor closed: {item}" for item in sorted(before - set(descriptors()))]
        try:
            pid = os.waitpid(-1, os.WNOHANG | 0x40000000)[0]
            found.append("a child that nobody reaped" if pid else "a child that runs")
        except ChildProcessError:
            pass
        found += [f"temporary file left: {name}" for name in os.listdir(tempfile.gettempdir())]
        if not found or time.monotonic() > deadline or "a child that nobody reaped" in found:
            return found
        time.sleep(0.002)


def main(name: str, seed: int, count: int) -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # an object that lost its owner says so, and ends itself
    unraised: list[Any] = []
    # Python swallows what is raised in a __del__. Only the kind: a traceback would keep what it should have ended.
    sys.unraisablehook = lambda lost: unraised.append(lost.exc_type)
    scenario = SCENARIOS[name]
    for _ in range(3):
        scenario()
    moments = attempt(scenario, -1)[0].count
    todo = list(range(moments))
    if count:
        todo = sorted(random.Random(seed).sample(todo, min(count, moments)))  # noqa: S311  to be repeated, not secret
    tried = broken = 0
    for at in todo:
        before = set(descriptors())
        unraised.clear()
        interrupter, came = attempt(scenario, at)
        tried += bool(interrupter.place)
        wrong = left(before)
        if interrupter.place and not came and not unraised:
            wrong.append("the interrupt got lost")
        if wrong:
            broken += 1
            print(json.dumps({"moment": at, "place": interrupter.place, "wrong": wrong}), flush=True)
    print(json.dumps({"scenario": name, "moments": tried, "broken": broken}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ck-interrupts-") as tempfile.tempdir:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
