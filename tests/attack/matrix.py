"""The generated matrix: every touch point x every shape x standing still or changing x every operation.

One cell: a path that the library touches has a hostile shape, or is exchanged with one again and again, and an
operation goes past it. Afterwards the canary tree of the host must be what it was, and the host's mounts; the
operation has succeeded inside the root, or was refused with an error of ours; and it took no longer than it may.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import canary
import mountinfo
from attack import shapes
from attack.racer import Racer
from attack.subjects import STANDARD

from containerkit import (
    DEVNULL,
    Bind,
    ContainerkitError,
    File,
    IdMap,
    Limits,
    MountTree,
    Namespaces,
    OverlayFS,
    Process,
    Sandbox,
    Security,
    Tmpfs,
    run,
)

# ---- the axes --------------------------------------------------------------------------------------------------------

POINTS = (
    "proc", "proc/self", "proc/sys", "proc/kcore", "proc/kallsyms", "sys", "sys/fs/cgroup", "sys/devices",
    "dev", "dev/null", "dev/zero", "dev/full", "dev/random", "dev/urandom", "dev/tty", "dev/console", "dev/ptmx",
    "dev/pts", "dev/pts/ptmx", "dev/shm", "dev/mqueue", "dev/fd", "dev/stdin", "dev/stdout", "dev/stderr", "dev/core",
    "tmp", "run", "etc", "etc/passwd", "etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/localtime",
    "etc/mtab", "root", "home/user", "bin/entry", "data", "data/sub", "deep/er/place",
    "x" * 255, "\udcff\udcfe", "new\nline \x1b[31m", "-rf",
)  # fmt: skip
SHAPES = tuple(shapes.SHAPES) + (("mountpoint",) if os.geteuid() == 0 else ())
DYNAMICS = ("still", "racing")

# Where no two points differ for an operation but by their names.
FEW = ("proc", "dev", "dev/null", "tmp", "etc/passwd", "bin/entry", *POINTS[POINTS.index("data") :])

KERNELS_OWN = ("proc", "sys", "dev")
INSIDE, ESCAPED = 7, 9

# Write to the path and below it, and look for the host. Opening for both does not wait for a reader.
ATTACK = f"""
exec 2>&-
[ -e "$2/file" ] && exit {ESCAPED}
echo hit 1<>"$1"; echo hit 1<>"$1/new"; echo hit 1<>"$1/file"; echo hit 1<>"$1/below"
exit {INSIDE}
"""
LOOK = f'[ -e "$2/file" ] && exit {ESCAPED}; exit {INSIDE}'


@dataclass(frozen=True)
class Cell:
    operation: str
    point: str
    shape: str
    dynamics: str

    @property
    def makes_sense(self) -> bool:
        """What is absent cannot be exchanged, nor what is a mount point."""
        return self.dynamics == "still" or self.shape not in ("absent", "mountpoint")

    def __str__(self) -> str:
        return f"{self.operation} / {ascii(self.point)[1:-1][:40]} / {self.shape} / {self.dynamics}"


def every_cell() -> Iterator[Cell]:
    for name, operation in OPERATIONS.items():
        points = FEW if operation.few else POINTS
        cells = (Cell(name, *rest) for rest in itertools.product(points, SHAPES, DYNAMICS))
        yield from (cell for cell in cells if cell.makes_sense)


def pairwise() -> list[Cell]:
    """Cells in which every two values of two axes meet at least once (and every point meets every shape)."""
    names = list(OPERATIONS)
    cells = {}
    for (i, point), (j, shape) in itertools.product(enumerate(POINTS), enumerate(SHAPES)):
        k = (i + j) % len(names)
        turn = (i + j) // len(names) + i + j * (len(names) % 2)
        cells[Cell(names[k], point, shape, DYNAMICS[turn % 2])] = None
    return [cell for cell in cells if cell.makes_sense]


# ---- one cell --------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    inside: int = 0
    refused: int = 0
    exchanges: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, cell: Cell, outcome: str) -> None:
        if outcome == "inside":
            self.inside += 1
        elif outcome == "refused":
            self.refused += 1
        else:
            self.findings.append(f"{cell}: {outcome}")

    @property
    def cells(self) -> int:
        return self.inside + self.refused + len(self.findings)


class Arena:
    """Where cells are run, one after the other: a canary tree, a harmless root, a racer, a place for hostile ones."""

    def __init__(self, place: Path, busybox: Path) -> None:
        place.mkdir()
        self.place, self.busybox = place, busybox
        self.base = shapes.small_root(place / "base", busybox)
        (self.base / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\ndaemon:x:0:0::/:/bin/sh\n")
        self.sources = place / "sources"
        self.sources.mkdir()
        (self.sources / "file").touch()
        (self.sources / "directory").mkdir()
        self.used: list[Path] = []
        self.number = 0
        self.racer = Racer()
        self.plant()

    def plant(self) -> None:
        if (self.place / "canary").exists():
            shapes.remove(self.place / "canary")
        self.host = canary.plant(self.place / "canary")
        self.before = canary.fingerprint(self.host)

    def fresh(self, name: str) -> Path:
        """A place of its own for every cell."""
        self.number += 1
        self.used.append(self.place / f"{name}{self.number}")
        return self.used[-1]

    def sweep(self, at_most: int) -> None:
        """Delete what was used; some time after, when no dying mount namespace holds it any longer."""
        if len(self.used) > at_most:
            for tree in self.used:
                if tree.exists():
                    shapes.remove(tree)
            self.used.clear()

    def mounts(self) -> list[str]:
        """Those of this mount namespace that are not another arena's affair."""
        others = str(self.place.parent / "arena")
        mine = str(self.place)
        return [line for line in mountinfo.ours().splitlines() if others not in line or mine in line]

    def close(self) -> None:
        self.racer.close()
        self.sweep(0)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, cells: Iterator[Cell], tally: Tally) -> None:
        for cell in cells:
            self._one(cell, tally)
            self.sweep(128)

    def _one(self, cell: Cell, tally: Tally) -> None:
        attempt = Attempt(self, cell)
        begin = time.monotonic()
        try:
            outcome = attempt.run()
        except Exception as error:
            outcome = f"an error that is not ours: {error!r}"
        outcome = outcome if time.monotonic() - begin < 8 else f"a hang of {time.monotonic() - begin:.0f} s"
        if canary.fingerprint(self.host) != self.before:
            outcome = "the host was changed"
            self.plant()
        attempt.clean()
        tally.add(cell, outcome)


def run_cells(place: Path, busybox: Path, cells: Iterable[Cell], threads: int) -> Tally:
    """All of them, in arenas side by side: a start is mostly waiting."""
    tally, shared = Tally(), Shared(cells)

    def work(number: int) -> None:
        with Arena(place / f"arena{number}", busybox) as arena:
            arena.run(iter(shared), tally)
            tally.exchanges += arena.racer.exchanges

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, number) for number in range(threads)]:
            done.result()
    return tally


class Shared:
    """An iterator that several threads draw from."""

    def __init__(self, items: Iterable[Cell]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Cell]:
        return self

    def __next__(self) -> Cell:
        with self._lock:
            return next(self._items)


class Attempt:
    """One cell as it is run: the root with its hostile path."""

    def __init__(self, arena: Arena, cell: Cell) -> None:
        self.arena, self.cell, self.host = arena, cell, arena.host
        self.operation = OPERATIONS[cell.operation]
        self.root = shapes.small_root(arena.fresh("root"), arena.busybox)
        (self.root / "etc/passwd").write_bytes((arena.base / "etc/passwd").read_bytes())
        self.volume = arena.fresh("volume")
        self.volume.mkdir()
        self.at = (self.volume if self.operation.in_volume else self.root) / cell.point
        self.other = self.at.with_name(".other")
        script = LOOK if cell.shape == shapes.HARD_LINK else ATTACK
        seen = f"/v/{cell.point}" if self.operation.in_volume else f"/{cell.point}"
        self.args = ["/bin/sh", "-c", script, "sh", os.fsencode(seen), str(self.host)]
        self._mounted = False

    def spoil(self) -> None:
        """Give the path its shape; what was there gives way."""
        at = self.at if self.cell.dynamics == "still" else self.other
        at.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(at):
            shapes.remove(at) if at.is_dir() and not at.is_symlink() else at.unlink()
        if self.cell.shape == "mountpoint":
            at.mkdir()
            mount_tmpfs(at)
            self._mounted = True
        else:
            shapes.SHAPES[self.cell.shape](at, self.host)
        if self.cell.dynamics == "racing" and not os.path.lexists(self.at):
            self.at.touch() if self.operation.wants == "file" else self.at.mkdir()

    def racing(self) -> Any:
        if self.cell.dynamics == "racing":
            return self.arena.racer.swapping(self.at, self.other)
        return nullcontext()

    def run(self) -> str:
        if not self.operation.live:
            self.spoil()
        mounts = self.arena.mounts()
        outcome = "inside"
        for _ in range(1 if self.cell.dynamics == "still" or self.operation.live else 2):
            try:
                if self.operation.live:
                    status = self.operation.act(self)
                else:
                    with self.racing():
                        status = self.operation.act(self)
            except ContainerkitError:
                outcome = "refused"
                continue
            if status != INSIDE and self.cell.operation != "program":
                return f"exit status {status}"
        if self._mounted and self.operation.live:
            return outcome
        if self.arena.mounts() != mounts:
            return "a mount of the host has changed"
        if self.cell.dynamics == "still":
            if outcome == "refused" and self._is_harmless():
                return "a harmless path was refused"
            if outcome == "inside" and self._is_a_lie():
                return "a link in place of a kernel file system was followed"
        return outcome

    def _is_harmless(self) -> bool:
        shape, point, operation = self.cell.shape, self.cell.point, self.operation
        ordinary = point.split("/")[0] not in (*KERNELS_OWN, "bin", "etc", "tmp")  # /tmp is a tmpfs of ours by then
        return ordinary and shape in operation.harmless

    def _is_a_lie(self) -> bool:
        link = "link" in self.cell.shape and "hard" not in self.cell.shape and "below" not in self.cell.shape
        return self.cell.point in KERNELS_OWN and link and self.operation.starts_in_root

    def clean(self) -> None:
        if self._mounted:
            for at in (self.at, self.other):
                with suppress(OSError):
                    unmount(at)


libc = ctypes.CDLL(None, use_errno=True)


def mount_tmpfs(at: Path) -> None:
    if libc.mount(b"tmpfs", os.fsencode(at), b"tmpfs", 0, b"size=64k"):
        raise OSError(ctypes.get_errno(), "mount")


def unmount(at: Path) -> None:
    if libc.umount2(os.fsencode(at), 2):
        raise OSError(ctypes.get_errno(), "umount2")


# ---- the operations --------------------------------------------------------------------------------------------------

ROOM = frozenset({"absent", "directory", "setgid directory"})


@dataclass(frozen=True)
class Operation:
    act: Callable[[Attempt], int]
    harmless: frozenset[str] = ROOM
    wants: str = "directory"
    in_volume: bool = False
    few: bool = False
    live: bool = False  # the path becomes hostile when the sandbox is there already
    starts_in_root: bool = True


def in_root(attempt: Attempt, *mounts: Any, args: Any = None, root: Any = None, **options: Any) -> int:
    """In the very root, with everything that a sandbox has but an overlay over it."""
    streams: dict[str, Any] = {} if "tty" in options else {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL}
    with Process(
        args or attempt.args,
        root=root or attempt.root,
        namespaces=Namespaces.all(),
        mounts=(*STANDARD, *mounts),
        security=Security.strict(),
        start_timeout=9,
        **streams,
        **options,
    ) as process:
        return process.wait(timeout=9)


def in_overlay(attempt: Attempt, rootfs: Any, **options: Any) -> int:
    return run(attempt.args, rootfs=rootfs, timeout=9, start_timeout=9, **options).returncode


def in_upper(attempt: Attempt) -> int:
    """An upper layer that somebody else has filled."""
    work = attempt.arena.fresh("work")
    work.mkdir()
    return in_overlay(attempt, OverlayFS(attempt.arena.base, upper=attempt.root, work=work))


def joined(attempt: Attempt, rootfs: Any, *mounts: Any, cwd: str | None = None, **options: Any) -> int:
    """A sandbox is set up, its path then becomes hostile, and a program joins."""
    with Sandbox(rootfs=rootfs, mounts=mounts, start_timeout=9, **options) as box:
        attempt.spoil()
        with attempt.racing():
            return box.run(attempt.args, timeout=9, start_timeout=9, cwd=cwd).returncode


def joined_tree(attempt: Attempt) -> int:
    if os.geteuid():
        return joined(attempt, attempt.root)  # a tree takes privilege to make
    with MountTree.clone(attempt.root) as tree:
        return joined(attempt, tree, idmap=IdMap.identity(), limits=Limits(pids_max=None))


def joined_volume(attempt: Attempt) -> int:
    at = b"/v/" + os.fsencode(attempt.cell.point)
    return joined(attempt, attempt.arena.base, Bind(attempt.volume, "/v", read_only=False), cwd=os.fsdecode(at))


def target(attempt: Attempt, prefix: str = "/", suffix: str = "") -> str:
    return f"{prefix}{attempt.cell.point}{suffix}"


def shared(attempt: Attempt) -> Bind:
    return Bind(attempt.volume, "/v", read_only=False)


FILE = frozenset({"absent", "file"})
NOTHING: frozenset[str] = frozenset()

OPERATIONS: dict[str, Operation] = {
    "run": Operation(lambda a: in_overlay(a, a.root)),
    "process": Operation(lambda a: in_root(a)),
    "terminal": Operation(lambda a: in_root(a, tty=True), few=True),
    "lower layer": Operation(lambda a: in_overlay(a, OverlayFS([a.root, a.arena.base]))),
    "upper layer": Operation(in_upper),
    "join": Operation(joined_tree, live=True, harmless=NOTHING, starts_in_root=False),
    "join in a volume": Operation(
        joined_volume, live=True, in_volume=True, few=True, harmless=ROOM - {"absent"}, starts_in_root=False
    ),
    "tmpfs": Operation(lambda a: in_root(a, Tmpfs(target(a)))),
    "tmpfs below": Operation(lambda a: in_root(a, Tmpfs(target(a, suffix="/x/y")))),
    "bind directory": Operation(lambda a: in_root(a, Bind(a.arena.sources / "directory", target(a)))),
    "bind file": Operation(lambda a: in_root(a, Bind(a.arena.sources / "file", target(a))), FILE, "file"),
    "placed file": Operation(lambda a: in_root(a, File(target(a), "ours")), FILE, "file"),
    "placed file below": Operation(lambda a: in_root(a, File(target(a, suffix="/x"), "ours"))),
    "tmpfs in a volume": Operation(
        lambda a: in_root(a, shared(a), Tmpfs(target(a, "/v/")), root=a.arena.base),
        in_volume=True, few=True, starts_in_root=False,
    ),
    "placed file in a volume": Operation(
        lambda a: in_root(a, shared(a), File(target(a, "/v/", "/x"), "ours"), root=a.arena.base),
        in_volume=True, few=True, starts_in_root=False,
    ),
    "working directory": Operation(lambda a: in_root(a, cwd=target(a)), ROOM - {"absent"}, few=True),
    "program": Operation(lambda a: in_root(a, args=[target(a), "-c", "exit 7"]), NOTHING, "file", few=True),
    "user": Operation(lambda a: in_root(a, user="daemon"), NOTHING, few=True),
    "root directory": Operation(lambda a: in_overlay(a, a.at), NOTHING, few=True, starts_in_root=False),
    "source of a bind": Operation(
        lambda a: in_root(a, Bind(a.at, "/x"), root=a.arena.base), NOTHING, few=True, starts_in_root=False
    ),
}  # fmt: skip
