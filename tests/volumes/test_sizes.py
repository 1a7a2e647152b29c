"""Volumes of bounded size: file systems of their own, which are mounted while somebody needs them."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

import pytest
from archives import archive, entry
from made_images import MadeImage
from starts import wait_until
from stored import put

from containerkit import InvalidValue, NameTaken, Unsupported
from containerkit.containers.container import Container
from containerkit.store import Store
from containerkit.volumes import images
from containerkit.volumes.sweep import sweep_volumes

NAMES = ("sh", "cat", "ls", "echo", "dd", "rm", "stat", "df", "sleep")
LAYER = [
    "bin/", entry("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
    *(entry(f"bin/{name}", "@busybox") for name in NAMES),
    entry("data/", mode=0o2750), entry("data/kept", "kept\n"),
]  # fmt: skip


def loops() -> list[str]:
    """The files that loop devices have."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it goes at this moment
            found.append(path.read_text().strip())
    return found


def no_loop_of(store: Store) -> bool:
    return not [path for path in loops() if path.startswith(store.path)]


@pytest.fixture
def made(store: Store) -> None:
    put(store, MadeImage([archive(LAYER)]), "test:1")


def begun(store: Store, script: str, *volumes: str) -> Container:
    container = store.containers.create("test:1", ["sh", "-c", f"exec 2>&1\n{script}"], volumes=volumes)
    container.start()
    return container


def said(store: Store, script: str, *volumes: str) -> str:
    container = begun(store, script, *volumes)
    container.wait()
    text = "".join(f"{line.text}\n" for line in container.logs())
    container.remove()
    return text


@pytest.mark.root
def test_no_more_than_its_size_goes_into_a_volume(store: Store, made: None) -> None:
    volume = store.volumes.create("data", size="8M")
    assert volume.options == {"size": 8 << 20}
    text = said(
        store, "dd if=/dev/zero of=/v/big bs=1M count=100; rm /v/big; echo more > /v/file; cat /v/file", "data:/v"
    )
    assert "No space left on device" in text
    assert text.endswith("more\n")
    assert volume.usage().size < 1 << 20
    assert os.listdir(volume.path) == []
    wait_until(lambda: no_loop_of(store))


@pytest.mark.root
def test_two_containers_share_one_file_system(store: Store, made: None) -> None:
    store.volumes.create("data", size="8M")
    writer = begun(store, "echo here > /v/file; sleep 100", "data:/v")
    wait_until(lambda: said(store, "cat /v/file", "data:/v") == "here\n")
    assert len([path for path in loops() if path.startswith(store.path)]) == 1
    writer.remove(force=True)
    wait_until(lambda: no_loop_of(store))
    store.volumes.remove("data")


@pytest.mark.root
def test_it_is_filled_by_the_image_on_its_first_use(store: Store, made: None) -> None:
    store.volumes.create("data", size="8M")
    assert said(store, "ls /data; stat -c %a /data; rm /data/kept", "data:/data") == "kept\n2750\n"
    assert said(store, "ls /data", "data:/data") == ""


@pytest.mark.root
def test_it_is_copied_archived_and_restored(store: Store, made: None) -> None:
    volume = store.volumes.create("data", size="8M")
    said(store, "echo x > /v/file", "data:/v")
    clone = volume.clone("copy")
    assert clone.options == {"size": 8 << 20}
    out = io.BytesIO()
    clone.backup(out)
    again = store.volumes.create("again", size="8M")
    out.seek(0)
    again.restore(out)
    assert said(store, "cat /v/file", "again:/v") == "x\n"
    assert sweep_volumes(store) == 0
    assert {len(os.listdir(os.path.dirname(each.path))) for each in (volume, clone, again)} == {2}
    big = io.BytesIO(archive([entry("big", b"x" * (12 << 20))]))
    small = store.volumes.create("small", size="8M")
    with pytest.raises(OSError, match="No space"):
        small.restore(big)
    assert small.usage().inodes == 1
    wait_until(lambda: no_loop_of(store))


@pytest.mark.root
def test_the_same_is_given_again_and_another_size_is_not(store: Store) -> None:
    volume = store.volumes.create("data", size="8M")
    assert store.volumes.create("data", size=8 << 20) == volume
    assert store.volumes.create("data") == volume
    with pytest.raises(NameTaken, match="another size"):
        store.volumes.create("data", size="9M")
    with pytest.raises(InvalidValue, match="at least"):
        store.volumes.create("tiny", size=4096)


@pytest.mark.root
def test_without_mkfs_there_is_none_and_nothing_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Unsupported, match=r"mkfs\.ext4"):
        store.volumes.create("data", size="8M")
    assert store.volumes.list() == []
    assert os.listdir(store.home.directory("staging")) == []


@pytest.mark.rootless
def test_an_ordinary_user_is_told_that_he_has_none(store: Store) -> None:
    with pytest.raises(Unsupported, match="needs root"):
        store.volumes.create("data", size="8M")
    assert store.volumes.list() == []


@pytest.mark.root
def test_a_loop_device_goes_with_its_last_user(store: Store) -> None:
    directory = os.open(os.path.dirname(store.volumes.create("data", size="8M").path), os.O_RDONLY)
    one, other = images.mount_shared(directory), images.mount_shared(directory)
    one.close()
    assert not no_loop_of(store)
    other.close()
    os.close(directory)
    wait_until(lambda: no_loop_of(store))
