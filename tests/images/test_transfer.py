"""An image coming in: in parallel, while it is received, continued after a break, and not at all when it is a lie."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import archive, entry
from made_images import MadeImage, two_layers
from plain_store import PlainBlobs, PlainLayers, PlainStore

from containerkit.errors import ContentMismatch, InvalidLayer, InvalidValue
from containerkit.images.descriptor import Descriptor
from containerkit.images.digest import Digest
from containerkit.images.manifest import Manifest
from containerkit.images.progress import Progress, Reporter
from containerkit.images.transfer import Transfer

pytestmark = pytest.mark.root


class FromMemory:
    """A source that a test can break: ``on_read`` is called with the digest before each piece."""

    def __init__(self, made: MadeImage, on_read: Callable[[Digest, int], None] | None = None) -> None:
        self.made, self.on_read = made, on_read
        self.asked: list[tuple[Digest, int]] = []

    def content(self, descriptor: Descriptor, offset: int = 0) -> Stream:
        self.asked.append((descriptor.digest, offset))
        return Stream(self, descriptor.digest, offset)


class Stream:
    def __init__(self, source: FromMemory, digest: Digest, at: int) -> None:
        self.source, self.digest, self.at = source, digest, at

    def read(self, n: int) -> bytes:
        if self.source.on_read is not None:
            self.source.on_read(self.digest, self.at)
        piece = self.source.made.blobs[self.digest][self.at : self.at + min(n, 1000)]
        self.at += len(piece)
        return piece


@pytest.fixture
def store(tmp_path: Path) -> PlainStore:
    return PlainStore(tmp_path / "store")


def take(
    store: PlainStore,
    made: MadeImage,
    source: FromMemory | None = None,
    tell: Callable[[Progress], object] | None = None,
    *,
    manifest: Manifest | None = None,
    parallel: int = 4,
) -> list[Path]:
    transfer = Transfer(PlainBlobs(store), PlainLayers(store), store.apply, None, Reporter(tell), parallel=parallel)
    keys = transfer.take(manifest or made.manifest, made.config, source or FromMemory(made))
    return [store.path(key) for key in keys]


def random_layers(count: int, size: int = 20_000) -> list[bytes]:
    return [archive([entry("d/"), entry(f"d/{number}", os.urandom(size))]) for number in range(count)]


def test_an_image_comes_in(store: PlainStore) -> None:
    made = two_layers()
    below, above = take(store, made)
    assert (below / "etc/below").read_text() == "below"
    assert (above / "etc/above").read_text() == "above"
    assert (above / "etc/below").is_char_device()
    assert all(
        store.blob(digest).exists() for digest in made.blobs if digest not in (made.manifest.digest, made.config.id)
    )
    assert store.left() == []


@pytest.mark.parametrize("parallel", [1, 4])
def test_many_layers_come_in_whatever_is_parallel(store: PlainStore, parallel: int) -> None:
    made = MadeImage(random_layers(12))
    paths = take(store, made, parallel=parallel)
    assert [os.listdir(path / "d") for path in paths] == [[str(number)] for number in range(12)]
    assert store.left() == []


def test_what_is_there_is_not_received_again(store: PlainStore) -> None:
    made = two_layers()
    first = take(store, made)
    source = FromMemory(made)
    told: list[Progress] = []
    assert take(store, made, source, told.append) == first
    assert source.asked == []
    assert {progress.phase for progress in told} == {"exists"}


def test_a_layer_is_unpacked_while_it_is_received(store: PlainStore) -> None:
    """The blob's last bytes come only when its first file has been made."""
    made = MadeImage([archive([entry("first", "1"), *(entry(f"f{n}", os.urandom(3000)) for n in range(2000))])])
    layer = made.manifest.layers[0]
    seen = []

    def on_read(digest: Digest, at: int) -> None:
        if digest == layer.digest and at > layer.size - 2000 and not seen:
            deadline = time.monotonic() + 20
            while not list(store.directory.glob("staging/*/upper/first")) and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.extend(store.directory.glob("staging/*/upper/first"))

    take(store, made, FromMemory(made, on_read))
    assert seen


def test_layers_are_received_at_the_same_time(store: PlainStore) -> None:
    made = MadeImage(random_layers(3))
    together = threading.Barrier(3, timeout=20)

    def on_read(digest: Digest, at: int) -> None:
        if at == 0:
            together.wait()

    take(store, made, FromMemory(made, on_read))


def test_what_broke_off_is_continued(store: PlainStore) -> None:
    made = MadeImage(random_layers(1))
    layer = made.manifest.layers[0]

    def break_off(digest: Digest, at: int) -> None:
        if digest == layer.digest and at >= 5000:
            raise ConnectionResetError("the registry is gone")

    with pytest.raises(ConnectionResetError):
        take(store, made, FromMemory(made, break_off))
    assert store.left() == [f"{layer.digest.hex}.part"]
    assert os.listdir(store.directory / "layers") == []
    source = FromMemory(made)
    take(store, made, source)
    assert (layer.digest, 5000) in source.asked
    assert store.left() == []


# ---- lies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["other", "short", "long"])
def test_a_blob_that_is_not_what_its_digest_says_leaves_nothing(store: PlainStore, lie: str) -> None:
    made = MadeImage(random_layers(2))
    digest = made.manifest.layers[1].digest
    data = made.blobs[digest]
    other = MadeImage(random_layers(1))
    lies = {"other": other.blobs[other.manifest.layers[0].digest], "short": data[:-100], "long": data + bytes(100)}
    made.blobs[digest] = lies[lie]
    with pytest.raises(ContentMismatch):
        take(store, made)
    assert not store.blob(digest).exists()
    assert not store.path(made.config.diff_ids[1]).exists()
    assert digest.hex + ".part" not in store.left()
    assert os.listdir(store.directory / "staging") == []


def test_a_layer_that_is_not_what_the_configuration_says_is_not_kept(store: PlainStore) -> None:
    made, other = MadeImage(random_layers(1)), MadeImage(random_layers(1))
    made.blobs |= other.blobs
    manifest = Manifest.make(made.manifest.config, other.manifest.layers)
    with pytest.raises(ContentMismatch, match=f"holds {other.config.diff_ids[0]}"):
        take(store, made, manifest=manifest)
    assert os.listdir(store.directory / "layers") == os.listdir(store.directory / "staging") == []


def test_another_number_of_layers_than_the_configuration_has_is_refused(store: PlainStore) -> None:
    made = two_layers()
    manifest = Manifest.make(made.manifest.config, made.manifest.layers[:1])
    with pytest.raises(InvalidValue, match="1 layers, the image's configuration 2"):
        take(store, made, manifest=manifest)


def test_a_layer_that_is_no_archive_is_refused(store: PlainStore) -> None:
    made = MadeImage([b"this is no archive" * 100])
    with pytest.raises(InvalidLayer):
        take(store, made)
    assert os.listdir(store.directory / "layers") == os.listdir(store.directory / "staging") == []


# ---- layers that need others -----------------------------------------------------------------------------------------


def test_a_layer_without_its_directories_gets_those_below(store: PlainStore) -> None:
    below = archive([entry("d/", mode=0o700, uid=7), entry("d/a", "a")])
    made = MadeImage([below, archive([entry("d/b", "b")])])
    _, above = take(store, made)
    status = (above / "d").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o700, 7)
    assert (above / "d/b").read_text() == "b"
    assert store.left() == []


def test_a_link_to_a_file_below_has_its_content(store: PlainStore) -> None:
    made = MadeImage([archive([entry("a", "content")]), archive([entry("b", "=a")])])
    _, above = take(store, made)
    assert (above / "b").read_text() == "content"


def test_a_whiteout_of_nothing_is_not_seen(store: PlainStore) -> None:
    made = MadeImage([archive([entry("d/")]), archive([entry("d/"), entry("d/.wh.ghost", ""), entry("d/x", "x")])])
    _, above = take(store, made)
    assert os.listdir(above / "d") == ["x"]


def test_a_layer_twice_in_an_image_is_one(store: PlainStore) -> None:
    layer = random_layers(1)[0]
    first, second = take(store, MadeImage([layer, layer]))
    assert first == second


# ---- progress --------------------------------------------------------------------------------------------------------


def test_progress_tells_of_each_layer_to_its_end(store: PlainStore) -> None:
    made = MadeImage(random_layers(3))
    told: list[Progress] = []
    take(store, made, tell=told.append)
    for layer in made.manifest.layers:
        mine = [progress for progress in told if progress.digest == layer.digest]
        assert mine[0] == Progress(layer.digest, "waiting", 0, layer.size)
        assert mine[-1] == Progress(layer.digest, "done", layer.size, layer.size)
        assert {"downloading", "verifying", "unpacking"} & {progress.phase for progress in mine}


def test_progress_is_at_most_twenty_times_a_second(store: PlainStore) -> None:
    made = MadeImage(random_layers(1, 600_000), compressed=False)
    told: list[Progress] = []
    begin = time.monotonic()
    take(store, made, tell=told.append)
    seconds = time.monotonic() - begin
    downloads = [progress for progress in told if progress.phase == "downloading"]
    assert len(downloads) <= 10 * seconds + 3  # of 600 pieces: the first, the last, and ten a second


def test_a_callback_that_raises_cancels_cleanly(store: PlainStore) -> None:
    made = MadeImage(random_layers(4))

    class Cancelled(Exception):
        pass

    def cancel(progress: Progress) -> None:
        if progress.phase == "unpacking":
            raise Cancelled

    with pytest.raises(Cancelled):
        take(store, made, tell=cancel)
    assert os.listdir(store.directory / "staging") == []  # a layer that was whole by then may stay
    assert [thread for thread in threading.enumerate() if thread.name.startswith("ck-")] == []
