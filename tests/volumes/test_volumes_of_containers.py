"""Volumes in containers that live: what one leaves, the next one finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from archives import archive, entry
from made_images import MadeImage
from stored import put

from containerkit import Bind, InUse
from containerkit.containers.container import Container
from containerkit.images.image import Image
from containerkit.store import Store
from containerkit.volumes.volume_mounts import VolumeMount

pytestmark = pytest.mark.both

NAMES = ("sh", "cat", "ls", "echo", "rm", "touch", "hostname", "stat")
LAYER = [
    "bin/", entry("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
    *(entry(f"bin/{name}", "@busybox") for name in NAMES), "data/", entry("data/kept", "kept\n"),
]  # fmt: skip


@pytest.fixture
def image(store: Store) -> Image:
    return put(store, MadeImage([archive(LAYER)], Volumes={"/data": {}}), "test:1")


def said(store: Store, script: str, *volumes: object, keep: bool = False) -> str:
    container = store.containers.create("test:1", ["sh", "-c", f"exec 2>&1\n{script}"], volumes=volumes)  # type: ignore[arg-type]
    container.start()
    container.wait()
    text = output(container)
    if not keep:
        container.remove(volumes=True)
    return text


def output(container: Container) -> str:
    return "".join(f"{line.text}\n" for line in container.logs())


def test_what_one_container_writes_the_next_one_reads(store: Store, image: Image) -> None:
    assert said(store, "echo written > /v/file; ls /data", "kept-data:/v") == "kept\n"
    assert said(store, "cat /v/file; touch /v/x", "kept-data:/v:ro") == (
        "written\ntouch: /v/x: Read-only file system\n"
    )
    assert [volume.name for volume in store.volumes.list()] == ["kept-data"]  # the image's own went with each


def test_a_volume_stays_with_its_container_until_that_is_removed(store: Store, image: Image) -> None:
    said(store, "true", "kept-data:/v", keep=True)
    (container,) = store.containers.list(all=True)
    with pytest.raises(InUse, match=container.name):
        store.volumes.remove("kept-data")
    assert store.volumes.prune(all=True).volumes == ()
    container.remove()
    (anonymous,) = (volume for volume in store.volumes.list() if volume.anonymous)
    assert store.volumes.prune().volumes == (anonymous.name,)


def test_a_container_that_starts_again_finds_its_volume_as_it_left_it(store: Store, image: Image) -> None:
    container = store.containers.create("test:1", ["sh", "-c", "ls /data; rm -r /data/*; touch /data/new"])
    for _ in range(2):
        container.start()
        container.wait()
    assert output(container) == "kept\nnew\n"
    container.remove(volumes=True)
    assert store.volumes.list() == []


def test_files_of_etc_and_binds_and_subpaths_are_there(store: Store, image: Image, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    os.makedirs(f"{store.volumes.create('deep').path}/a/b")
    volumes = (
        Bind(tmp_path / "host", "/host", read_only=False),
        VolumeMount("deep", "/deep", subpath="a"),
    )
    text = said(store, "[ $(hostname) = $(cat /etc/hostname) ] && echo same; touch /host/x; ls /deep", *volumes)
    assert text == "same\nb\n"
    assert os.listdir(tmp_path / "host") == ["x"]


def test_mounts_are_the_same_for_the_program_that_starts_the_container(store: Store, image: Image) -> None:
    volumes = (
        Bind("/etc", "/host", trusted=True, read_only=True),
        Bind(f"{store.path}-new", "/new", create="dir"),
        VolumeMount("deep", "/deep", subpath="a/b", nocopy=True, read_only=True),
        "/scratch",
    )
    made = store.containers.create("test:1", ["ls", "/host/passwd"], name="one", volumes=volumes)
    with Store(store.path) as other:
        assert other.containers.get("one").spec.mounts == made.spec.mounts
    assert {type(mount) for mount in made.spec.mounts} == {Bind, VolumeMount}
