"""A blob that is read while it comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerkit.images.arrival import Arrival
from containerkit.images.descriptor import Descriptor
from containerkit.images.digest import Digest
from containerkit.storage.locks import try_lock
from containerkit.store import Store

pytestmark = pytest.mark.both


def test_who_still_reads_what_has_come_keeps_nobody_from_it(tmp_path: Path) -> None:
    """Two programs that pull the same waited for each other for ever: each for what the other one still had open."""
    content = b"content"
    digest = Digest.of(content)
    with Store(tmp_path / "store") as store, store.lease() as lease:
        arrival = Arrival(Descriptor("application/octet-stream", digest, len(content)), lambda: None)
        ingest = store.blobs.ingest(digest, len(content), lease)
        arrival.begin(ingest.fileno(), 0)
        waiting = try_lock(store.home.directory("ingest"), digest.replace(":", "-"))
        assert waiting is None  # while it comes
        ingest.write(content)
        ingest.commit()
        try:
            found = try_lock(store.home.directory("blobs"), f"sha256/{digest.hex}")  # the same file, by its new name
            assert found is not None
            found.close()
        finally:
            arrival.close()
