"""The matrix of paths, sampled so that every two values meet; the whole of it is for `make attack-full`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import canary
import pytest
from attack import shapes
from attack.matrix import OPERATIONS, POINTS, SHAPES, Arena, Cell, Tally, every_cell, pairwise, run_cells
from attack.subjects import Breach, naive_container

Record = Callable[[str, object], None]
PARTS = 19  # has no factor in common with an axis: every part has something of everything
ROWS = ("A01", "A04", "A05", "A07", "A08", "A11", "A12", "B01")


RunCells = Callable[[Iterable[Cell]], Tally]


@pytest.fixture
def run_all(tmp_path: Path, busybox_root: Path, record_property: Record) -> RunCells:
    def run_all(cells: Iterable[Cell]) -> Tally:
        tally = run_cells(tmp_path, busybox_root / "bin/busybox", cells, threads=6)
        report(tally, record_property)
        return tally

    return run_all


def report(tally: Tally, record: Record) -> None:
    for name, value in (
        ("trials", tally.cells),
        ("inside", tally.inside),
        ("refused", tally.refused),
        ("exchanges", tally.exchanges),
        ("findings", len(tally.findings)),
    ):
        record(name, value)
    assert tally.findings == [], "\n".join(tally.findings[:50])


@pytest.mark.both
@pytest.mark.timeout(240)
@pytest.mark.attack(*ROWS, control="test_the_naive_container_is_hit")
@pytest.mark.parametrize("part", range(4))
def test_where_every_two_values_meet_nothing_of_the_host_changes(run_all: RunCells, part: int) -> None:
    tally = run_all(pairwise()[part::4])
    assert tally.inside
    assert tally.refused


@pytest.mark.slow
@pytest.mark.both
@pytest.mark.timeout(3600)
@pytest.mark.attack(*ROWS, control="test_the_naive_container_is_hit")
@pytest.mark.parametrize("part", range(PARTS))
def test_in_every_cell_nothing_of_the_host_changes(run_all: RunCells, part: int) -> None:
    run_all(itertools.islice(every_cell(), part, None, PARTS))


def test_the_sample_has_every_pair() -> None:
    cells = pairwise()
    axes = [tuple(OPERATIONS), POINTS, SHAPES, ("still", "racing")]
    values = [(cell.operation, cell.point, cell.shape, cell.dynamics) for cell in cells]
    for first, second in itertools.combinations(range(4), 2):
        met = {(value[first], value[second]) for value in values}
        possible = set(itertools.product(axes[first], axes[second]))
        possible -= {("absent", "racing"), ("mountpoint", "racing")}
        missing = possible - met
        assert len(missing) <= len(possible) // 20, (first, second, sorted(missing)[:10])


@pytest.fixture
def arena(tmp_path: Path, busybox_root: Path) -> Iterator[Arena]:
    with Arena(tmp_path / "arena", busybox_root / "bin/busybox") as made:
        yield made


# ---- the control -----------------------------------------------------------------------------------------------------


def naive_cell(arena: Arena, cell: Cell) -> bool:
    """The same path and shape for the naive container; whether the host was changed, or the start hung."""
    root = shapes.small_root(arena.place / "naive", arena.busybox)
    at = root / cell.point
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.exists():
        at.unlink()
    shapes.SHAPES[cell.shape](at, arena.host)
    point = f"/{cell.point}"
    options = {
        "process": {},
        "tmpfs below": {"tmpfs": [f"{point}/x"]},
        "placed file": {"files": {point: "ours"}},
        "placed file below": {"files": {f"{point}/x": "ours"}},
        "working directory": {"cwd": f"{point}/x"},
        "user": {"user": "daemon"},
    }[cell.operation]
    try:
        naive_container(root, "/bin/sh", "-c", "exit 7", timeout=3, **options)
    except Breach:
        return True
    finally:
        shapes.remove(root)
    if canary.fingerprint(arena.host) != arena.before:
        arena.plant()
        return True
    return False


NAIVE_OPERATIONS = ("process", "tmpfs below", "placed file", "placed file below", "working directory", "user")


def naive_cells(points: tuple[str, ...]) -> list[Cell]:
    left_out = ("mountpoint", "link to itself", "socket", "fifo")  # the twin fails there, or waits, by itself
    hostile = [shape for shape in SHAPES if shape not in left_out and "link" in shape]
    return [
        Cell(*values, "still") for values in itertools.product(NAIVE_OPERATIONS, points, hostile) if values[1].isascii()
    ]


@pytest.mark.both
@pytest.mark.attack(*ROWS, control="is the control")
def test_the_naive_container_is_hit(arena: Arena, record_property: Record) -> None:
    cells = naive_cells(("dev", "data"))[::5]
    hits = sum(naive_cell(arena, cell) for cell in cells)
    record_property("trials", len(cells))
    record_property("hits", hits)
    assert hits > len(cells) // 10


@pytest.mark.slow
@pytest.mark.both
@pytest.mark.timeout(3600)
@pytest.mark.attack(*ROWS, control="is the control")
def test_the_naive_container_is_hit_on_every_kind_of_point(arena: Arena, record_property: Record) -> None:
    cells = naive_cells(("dev", "dev/pts", "dev/null", "data", "etc/hosts", "tmp", "deep/er/place"))
    hits = sum(naive_cell(arena, cell) for cell in cells)
    record_property("trials", len(cells))
    record_property("hits", hits)
    assert hits > len(cells) // 10
