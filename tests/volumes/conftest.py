"""A store of one's own, and images in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerkit.store import Store

sys.path.append(str(Path(__file__).parent.parent / "storage"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened
