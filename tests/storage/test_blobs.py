"""Blobs: how content comes in, and what of it is kept when it is not what it should be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import containerkit as ck
from containerkit.images.digest import Digest
from containerkit.store import Store

pytestmark = pytest.mark.both

DATA = bytes(range(256)) * 5000
DIGEST = Digest.of(DATA)


def read(store: Store, digest: Digest = DIGEST) -> bytes:
    with open(store.blobs.open(digest), "rb") as file:
        return file.read()


def test_content_comes_in_by_pieces_and_can_be_read_meanwhile(store: Store) -> None:
    with store.lease() as lease:
        with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            ingest.write(DATA[:1000])
            assert os.pread(ingest.fileno(), 2000, 0) == DATA[:1000]
            assert not store.blobs.has(DIGEST)
            ingest.write(memoryview(DATA)[1000:])
            ingest.commit()
        assert store.blobs.has(DIGEST)
        assert read(store) == DATA


def test_bytes_can_be_put_at_once_and_twice(store: Store) -> None:
    with store.lease() as lease:
        assert store.blobs.put(DATA, lease) == store.blobs.put(DATA, lease) == DIGEST
        assert store.blobs.put(b"", lease) == Digest.of(b"")
        assert (read(store), read(store, Digest.of(b""))) == (DATA, b"")


@pytest.mark.attack("E07", control="test_content_comes_in_by_pieces_and_can_be_read_meanwhile")
def test_another_digest_is_refused_and_nothing_is_kept(store: Store) -> None:
    with store.lease() as lease, store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
        ingest.write(bytes(len(DATA)))
        with pytest.raises(ck.ContentMismatch, match="digest"):
            ingest.commit()
    assert not store.blobs.has(DIGEST)
    assert os.listdir(f"{store.path}/ingest") == os.listdir(f"{store.path}/blobs/sha256") == []


@pytest.mark.attack("E07", control="test_content_comes_in_by_pieces_and_can_be_read_meanwhile")
def test_more_than_it_should_be_is_refused_before_it_is_written(store: Store) -> None:
    with store.lease() as lease, store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
        ingest.write(DATA)
        with pytest.raises(ck.ContentMismatch, match="goes on"):
            ingest.write(b"x")
    assert os.listdir(f"{store.path}/ingest") == []


@pytest.mark.attack("E07", control="test_content_comes_in_by_pieces_and_can_be_read_meanwhile")
def test_less_is_refused_and_kept_to_go_on_from(store: Store) -> None:
    with store.lease() as lease:
        with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            ingest.write(DATA[:-1])
            with pytest.raises(ck.ContentMismatch, match="ends after"):
                ingest.commit()
        with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            assert ingest.offset == len(DATA) - 1
            ingest.write(DATA[-1:])
            ingest.commit()
        assert read(store) == DATA


def test_a_kept_beginning_that_is_wrong_is_found_out_at_the_end(store: Store) -> None:
    with store.lease() as lease:
        with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            ingest.write(b"wrong")
        with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            ingest.write(DATA[ingest.offset :])
            with pytest.raises(ck.ContentMismatch):
                ingest.commit()
        with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            assert ingest.offset == 0


@pytest.mark.attack("E06", "E07", control="test_content_comes_in_by_pieces_and_can_be_read_meanwhile")
@pytest.mark.parametrize("text", ["sha256:../../../etc/passwd", "../x", "sha256:", "md5:aa", "sha256:a/b", ""])
def test_what_is_no_digest_names_no_file(store: Store, text: str) -> None:
    with store.lease() as lease, pytest.raises((ck.InvalidValue, ValueError)):
        store.blobs.ingest(text, 1, lease)
    with pytest.raises(ck.StoreError):
        store.blobs.open(text)


KILLED = """
import os, sys
from containerkit.images.digest import Digest
from containerkit.store import Store
store = Store(sys.argv[1])
data = bytes(range(256)) * 5000
ingest = store.blobs.ingest(Digest.of(data), len(data), store.lease())
ingest.write(data[:100_000])
os.kill(os.getpid(), 9)
"""


def test_a_download_goes_on_where_a_killed_program_stopped(store: Store) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, store.path], check=False).returncode == -9
    store.collect()
    with store.lease() as lease, store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
        assert ingest.offset == 100_000
        ingest.write(DATA[100_000:])
        ingest.commit()
        assert read(store) == DATA


def test_old_partial_downloads_are_collected_and_those_under_way_are_not(store: Store) -> None:
    with store.lease() as lease:
        store.blobs.ingest(DIGEST, len(DATA), lease).abort()
        with store.blobs.ingest(Digest.of(b"x"), 1, lease):
            store.collect(partial=True)
            assert os.listdir(f"{store.path}/ingest") == [Digest.of(b"x").replace(":", "-")]
        os.utime(f"{store.path}/ingest/{Digest.of(b'x').replace(':', '-')}", (0, 0))
        store.collect()
    assert os.listdir(f"{store.path}/ingest") == []


def test_two_who_want_the_same_share_the_work(store: Store, path: Path) -> None:
    wrote = []

    def pull(number: int) -> bytes:
        with Store(path) as own, own.lease() as lease, own.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            if not ingest.present:
                wrote.append(number)
                ingest.write(DATA)
            assert ingest.offset == len(DATA)
            assert os.pread(ingest.fileno(), len(DATA), 0) == DATA
            ingest.commit()
            return read(own)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(pull, range(8))) == [DATA] * 8
    assert len(wrote) == 1 or not store.blobs.has(DIGEST)


def test_one_who_waits_goes_on_when_the_other_gives_up(store: Store) -> None:
    with store.lease() as lease:
        first = store.blobs.ingest(DIGEST, len(DATA), lease)
        first.write(DATA[:10])
        offsets = []

        def second() -> None:
            with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
                offsets.append(ingest.offset)

        thread = threading.Thread(target=second)
        thread.start()
        first.abort()
        thread.join()
        assert offsets == [10]


def test_a_whole_blob_without_its_row_is_taken_again_and_a_damaged_one_is_not(store: Store) -> None:
    place = Path(store.path, "blobs/sha256", DIGEST.hex)
    place.write_bytes(DATA)
    with store.lease() as lease:
        with store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
            assert ingest.present
        assert store.blobs.has(DIGEST)
    store.collect()
    place.write_bytes(DATA[:-1] + b"!")
    with store.lease() as lease, store.blobs.ingest(DIGEST, len(DATA), lease) as ingest:
        assert not ingest.present
        ingest.write(DATA)
        ingest.commit()
        assert read(store) == DATA


def test_what_no_image_needs_goes_with_its_lease(store: Store) -> None:
    with store.lease() as lease:
        store.blobs.put(DATA, lease)
        assert store.collect().blobs == 0
    assert store.collect().blobs == 1
    assert not store.blobs.has(DIGEST)
