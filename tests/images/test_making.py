"""New images: imported, committed, exported; the same content gives the same image."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import archive, entry

import containerkit as ck
from containerkit.errors import InvalidValue
from containerkit.images.config import ImageConfig
from containerkit.images.config_changes import ConfigChanges, with_layer
from containerkit.images.digest import Digest
from containerkit.store import Store

ROOT = archive([entry("etc/"), entry("etc/word", "word"), entry("d/"), entry("d/f", "f")])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
def test_a_root_file_system_is_imported(store: Store, pack: object) -> None:
    image = store.images.import_(io.BytesIO(pack(ROOT)), name="mine:1", changes={"cmd": ["/bin/sh"]})  # type: ignore[operator]
    assert image.config.diff_ids == (Digest.of(ROOT),)
    assert image.config.cmd == ("/bin/sh",)
    assert image.names == ["docker.io/library/mine:1"]
    [key] = image.layers
    assert (Path(store.layers.path(key)) / "etc/word").read_text() == "word"


def test_a_directory_is_imported(store: Store, tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/word").write_text("word")
    image = store.images.import_(tmp_path / "root")
    [key] = image.layers
    assert (Path(store.layers.path(key)) / "etc/word").read_text() == "word"


def test_the_same_import_is_the_same_image(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    first = store.images.import_(io.BytesIO(ROOT))
    assert first == store.images.import_(io.BytesIO(ROOT))
    assert first.config.created == "2001-09-09T01:46:40Z"
    assert first != store.images.import_(io.BytesIO(ROOT), source_date_epoch=0)


@pytest.mark.root
def test_changes_are_committed_and_run(store: Store, tmp_path: Path, busybox_root: Path) -> None:
    parent = store.images.import_(busybox_root, changes={"env": {"A": "1"}, "cmd": ["sh"]})
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    with parent.hold() as held:
        overlay = ck.OverlayFS(held.root.lower, upper=upper, work=work)
        ck.run(["sh", "-c", "echo made >/made; rm /etc/group"], rootfs=overlay, check=True)
        image = store.images.commit(overlay, parent, name="child:1", changes={"env": {"B": "2"}}, source_date_epoch=0)
        again = store.images.commit(overlay, parent, changes={"env": {"B": "2"}}, source_date_epoch=0)
    assert image == again
    assert image.layers[:-1] == parent.layers
    assert image.config.environment() == {"A": "1", "B": "2"}
    assert image.config.cmd == ("sh",)
    assert len(image.config.history) == 2
    with image.hold() as held:
        done = ck.run(["sh", "-c", "cat /made; ls /etc"], rootfs=held.root, check=True)
    assert done.stdout == "made\npasswd\n"


def test_changes_without_a_directory_are_refused(store: Store) -> None:
    parent = store.images.import_(io.BytesIO(ROOT))
    with pytest.raises(InvalidValue, match="upper="):
        store.images.commit(ck.OverlayFS("/"), parent)


@pytest.mark.root
def test_the_files_of_all_layers_are_exported(store: Store, tmp_path: Path) -> None:
    parent = store.images.import_(io.BytesIO(ROOT))
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/new").write_text("new")
    os.mknod(tmp_path / "upper/d", 0o020000, 0)
    image = store.images.commit(tmp_path / "upper", parent)
    store.images.export(image, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert sorted(member.name for member in tar if member.name not in (".", "")) == ["etc", "etc/word", "new"]


# ---- configurations --------------------------------------------------------------------------------------------------


def config(**changes: object) -> ImageConfig:
    before: ConfigChanges = {"cmd": ["a"], "env": {"A": "1"}, "labels": {"k": "v"}, "on_build": ["x"]}
    parent = with_layer(None, Digest.of(b"1"), created=0, changes=before)
    return with_layer(parent, Digest.of(b"2"), created=0, changes=changes)  # type: ignore[arg-type]


def test_what_is_not_changed_stays() -> None:
    assert config().cmd == ("a",)
    assert config().env == ("A=1",)
    assert config().diff_ids == (Digest.of(b"1"), Digest.of(b"2"))


def test_an_entrypoint_does_away_with_the_parents_command() -> None:
    assert config(entrypoint=["e"]).argv() == ("e",)
    assert config(entrypoint=["e"], cmd=["c"]).argv() == ("e", "c")


def test_maps_are_merged_and_lists_replaced() -> None:
    changed = config(env={"A": "2", "B": "3"}, labels={"l": "w"}, on_build=["y"], cmd=["b"], volumes=["/v"], cwd="/w")
    assert changed.env == ("A=2", "B=3")
    assert changed.labels == {"k": "v", "l": "w"}
    assert changed.on_build == ("x", "y")
    assert (changed.cmd, changed.volumes, changed.cwd) == (("b",), ("/v",), "/w")


@pytest.mark.parametrize("changes", [{"comand": ["x"]}, {"cmd": "sh -c x"}, {"env": {"": "x"}}, {"user": 5}])
def test_changes_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        config(**changes)
