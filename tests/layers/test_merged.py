"""Layers read as overlayfs shows them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from containerkit.layers.merged import copy_merged, resolve
from containerkit.overlayfs import OverlayFS

pytestmark = pytest.mark.root


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers, the topmost first, with all that layers can say."""
    top, middle, low = (tmp_path / name for name in ("top", "middle", "low"))
    for layer in (top, middle, low):
        (layer / "data").mkdir(parents=True)
        (layer / "data" / layer.name).write_text(layer.name)
        (layer / "data/all").write_text(f"from {layer.name}")
        (layer / "data/opaque").mkdir()
        (layer / "data/opaque" / layer.name).touch()
        (layer / "data/replaced").mkdir()
        (layer / "data/replaced" / layer.name).touch()
    (low / "data/hidden").touch()
    os.mknod(top / "data/hidden", 0o020000, 0)
    (low / "data/gone").mkdir()
    (low / "data/gone/x").touch()
    os.mknod(middle / "data/gone", 0o020000, 0)
    (top / "data/gone").mkdir()
    (top / "data/gone/new").touch()
    os.setxattr(middle / "data/opaque", "user.overlay.opaque", b"y")
    (middle / "data/replaced/middle").unlink()
    (middle / "data/replaced").rmdir()
    (middle / "data/replaced").write_text("a file")
    os.link(low / "data/low", low / "data/twin")
    os.chown(top / "data", 5, 6)
    (top / "data").chmod(0o2750)
    (low / "links").mkdir()
    (low / "links/absolute").symlink_to("/data")
    (low / "links/up").symlink_to("../../../links/absolute/.")
    (low / "links/loop").symlink_to("loop")
    (low / "links/out").symlink_to("../../../../../../etc")
    (low / "file").touch()
    return [top, middle, low]


def snapshot(directory: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_nlink if path.is_file() else 0, content,
        )  # fmt: skip
    return found


def copied(layers: list[Path], path: str, target: Path) -> bool:
    target.mkdir()
    with ExitStack() as stack:
        fds = [os.open(each, os.O_RDONLY | os.O_DIRECTORY) for each in (*layers, target)]
        for fd in fds:
            stack.callback(os.close, fd)
        before = len(os.listdir("/proc/self/fd"))
        done = copy_merged(fds[:-1], path, fds[-1])
        assert len(os.listdir("/proc/self/fd")) == before
    return done


def test_a_copy_is_what_overlayfs_shows(layers: list[Path], tmp_path: Path) -> None:
    assert copied(layers, "/data", tmp_path / "copy")
    where = tmp_path / "mounted"
    where.mkdir()
    with OverlayFS(layers, read_only=True).mount() as tree:
        tree.attach(where)
        try:
            shown = snapshot(where / "data")
        finally:
            tree.detach_at(where)
    assert snapshot(tmp_path / "copy") == shown
    assert shown["all"][-1] == b"from top"
    assert sorted(name for name in shown if name.startswith("opaque/")) == ["opaque/middle", "opaque/top"]
    assert sorted(name for name in shown if name.startswith("replaced/")) == ["replaced/top"]
    assert "gone/x" not in shown
    assert not [path for path in (tmp_path / "copy").rglob("*") if "user.overlay.opaque" in os.listxattr(path)]


@pytest.mark.parametrize("path", ["/links/absolute", "links/up", "/links/../data/", "//./data", "/../../data"])
def test_links_are_resolved_within_the_layers(layers: list[Path], tmp_path: Path, path: str) -> None:
    assert copied(layers, path, tmp_path / "copy")
    assert (tmp_path / "copy/top").exists()


@pytest.mark.parametrize("path", ["/links/loop", "/links/out", "/missing", "/file", "/file/x", "/data/hidden"])
def test_what_is_no_directory_of_the_layers_is_not_copied(layers: list[Path], tmp_path: Path, path: str) -> None:
    assert not copied(layers, path, tmp_path / "copy")
    assert os.listdir(tmp_path / "copy") == []


def test_a_directory_knows_whether_anything_is_seen_in_it(layers: list[Path]) -> None:
    (layers[2] / "empty").mkdir()
    os.mknod(layers[0] / "empty", 0o020000, 0)
    fds = [os.open(each, os.O_RDONLY | os.O_DIRECTORY) for each in layers]
    found = resolve(fds, "/data/gone")
    assert found is not None
    assert not found.is_empty()
    found.close()
    assert resolve(fds, "/empty") is None
    for fd in fds:
        os.close(fd)
