"""Images into the store out of files, and back: names, platforms, peers, and archives that lie."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import archive, entry
from made_images import MadeImage, two_layers

import containerkit as ck
from containerkit.errors import ContentMismatch, Exists, ImageNotFound, InvalidLayer, InvalidValue
from containerkit.images.archive_writing import Format, Saved, write_images
from containerkit.images.reference import Reference
from containerkit.store import Store

NAME = "example.org/a/busy:1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def archive_of(path: Path, made: MadeImage, name: str = NAME, form: Format = "docker-archive") -> Path:
    write_images([Saved(made.manifest, made.config, [Reference.parse(name)])], path, form, made.open)
    return path


def left_over(store: Store) -> list[str]:
    return [
        name
        for directory in ("staging", "ingest", "leases")
        for name in os.listdir(Path(store.path) / directory)
        if not name.startswith("lock-")
    ]


@pytest.mark.both
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_an_image_is_loaded_and_saved_as_it_was(tmp_path: Path, store: Store, form: Format) -> None:
    made = two_layers()
    [image] = store.images.load(archive_of(tmp_path / "in", made, form=form))
    assert image.id == made.config.id
    assert image.names == [NAME]
    assert image.manifest == made.manifest
    store.images.save(NAME, tmp_path / "out", format=form)
    if form != "oci":
        assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert left_over(store) == []


@pytest.mark.root
def test_what_was_loaded_runs(tmp_path: Path, store: Store, busybox_root: Path) -> None:
    program = (busybox_root / "bin/busybox").read_bytes()
    below = archive([entry("bin/"), entry("bin/busybox", program, mode=0o755), entry("bin/sh", "@busybox")])
    made = MadeImage([below, archive([entry("etc/"), entry("etc/word", "from the layer above")])])
    [image] = store.images.load(archive_of(tmp_path / "in", made))
    with image.hold() as held:
        done = ck.run(["/bin/sh", "-c", "read word </etc/word; echo $word"], rootfs=held.root)
    assert done.stdout == "from the layer above\n"


@pytest.mark.attack("E12", control="the same archive with replace=True, in the same test")
def test_an_archive_does_not_take_a_name_that_means_something_else(tmp_path: Path, store: Store) -> None:
    first, second = two_layers(), MadeImage([archive([entry("x", "x")])])
    [kept] = store.images.load(archive_of(tmp_path / "first", first))
    with pytest.raises(Exists, match="replace=True"):
        store.images.load(archive_of(tmp_path / "second", second))
    assert store.images.get(NAME) == kept
    assert len(store.images.list()) == 1
    [moved] = store.images.load(tmp_path / "second", replace=True)
    assert store.images.get(NAME) == moved


def test_an_image_gets_another_name(tmp_path: Path, store: Store) -> None:
    [image] = store.images.load(archive_of(tmp_path / "in", two_layers()), name="mine:2")
    assert image.names == ["docker.io/library/mine:2"]


def test_one_name_for_several_images_is_refused(tmp_path: Path, store: Store) -> None:
    first, second = two_layers(), MadeImage([archive([entry("x", "x")])])
    first.blobs |= second.blobs
    images = [Saved(made.manifest, made.config, []) for made in (first, second)]
    write_images(images, tmp_path / "in", "oci-archive", first.open)
    with pytest.raises(InvalidValue, match="2 images"):
        store.images.load(tmp_path / "in", name="mine:2")
    assert len(store.images.load(tmp_path / "in")) == 2


def test_loading_twice_changes_nothing(tmp_path: Path, store: Store) -> None:
    archive_of(tmp_path / "in", two_layers())
    phases: list[str] = []
    first = store.images.load(tmp_path / "in")
    second = store.images.load(tmp_path / "in", progress=lambda progress: phases.append(progress.phase))
    assert first == second
    assert set(phases) == {"exists"}


def test_an_image_for_another_platform_is_found_when_asked_for(tmp_path: Path, store: Store) -> None:
    archive_of(tmp_path / "in", two_layers(platform="linux/s390x"), form="oci-archive")
    with pytest.raises(ImageNotFound, match="linux/riscv64"):
        store.images.load(tmp_path / "in", platform="linux/riscv64")
    [image] = store.images.load(tmp_path / "in", platform="linux/s390x")
    assert str(image.config.platform) == "linux/s390x"


@pytest.mark.parametrize("lie", ["layer", "diff_id", "tar"])
def test_an_archive_that_lies_leaves_nothing(tmp_path: Path, store: Store, lie: str) -> None:
    made = two_layers(compressed=lie != "layer")
    layer = made.manifest.layers[1]
    if lie == "layer":
        made.blobs[layer.digest] = made.blobs[layer.digest][::-1]
    elif lie == "diff_id":
        other = MadeImage([archive([entry("a", "a")]), archive([entry("b", "b")])])
        made.blobs |= other.blobs
        made.manifest = type(made.manifest).make(made.manifest.config, other.manifest.layers)
        made.blobs[made.manifest.digest] = made.manifest.raw
    else:
        made = MadeImage([b"no archive at all" * 1000])
    archive_of(tmp_path / "in", made, form="oci-archive")
    with pytest.raises((ContentMismatch, InvalidLayer)):
        store.images.load(tmp_path / "in")
    assert store.images.list() == []
    lying = made.manifest.layers[-1].digest.replace(":", "-")  # of the others a part may be kept, to go on from
    assert [name for name in left_over(store) if not name.startswith("sha256-") or name == lying] == []
    swept = store.collect()
    assert swept is not None
    assert os.listdir(Path(store.path) / "layers") == []


def test_an_image_is_saved_by_name_by_id_and_itself(tmp_path: Path, store: Store) -> None:
    [image] = store.images.load(archive_of(tmp_path / "in", two_layers()))
    image.tag("other:2")
    wanted: list[tuple[object, list[str] | None]] = [
        ("other:2", ["other:2"]),
        (image.id, None),
        (image, ["other:2", NAME]),
    ]
    for number, (asked, names) in enumerate(wanted):
        out = tmp_path / f"out{number}"
        store.images.save(asked, out)  # type: ignore[arg-type]
        listed = subprocess.run(["tar", "-xOf", out, "manifest.json"], check=True, capture_output=True).stdout
        assert json.loads(listed)[0]["RepoTags"] == names


def test_a_pipe_is_loaded(tmp_path: Path, store: Store) -> None:
    made = two_layers()
    archive_of(tmp_path / "in", made)
    with subprocess.Popen(["cat", tmp_path / "in"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        [image] = store.images.load(cat.stdout)
    assert image.id == made.config.id


@pytest.mark.root
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_podman_loads_what_is_saved(tmp_path: Path, store: Store, form: Format) -> None:
    store.images.load(archive_of(tmp_path / "in", two_layers()))
    store.images.save(NAME, tmp_path / "out", format=form)
    with tempfile.TemporaryDirectory() as short:  # podman takes no long path
        podman = ["podman", "--root", f"{short}/p", "--runroot", f"{short}/r", "--storage-driver", "vfs"]
        subprocess.run([*podman, "pull", "-q", f"{form}:{tmp_path / 'out'}"], check=True, capture_output=True)
        listed = subprocess.run([*podman, "images", "-a", "--noheading"], check=True, capture_output=True, text=True)
        assert len(listed.stdout.splitlines()) == 1
