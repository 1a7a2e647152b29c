"""What the tests of containers share: a store, an image, and the programs that lie beside them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_containers import busybox_image

from containerkit.images.image import Image
from containerkit.store import Store

sys.path.append(str(Path(__file__).parent))  # after tests/, whose conftest others import


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new one. Containers outlive their programs: what a test leaves running is ended here."""
    with Store(tmp_path / "store") as store:
        yield store
        for container in store.containers.list(all=True):
            container.remove(force=True)


@pytest.fixture
def image(store: Store) -> Image:
    return busybox_image(store)
