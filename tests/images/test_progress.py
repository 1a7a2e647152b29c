"""Progress as a stream for asyncio, and as bars."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import archive, entry
from made_images import MadeImage
from rich.console import Console

from containerkit.errors import ImageNotFound
from containerkit.images.aio import Images
from containerkit.images.archive_writing import Saved, write_images
from containerkit.images.bars import Bars
from containerkit.images.progress import Progress
from containerkit.images.reference import Reference
from containerkit.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def made(tmp_path: Path) -> MadeImage:
    layers = [archive([entry("d/"), entry(f"d/{number}", os.urandom(100_000))]) for number in range(3)]
    image = MadeImage(layers)
    saved = Saved(image.manifest, image.config, [Reference.parse("made:1")])
    write_images([saved], tmp_path / "in.tar", "oci-archive", image.open)
    return image


def test_progress_is_a_stream(store: Store, made: MadeImage, tmp_path: Path) -> None:
    async def load() -> tuple[list[Progress], str]:
        loading = Images(store).load(tmp_path / "in.tar")
        told = [progress async for progress in loading]
        [image] = await loading
        return told, image.id

    told, found = asyncio.run(load())
    assert found == made.config.id
    assert {progress.digest for progress in told if progress.phase == "done"} == {
        layer.digest for layer in made.manifest.layers
    }


def test_an_error_is_raised_where_it_is_awaited(store: Store, made: MadeImage, tmp_path: Path) -> None:
    async def load() -> None:
        await Images(store).load(tmp_path / "in.tar", platform="linux/riscv64")

    with pytest.raises(ImageNotFound):
        asyncio.run(load())


def test_an_error_is_raised_where_it_is_followed(store: Store, made: MadeImage, tmp_path: Path) -> None:
    async def load() -> None:
        async for _ in Images(store).load(tmp_path / "in.tar", platform="linux/riscv64"):
            pass

    with pytest.raises(ImageNotFound):
        asyncio.run(load())


def test_who_stops_following_stops_the_work(store: Store, made: MadeImage, tmp_path: Path) -> None:
    async def load() -> None:
        stream = Images(store).load(tmp_path / "in.tar", parallel=1).__aiter__()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(load())
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ck-images")] == []
    assert os.listdir(Path(store.path) / "staging") == []


def test_a_cancelled_load_has_ended_when_the_cancellation_goes_on(
    store: Store, made: MadeImage, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    data = (tmp_path / "in.tar").read_bytes()

    pipe = open(reader, "rb", 0)  # noqa: SIM115  closed below

    async def load() -> None:
        task = asyncio.ensure_future(_awaited(Images(store).load(pipe)))
        await asyncio.sleep(0.1)
        task.cancel()
        threading.Timer(0.1, _finish, (writer, data)).start()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pipe:
        asyncio.run(load())
    assert store.images.list() == []
    assert os.listdir(Path(store.path) / "staging") == []


async def _awaited(running: object) -> object:
    return await running  # type: ignore[misc]


def _finish(writer: int, data: bytes) -> None:
    with open(writer, "wb") as pipe:
        pipe.write(data)


def test_bars_show_each_layer(store: Store, made: MadeImage, tmp_path: Path) -> None:
    out = io.StringIO()
    with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
        store.images.load(tmp_path / "in.tar", progress=bars)
    for layer in made.manifest.layers:
        assert layer.digest.short in out.getvalue()
    assert "done" in out.getvalue()
