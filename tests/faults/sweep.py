"""What must hold whatever goes wrong at whatever moment, tried at every system call of a run.

Run as a program of its own: its children are to be those of the sweep only. Arguments: a scenario; the kind of fault
("kill", "kill-init" for the PID 1 of the sandbox while somebody joins it, or names of errnos, separated by commas); a
seed; and how many points to try (0: all). Prints a line of JSON for each point at which something was wrong, and at the
end how many were tried.

Wrong is: a process, descriptor, mount or temporary file that is left; an exception that is not an OSError (every error
of the library is one, or a ContainerkitError) or MemoryError; a hang; a run that succeeds although a wall is missing.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from faults.tracer import Fault, Point, Run, become_subreaper, mark, trace
from leaks import descriptors, mounts
from starts import ISOLATED

import containerkit as ck
from containerkit import PIPE, Process, Sandbox

WALLS = ["sh", "-c", "cat /proc/self/status /proc/self/limits /proc/self/mountinfo; ls -l /proc/self/fd; umask; pwd"]
SHOWN = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Sig", "Shd", "Max")


program = WALLS


def walls(text: str) -> list[str]:
    """What of the program's state must be the same in every run that succeeds."""
    lines = text.splitlines()
    shown = [line for line in lines if line.startswith(SHOWN) and not line.startswith("SigQ")]
    mounts = [" ".join(line.split()[3:]) for line in lines if " - " in line]
    return [*shown, *mounts, *lines[-2:]]


def run() -> str:
    done = ck.run(program)
    return done.stdout if done.returncode == 0 else ""


def process() -> str:
    with Process(program, stdin=PIPE, stdout=PIPE, text=True, **ISOLATED) as started:
        output, _ = started.communicate(timeout=5)
        return str(output) if started.returncode == 0 else ""


def bare() -> str:
    with Process(["true"], stdout=PIPE) as started:
        started.wait(5)
    return ""


def sandbox() -> str:
    with Sandbox() as box:
        done = box.run(program)
    return done.stdout if done.returncode == 0 else ""


def naive() -> str:
    """As it is done without a thought; what is found here shows that the search finds."""
    directory = tempfile.mkdtemp()
    child = subprocess.Popen(["sleep", "60"])
    child.kill()
    child.wait()
    os.rmdir(directory)
    return ""


SCENARIOS: dict[str, Callable[[], str]] = {act.__name__: act for act in (run, process, bare, sandbox, naive)}

# What fails in no such way: the kernel has no error for how we call them, and without them nobody can clean up.
# waitid, wait4 and pidfd_send_signal of our own child, futex, munmap, rt_sigaction, rt_sigreturn, exit, exit_group
# (x86-64).
UNFAILING = {247, 61, 424, 202, 11, 13, 15, 60, 231}
# In the host: its own limits are asked for by prlimit64, and whose a pidfd is by ioctl.
UNFAILING_IN_HOST = {302, 16}


def may_fail(place: str, call: int, fault: Fault) -> bool:
    if fault.signal or (call == 247 and fault.errno == errno.EINTR):
        return True
    return call not in UNFAILING and not (place == "host" and call in UNFAILING_IN_HOST)


def prepared() -> None:
    """In the fork: the pidfd of this very process is there."""
    bare()


def watched(scenario: Callable[[], str]) -> Callable[[], dict[str, Any]]:
    """What the host says at its end."""

    def watch() -> dict[str, Any]:
        before = set(descriptors())
        mark()
        wrong, error, output = [], None, ""
        try:
            output = scenario()
        except (ck.ContainerkitError, OSError, MemoryError) as caught:
            error = f"{type(caught).__name__}: {caught}"
        except BaseException as caught:  # it is what we are here for
            wrong.append(f"{type(caught).__name__}: {caught}")
        mark()
        gc.collect()
        wrong += [f"descriptor left: {item}" for item in sorted(set(descriptors()) - before)]
        wrong += [f"descriptor closed: {item}" for item in sorted(before - set(descriptors()))]
        try:
            if os.waitpid(-1, os.WNOHANG | 0x40000000)[0]:
                wrong.append("a child that nobody reaped")
            else:
                wrong.append("a child that runs")
        except ChildProcessError:
            pass
        return {"wrong": wrong, "error": error, "walls": walls(output)}

    return watch


def attempt(name: str, point: Point | None, fault: Fault, expected: list[str]) -> Run:
    before = set(mounts())
    done = trace(watched(SCENARIOS[name]), prepared, point, fault)
    if done.said is not None:
        done.wrong += done.said["wrong"]
        got = done.said["walls"]
        if expected and got and got != expected:
            done.wrong.append(f"it ran without its walls: {sorted(set(got) ^ set(expected))}")
    if new := set(mounts()) - before:
        done.wrong.append(f"mounts left: {sorted(new)}")
    left = os.listdir(tempfile.gettempdir())
    if left:
        done.wrong.append(f"temporary files left: {left}")
        for entry in left:
            shutil.rmtree(os.path.join(tempfile.gettempdir(), entry))
    return done


def faults(kind: str) -> list[Fault]:
    if kind == "kill":
        return [Fault(signal=signal.SIGKILL)]
    if kind == "kill-init":
        return [Fault(signal=signal.SIGKILL, victim="host.1.1")]
    return [Fault(errno=getattr(errno, name)) for name in kind.split(",")]


def points(calls: dict[str, list[int]], wanted: list[Fault]) -> Iterator[tuple[Point, Fault, int]]:
    for place, numbers in calls.items():
        if wanted[0].victim and not place.startswith("host.2"):
            continue
        for number, call in enumerate(numbers):
            for fault in wanted:
                if may_fail(place, call, fault):
                    yield Point(place, number), fault, call


def main(name: str, kind: str, seed: int, count: int) -> None:
    global program
    become_subreaper()
    if kind.startswith("kill"):
        program = ["true"]
    SCENARIOS[name]()  # the sealed helper and what is imported late are there
    good = attempt(name, None, Fault(), [])
    assert good.said is not None, good
    assert not good.wrong, good.wrong
    expected = good.said["walls"]
    todo = list(points(good.calls, faults(kind)))
    if count:
        todo = random.Random(seed).sample(todo, min(count, len(todo)))  # noqa: S311  to be repeated, not secret
    tried = broken = errors = 0
    for point, fault, call in todo:
        done = attempt(name, point, fault, expected)
        tried += done.struck
        errors += bool(done.said and done.said["error"])
        if done.wrong:
            broken += 1
            said = {"place": point.place, "number": point.number, "call": call, "fault": str(fault)}
            print(json.dumps({**said, "error": done.said and done.said["error"], "wrong": done.wrong}), flush=True)
    print(json.dumps({"scenario": name, "fault": kind, "points": tried, "errors": errors, "broken": broken}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ck-sweep-") as tempfile.tempdir:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
