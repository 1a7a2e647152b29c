"""The leak oracle: what a test has changed on the machine, as its process sees it.

A snapshot is a set of items for each kind of thing. A test leaks what is new after it; it also must not have
closed a descriptor that it had not opened. Others change the same machine at the same time, so a snapshot has
what is ours: descriptors, threads and children, orphans of our session, names that carry our pid or lie in
our folders. Mounts and an orphaned ck-init show no owner: what another test worker, or another program in our
mount namespace, keeps for longer than GRACE is taken for ours. So `make test` makes a mount namespace first.

A namespace needs no kind of its own: it lives by a process, a descriptor or a mount, and all are looked at.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from patience import PATIENCE

# How long asynchronous teardown may take: a killed process, a dying namespace.
GRACE = 2.0 * PATIENCE

Snapshot = dict[str, "frozenset[str | Task]"]


# ---- what there is -----------------------------------------------------------------------------------------


def descriptors() -> Iterator[str]:
    # Made once and kept for the life of the process: the sealed copy of ck-init, and a pidfd of this process.
    # One of each, not two.
    kept: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists the directory
            target = os.readlink(f"/proc/self/fd/{number}")
            kind = "helper" if is_helper(target) else "owner" if is_pidfd_of_ourselves(number, target) else None
            if kind and kind not in kept:
                kept.add(kind)
            elif not target.startswith(f"/proc/{os.getpid()}/fd"):
                yield f"{number} -> {target}"


def is_pidfd_of_ourselves(number: str, target: str) -> bool:
    if "pidfd" not in target:
        return False
    with open(f"/proc/self/fdinfo/{number}") as file:
        return f"Pid:\t{os.getpid()}\n" in file.read()


def is_helper(executable: str) -> bool:
    return os.path.basename(executable).removesuffix(" (deleted)") in ("ck-init", "memfd:ck-init", "ck-monitor")


@dataclass(frozen=True)
class Task:
    """A process or thread, from its ``stat`` file (proc(5)). Its number and start time are what it is."""

    pid: int
    started: int
    name: str = field(compare=False)
    state: str = field(compare=False)
    parent: int = field(compare=False)
    session: int = field(compare=False)

    def __str__(self) -> str:
        return f"{self.pid} ({self.name}){' zombie' if self.state == 'Z' else ''}"


def tasks(directory: str) -> Iterator[Task]:
    for entry in filter(str.isdecimal, os.listdir(directory)):
        with suppress(FileNotFoundError, ProcessLookupError), open(f"{directory}/{entry}/stat", "rb") as file:
            # A name may contain anything: brackets, and half a character.
            head, _, tail = file.read().decode(errors="replace").rpartition(")")
            name, rest = head.partition("(")[2], tail.split()
            yield Task(int(entry), int(rest[19]), name, rest[0], int(rest[1]), int(rest[3]))


def children(running: Sequence[Task]) -> Iterator[Task]:
    """Ours, dead ones that nobody waited for too."""
    return (task for task in running if task.parent == os.getpid())


def orphans(running: Sequence[Task]) -> Iterator[Task]:
    """Processes whose parent went away, and that are of our session, or a ck-init in our mount namespace."""
    session = os.getsid(0)
    adopters = {1} | {task.pid for task in running if task.name == "systemd"}
    for task in running:
        if task.parent in adopters and (task.session == session or is_our_helper(task.pid)):
            yield task


def is_our_helper(pid: int) -> bool:
    try:
        ours = os.path.samefile(f"/proc/{pid}/ns/mnt", "/proc/self/ns/mnt")
        return ours and is_helper(os.readlink(f"/proc/{pid}/exe")) and not any(is_foreign(path) for path in opened(pid))
    except OSError:  # it has ended, is a kernel thread, or is another user's
        return False


def opened(pid: int) -> Iterator[str]:
    """Where the files lie that a process has open: a monitor has the directory of its container."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        yield os.readlink(f"/proc/{pid}/fd/{name}")


def mounts() -> Iterator[str]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        yield from (line.rstrip("\n") for line in file if not is_foreign(line.split()[4]))


def is_foreign(path: str) -> bool:
    """Whether a path lies in the folder of another test worker, or is the disk of a search of stores."""
    if "/ck-store-" in path and not path.startswith(tempfile.gettempdir() + "/"):
        return True
    worker = re.search(r"/(?:popen-)?(gw\d+)(?:/|$)", path)
    return worker is not None and worker[1] != os.environ.get("PYTEST_XDIST_WORKER")


def cgroups() -> Iterator[str]:
    """Those named after us, in every hierarchy."""
    ours = re.compile(rf"ck-{os.getpid()}(?!\d)")
    for path, names, _ in os.walk("/sys/fs/cgroup"):
        yield from (os.path.join(path, name) for name in names if ours.match(name))


def links() -> Iterator[str]:
    """Those with a name of ours: container engines add and remove theirs as they like."""
    return (name for _, name in socket.if_nameindex() if name.startswith("ck"))


def files_below(root: str) -> Iterator[str]:
    for path, names, files in os.walk(root):
        yield from (os.path.join(path, name) for name in names + files)


def runtime_files() -> Iterator[str]:
    """What containerkit keeps until the next boot, but for the file on which sandboxes lock their id ranges."""
    parent = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "/run")
    for path in files_below(f"{parent}/containerkit"):
        if os.path.basename(path) != "id-ranges":
            yield path


def snapshot() -> Snapshot:
    running = list(tasks("/proc"))
    return {
        "descriptor": frozenset(descriptors()),
        "thread": frozenset(tasks("/proc/self/task")),
        "child": frozenset(children(running)),
        "orphan": frozenset(orphans(running)),
        "mount": frozenset(mounts()),
        "cgroup": frozenset(cgroups()),
        "network link": frozenset(links()),
        "runtime file": frozenset(runtime_files()),
        "temporary file": frozenset(files_below(tempfile.gettempdir())),
    }


# ---- what has changed --------------------------------------------------------------------------------------


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for each thing that is left over, or that was closed by somebody who did not open it."""
    left = [f"{kind} left: {item}" for kind in after for item in sorted(after[kind] - before[kind], key=str)]
    lost = before["descriptor"] - after["descriptor"]
    return left + [f"descriptor closed that was not its own: {item}" for item in sorted(lost, key=str)]


def leaks_since(before: Snapshot, grace: float | None = None) -> list[str]:
    """The difference to now, once what ends by itself has had the time to end."""
    deadline = time.monotonic() + (GRACE if grace is None else grace)
    pause = 0.005
    while found := difference(before, snapshot()):
        if time.monotonic() > deadline:
            return found
        gc.collect()  # closes the handles in dead cycles, with a warning, which is a failure of its own
        time.sleep(pause)
        pause = min(pause * 2, 0.2)
    return []


# ---- the fixture -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test has a folder of its own for temporary files, and fails if it leaves something anywhere."""
    tmp_path_factory.getbasetemp()  # made on first use: it must not come to lie in the folder of one test
    directory = tempfile.mkdtemp(prefix="ck-test-")
    os.chmod(directory, 0o711)  # root in a user namespace has to pass through
    failures = request.session.testsfailed
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", directory)
            patch.setattr(tempfile, "tempdir", directory)
            before = snapshot()
            yield
            # The traceback of a failed test keeps its handles alive: one failure is enough.
            leaks = leaks_since(before) if request.session.testsfailed == failures else []
    finally:
        shutil.rmtree(directory)
    if leaks:
        pytest.fail("the test has left its mark on the machine:\n  " + "\n  ".join(leaks), pytrace=False)
