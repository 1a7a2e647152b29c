"""What must hold of containers whatever is killed at whatever moment, tried at every system call of their lives.

Run as a program of its own, as tests/faults/sweep.py is. Arguments: a scenario; "kill", or names of errnos separated by
commas; a seed; how many points to try (0: all). The points are those of the caller ("host") and of the monitor
("host.1.1"). Prints a line of JSON for each point after which something was wrong, and at the end how many were tried.

Wrong is: an error of another type than the library's; a process, a control group or a mount that is left when every
container has ended; a container whose state cannot be told; a second life that does not go as one without a fault does;
a directory or a row that is left when all are removed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults.tracer import Fault, Point, become_subreaper, mark, trace
from leaks import mounts
from made_containers import busybox_image

import containerkit as ck
from containerkit.containers.container import Container
from containerkit.store import Store

FUTEX = 202  # x86-64; the C library ends a program whose futex(2) fails

SCRIPT = ["sh", "-c", "echo word; sleep 0.1; exit 3"]
NAME = "swept"


def create(store: Store, health: ck.Health | None = None) -> Container:
    if NAME in store.containers:
        return store.containers.get(NAME)
    limits = ck.Limits(memory_max="64M") if os.geteuid() == 0 else ck.Limits()
    return store.containers.create("test:1", SCRIPT, name=NAME, limits=limits, health=health)


def life(store: Store) -> None:
    """From the beginning to the end; what was begun by one who was killed is taken up."""
    container = create(store)
    container.start()
    container.wait(10)
    container.remove()


def ended(store: Store) -> None:
    container = create(store)
    container.start()
    container.stop(timeout=1)
    container.remove(force=True)


def again(store: Store) -> None:
    container = create(store)
    container.start()
    container.restart(timeout=1)
    container.wait(10)
    container.remove()


def joined(store: Store) -> None:
    container = create(store)
    container.start()
    with suppress(ck.WrongState):  # it has ended before
        container.run(["true"])
    container.wait(10)
    container.remove()


def tested(store: Store) -> None:
    """A health check is under way most of the time."""
    container = create(store, ck.Health(["true"], interval=0.001))
    container.start()
    container.wait(10)
    container.remove()


def naive(store: Store) -> None:
    """What is found here shows that the search finds: a program that nobody's monitor knows of."""
    child = subprocess.Popen(["sleep", "30"], start_new_session=True)
    child.kill()
    child.wait()


SCENARIOS: dict[str, Callable[[Store], None]] = {
    "life": life, "ended": ended, "again": again, "joined": joined, "tested": tested, "naive": naive,
}  # fmt: skip


def acting(act: Callable[[Store], None], path: Path) -> Callable[[], dict[str, Any]]:
    def scenario() -> dict[str, Any]:
        error = None
        with Store(path) as store:
            store.images.get("test:1")
            mark()
            try:
                act(store)
            except (ck.ContainerkitError, OSError, MemoryError):
                pass
            except BaseException as unexpected:
                error = f"{type(unexpected).__name__}: {unexpected}"
            mark()
        return {"error": error}

    return scenario


def groups(ids: set[str]) -> list[str]:
    """Those of these containers, in every hierarchy; others may run theirs at the same time."""
    names = {f"ck-{one[:24]}" for one in ids}
    return [os.path.join(path, name) for path, found, _ in os.walk("/sys/fs/cgroup") for name in names & set(found)]


def known_ids(path: Path) -> set[str]:
    events = path / "events/log"
    lines = events.read_text().splitlines() if events.exists() else []
    return {str(json.loads(line)["id"]) for line in lines} | set(os.listdir(path / "containers"))


def look(path: Path, act: Callable[[Store], None]) -> list[str]:
    """After the fault: whoever comes next finds all in order, and can do all of it."""
    wrong = []
    ids = known_ids(path)
    with Store(path) as store:
        for container in store.containers.list(all=True):
            said = container.status.status
            if said not in ("created", "running", "exited", "dead", "restarting"):
                wrong.append(f"it is {said}")
        try:
            act(store)
        except Exception as error:
            wrong.append(f"the second time: {type(error).__name__}: {error}")
        for container in store.containers.list(all=True):
            container.remove(force=True)
        store.collect()
        store.trash.wait()
        store.trash.empty_now()
        left = [name for place in ("containers", "trash") for name in os.listdir(path / place)]
        if left:
            wrong.append(f"directories left: {left}")
    ids |= known_ids(path)
    deadline = time.monotonic() + 2
    while (more := groups(ids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    if more:
        wrong.append(f"groups left: {sorted(more)}")
    return wrong


def attempt(name: str, base: Path, point: Point | None, fault: Fault) -> tuple[Any, list[str]]:
    work, act = base / "work", SCENARIOS[name]
    shutil.rmtree(work, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", base / "template", work], check=True)
    done = trace(acting(act, work), lambda: None, point, fault)
    wrong = [text for text in done.wrong if not text.startswith("the host ended")]
    if done.said and done.said["error"]:
        wrong.append(done.said["error"])
    wrong += look(work, act)
    if more := [mount for mount in mounts() if str(base) in mount]:  # others mount as well
        wrong.append(f"mounts left: {more}")
    return done, wrong


def main(name: str, kind: str, seed: int, count: int) -> None:
    become_subreaper()
    base = Path(tempfile.gettempdir())
    with Store(base / "template") as store:
        busybox_image(store)
    for _ in range(2):  # the first one loads modules
        done, wrong = attempt(name, base, None, Fault())
        assert not wrong, wrong
    wanted = (
        [Fault(signal=signal.SIGKILL)]
        if kind == "kill"
        else [Fault(errno=getattr(errno, one)) for one in kind.split(",")]
    )
    todo = [
        (Point(place, index), fault)
        for place, calls in done.calls.items()
        if place in ("host", "host.1", "host.1.1") or name == "naive"
        for index, call in enumerate(calls)
        for fault in wanted
        if fault.signal or call != FUTEX
    ]
    if count:
        todo = random.Random(seed).sample(todo, min(count, len(todo)))  # noqa: S311  to be repeated, not secret
    tried = broken = 0
    for point, fault in todo:
        done, wrong = attempt(name, base, point, fault)
        tried += done.struck
        if wrong:
            broken += 1
            said = {"place": point.place, "number": point.number, "fault": str(fault)}
            print(json.dumps({**said, "wrong": wrong}), flush=True)
    print(json.dumps({"scenario": name, "fault": kind, "points": tried, "broken": broken, "of": len(todo)}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ck-store-") as tempfile.tempdir:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
