"""What attack tests share: roots to spoil, and a tree of the host to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mountinfo
import pytest
from attack import shapes
from attack.subjects import Watched


@pytest.fixture
def host(tmp_path: Path) -> Watched:
    """A tree outside of every root, ``host.check()`` says whether it is still the same."""
    return Watched(tmp_path / "canary")


@pytest.fixture
def make_root(busybox_root: Path, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Makes a new small root at each call; all are gone in the end."""
    made: list[Path] = []

    def make() -> Path:
        made.append(shapes.small_root(tmp_path / f"root{len(made)}", busybox_root / "bin/busybox"))
        return made[-1]

    before = mountinfo.ours()
    yield make
    for root in made:
        shapes.remove(root)
    assert mountinfo.ours() == before


@pytest.fixture
def root(make_root: Callable[[], Path]) -> Path:
    return make_root()


@pytest.fixture
def trials(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Says how many attempts a test stands for."""
    return lambda number: record_property("trials", number)
