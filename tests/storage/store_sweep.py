"""What must hold of a store whatever goes wrong at whatever moment, tried at every system call of what changes it.

Run as a program of its own, as tests/faults/sweep.py is. Arguments: a scenario; "kill", or names of errnos separated by
commas, or "cut" for the power, which needs root: the store is then on a file system of its own, that is shut down
without its journal (FS_IOC_SHUTDOWN); a seed; how many points to try (0: all). Prints a line of JSON for each point
after which something was wrong, and at the end how many were tried.

Wrong is: a store that cannot be opened, or in which fsck finds damage; an image that is not whole; a name that was
there before and after, and is not; an error of another type than the library's; a second run that does not come to
where one without a fault does; files that nothing needs after it.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults import tracer
from faults.tracer import Fault, Point, become_subreaper, mark, trace
from stored import made, put

import containerkit as ck
from containerkit.storage.home import Home
from containerkit.store import Store

State = dict[str, Any]

OLD, BARE, NEW = made("shared", "old"), made("bare"), made("shared", "new")


def template(path: Path) -> None:
    with Store(path) as store:
        put(store, OLD, "x")
        put(store, BARE)


def damaged(path: Path) -> None:
    """A lost tree, another content, a lease of a dead program, things that nobody knows."""
    template(path)
    with Store(path) as store:
        shutil.rmtree(Path(store.layers.path(OLD.config.diff_ids[0])).parent)
        (path / "blobs/sha256" / OLD.manifest.layers[1].digest.hex).write_bytes(b"wrong")
        lease = store.lease()
        store.blobs.put(b"not needed", lease)
        with store.database.write() as rows:
            rows.execute("INSERT INTO leases VALUES ('dead', 1, 0)")
            rows.execute("UPDATE blobs SET lease = 'dead' WHERE lease IS NOT NULL")
        lease.close()
    for name in ("staging/dead.x/d/deep", "layers/stranger/d", "trash/tree/d", "staging/stranger"):
        (path / name).mkdir(parents=True)
        (path / name / "file").write_text("left")
    (path / "blobs/sha256" / ("0" * 64)).write_text("left")


def nothing(path: Path) -> None:
    path.mkdir(0o700)


def create(store: Store) -> None:
    """Opening it was all."""


def add(store: Store) -> None:
    put(store, NEW, "x")


def change(store: Store) -> None:
    store.images.tag(OLD.config.id, "y")
    with suppress(ck.ImageNotFound):
        store.images.untag("y")
    with suppress(ck.ImageNotFound):
        store.images.remove(BARE.config.id)


def prune(store: Store) -> None:
    store.images.prune()
    store.collect(partial=True)


def fsck(store: Store) -> None:
    store.fsck(deep=True)


def with_container(path: Path) -> None:
    template(path)
    with Store(path) as store:
        contain(store)


def contain(store: Store) -> None:
    with suppress(ck.NameTaken):
        store.containers.create(OLD.config.id, ["true"], name="one", volumes=["data:/data", "/scratch"])


def discard(store: Store) -> None:
    with suppress(ck.ContainerNotFound):
        store.containers.get("one").remove(volumes=True)
    with suppress(ck.VolumeNotFound):
        store.volumes.remove("data")
    store.collect()


def naive(store: Store) -> None:
    """As it is done without a thought, files first; what is found here shows that the search finds."""
    with suppress(ck.StoreError):
        place = Path(store.layers.path(BARE.config.diff_ids[0])).parent
        store.trash.take(store.home.directory("layers"), place.name)
    with suppress(ck.ImageNotFound):
        store.images.remove(BARE.config.id)


SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Store], None]]] = {
    "create": (nothing, create),
    "add": (template, add),
    "change": (template, change),
    "prune": (template, prune),
    "fsck": (damaged, fsck),
    "contain": (template, contain),
    "discard": (with_container, discard),
    "naive": (template, naive),
    "hasty": (template, add),  # without the sync
}
LASTING = {"add": "x", "change": "x", "prune": "x", "fsck": "x", "contain": "x", "discard": "x"}
PARTS = ["log", "rw", "rw/upper", "rw/work"]


def acting(act: Callable[[Store], None], path: Path) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        mark()
        error = None
        try:
            with Store(path) as store:
                act(store)
        except (ck.ContainerkitError, OSError, MemoryError):
            pass
        except BaseException as caught:  # it is what we are here for
            error = f"{type(caught).__name__}: {caught}"
        mark()
        return {"error": error}

    return run


def state(path: Path) -> State:
    """What is in the store, and what is wrong with it, after repair."""
    with Store(path) as store:
        report = store.fsck(deep=True)
        found: State = {"wrong": [str(problem) for problem in report.problems]}
        found["images"] = {image.id: image.names for image in store.images.list()}
        for image in store.images.list():
            with image.hold() as held:
                names = [name for one in held.root.lower for name in os.listdir(f"{one}/d")]
            content = [Path(one, "d", name).read_text() for one in held.root.lower for name in os.listdir(f"{one}/d")]
            wanted = next(one for one in (OLD, BARE, NEW) if one.config.id == image.id)
            if set(content) != {"content"} or len(names) != len(wanted.layers):
                found["wrong"].append(f"{image} has {names}")
        found["files"] = {name: len(os.listdir(path / name)) for name in (
            "layers", "blobs/sha256", "staging", "ingest", "trash", "leases", "containers", "volumes")}  # fmt: skip
        found["containers"] = [one.name for one in store.containers.list(all=True)]
        for container in store.containers.list(all=True):
            missing = [part for part in PARTS if not (path / "containers" / container.id / part).is_dir()]
            missing += [mount for mount in container.spec.mounts if mount.volume not in store.volumes]
            if missing:
                found["wrong"].append(f"{container} has no {missing}")
        found["volumes"] = len(store.volumes.list())
        return found


def attempt(name: str, disk: Disk, point: Point | None, fault: Fault, good: State | None) -> tuple[Any, list[str]]:
    _, act = SCENARIOS[name]
    work = disk.fresh()
    done = trace(acting(act, work), lambda: None, point, fault)
    disk.again()
    wrong = [text for text in done.wrong if "hung" in text]
    if done.said and done.said["error"]:
        wrong.append(done.said["error"])
    after = state(work)
    if name != "fsck":
        wrong += after["wrong"]
    if name in LASTING and not any("docker.io/library/x:latest" in names for names in after["images"].values()):
        wrong.append(f"the name is gone: {after['images']}")
    with Store(work) as store:
        act(store)
    again = state(work)
    wrong += again["wrong"]
    if good is not None and again != good:
        wrong.append(f"it came to {again} instead of {good}")
    return done, wrong


class Disk:
    """Where the store is: a directory that is made anew for each attempt."""

    def __init__(self, prepare: Callable[[Path], None]) -> None:
        self.base = Path(tempfile.gettempdir())
        self.path = self.base / "work"
        prepare(self.base / "template")

    def fresh(self) -> Path:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.base / "template", self.path)
        self.path.chmod(0o700)
        return self.path

    def again(self) -> None:
        """After the fault."""


class Cut(Disk):
    """A file system of its own, whose power can be cut."""

    def __init__(self, prepare: Callable[[Path], None]) -> None:
        self.base = Path(tempfile.gettempdir())
        self.mount_point = self.base / "mount"
        self.mount_point.mkdir()
        self.path = self.mount_point / "store"
        with (self.base / "template").open("wb") as file:
            file.truncate(40 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.base / "template"], check=True)
        self.mount("template")
        prepare(self.path)
        subprocess.run(["umount", self.mount_point], check=True)
        tracer._Tracer.strike = lambda traced, pid, call: self.strike(traced, pid)  # type: ignore[method-assign]

    def mount(self, name: str) -> None:
        subprocess.run(["mount", "-o", "loop", self.base / name, self.mount_point], check=True)

    def fresh(self) -> Path:
        subprocess.run(["umount", self.mount_point], check=False, stderr=subprocess.DEVNULL)
        self.copy("template", "disk")
        self.mount("disk")
        return self.path

    def copy(self, source: str, target: str) -> None:
        """To another file each time: a mount namespace that somebody made meanwhile may keep the last one mounted for a
        moment. It would be mounted again as it is, without power, or be written to when it is let go."""
        (self.base / target).unlink(missing_ok=True)
        subprocess.run(["cp", "--sparse=always", self.base / source, self.base / target], check=True)

    def strike(self, traced: Any, pid: int) -> None:
        traced.run.struck = True
        fd = os.open(self.mount_point, os.O_RDONLY)
        fcntl.ioctl(fd, _IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        os.close(fd)
        os.kill(pid, signal.SIGKILL)

    def again(self) -> None:
        subprocess.run(["umount", self.mount_point], check=True)
        self.copy("disk", "cut")
        self.mount("cut")


_IOC_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2  # include/uapi/linux/fs.h


def main(name: str, kind: str, seed: int, count: int) -> None:
    become_subreaper()
    if name == "hasty":
        Home.sync = lambda self: None  # type: ignore[method-assign]
    strike = tracer._Tracer.strike

    def strike_what_may_fail(traced: Any, pid: int, call: int) -> None:
        """Threads come to a number in another order each time: it may be that of another call now."""
        if traced.fault.signal or call in MAY_FAIL:
            strike(traced, pid, call)

    tracer._Tracer.strike = strike_what_may_fail  # type: ignore[method-assign]
    disk = (Cut if kind == "cut" else Disk)(SCENARIOS[name][0])
    try:
        search(name, kind, seed, count, disk)
    finally:
        subprocess.run(["umount", disk.base / "mount"], check=False, stderr=subprocess.DEVNULL)


def search(name: str, kind: str, seed: int, count: int, disk: Disk) -> None:
    done, wrong = attempt(name, disk, None, Fault(), None)
    assert not wrong, wrong
    good = state(disk.path)
    wanted = (
        [Fault(signal=signal.SIGKILL)]
        if kind in ("kill", "cut")
        else [Fault(errno=number(one)) for one in kind.split(",")]
    )
    todo = [
        (Point(place, index), fault)
        for place, calls in done.calls.items()
        for index, call in enumerate(calls)
        for fault in wanted
        if fault.signal or call in MAY_FAIL
    ]
    if count:
        todo = random.Random(seed).sample(todo, min(count, len(todo)))  # noqa: S311  to be repeated, not secret
    tried = broken = 0
    for point, fault in todo:
        done, wrong = attempt(name, disk, point, fault, good)
        tried += done.struck
        if wrong:
            broken += 1
            said = {"place": point.place, "number": point.number, "fault": str(fault)}
            print(json.dumps({**said, "wrong": wrong}), flush=True)
    print(json.dumps({"scenario": name, "fault": kind, "points": tried, "broken": broken}))


def number(name: str) -> int:
    import errno

    return int(getattr(errno, name))


# Those that write (x86-64): write, fsync, fdatasync, ftruncate, fallocate, pwrite64, rename, mkdir and
# their *at, openat, unlinkat, mknodat, syncfs.
MAY_FAIL = {1, 18, 74, 75, 77, 82, 83, 87, 257, 258, 259, 263, 264, 285, 306, 316}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ck-store-") as tempfile.tempdir:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
