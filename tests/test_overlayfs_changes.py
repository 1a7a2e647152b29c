"""An overlay's changes: listed, written, exported, and gone on from."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

import containerkit as ck
from containerkit.layers.apply import apply

SCRIPT = "echo new > /etc/new; rm /etc/group; mkdir /d; echo x > /d/x; chmod 4711 /d/x"


@pytest.fixture
def overlay(busybox_root: Path, tmp_path: Path) -> ck.OverlayFS:
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    return ck.OverlayFS(busybox_root, tmp_path / "upper", tmp_path / "work")


def sh(overlay: ck.OverlayFS, script: str) -> str:
    return ck.run(["sh", "-c", script], rootfs=overlay, check=True).stdout


@pytest.mark.root
def test_changes_are_listed(overlay: ck.OverlayFS) -> None:
    sh(overlay, SCRIPT)
    assert [str(change) for change in overlay.diff()] == ["A /d", "A /d/x", "C /etc", "D /etc/group", "A /etc/new"]


@pytest.mark.root
def test_committed_changes_are_a_layer_that_makes_the_same_tree(
    overlay: ck.OverlayFS, busybox_root: Path, tmp_path: Path
) -> None:
    sh(overlay, SCRIPT)
    out = io.BytesIO()
    packed = overlay.commit(out)
    layer = tmp_path / "layer"
    layer.mkdir()
    fd = os.open(layer, os.O_RDONLY)
    try:
        applied = apply(io.BytesIO(out.getvalue()), fd)
    finally:
        os.close(fd)
    assert applied.diff_id == packed.diff_id
    look = "ls -ln /etc /d; cat /etc/new /d/x"
    assert sh(ck.OverlayFS([layer, busybox_root]), look) == sh(overlay, look)


@pytest.mark.root
def test_an_export_is_the_whole_tree(overlay: ck.OverlayFS) -> None:
    sh(overlay, SCRIPT)
    out = io.BytesIO()
    overlay.export(out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        names = {info.name for info in tar.getmembers()}
    assert {"bin/busybox", "etc/new", "d/x"} <= names
    assert "etc/group" not in names


@pytest.mark.root
def test_a_snapshot_keeps_what_was_and_a_fork_goes_on(overlay: ck.OverlayFS, tmp_path: Path) -> None:
    sh(overlay, SCRIPT)
    fork = overlay.fork(tmp_path / "fork")
    sh(overlay, "echo later > /etc/new")
    assert sh(fork, "cat /etc/new; test ! -e /etc/group; echo mine > /etc/mine") == "new\n"
    assert sh(overlay, "cat /etc/new; ls /etc") == "later\nnew\npasswd\n"
    assert [str(change) for change in fork.diff()] == ["C /etc", "A /etc/mine"]


@pytest.mark.root
def test_a_snapshot_has_every_attribute(overlay: ck.OverlayFS, tmp_path: Path) -> None:
    sh(overlay, SCRIPT + "; rm -r /tmp; mkdir /tmp; echo t > /tmp/t; ln /d/x /d/y; ln -s x /d/l")
    os.setxattr(tmp_path / "upper/d/x", "user.note", b"n")
    overlay.snapshot(tmp_path / "snapshot")

    def seen(root: Path) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in root.rglob("*"):
            status = path.lstat()
            names = os.listxattr(path, follow_symlinks=False)
            attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
            links = status.st_nlink if path.is_file() else 0  # the kernel links its whiteouts to each other
            found[str(path.relative_to(root))] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev, links, attributes,
            )  # fmt: skip
        return found

    assert seen(tmp_path / "snapshot") == seen(tmp_path / "upper")
    assert {path.name for path in (tmp_path / "snapshot/d").iterdir() if path.stat().st_nlink == 2} >= {"x", "y"}


@pytest.mark.root
def test_a_snapshot_into_a_directory_with_something_in_it_is_refused(overlay: ck.OverlayFS, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(ck.Exists, match="must be empty"):
        overlay.snapshot(tmp_path / "full")
    assert (tmp_path / "full/x").exists()


def test_an_ephemeral_layer_has_no_changes_to_list(busybox_root: Path) -> None:
    with pytest.raises(ck.InvalidValue, match="upper="):
        ck.OverlayFS(busybox_root).diff()


@pytest.mark.root
def test_usage_counts_what_was_written(overlay: ck.OverlayFS) -> None:
    before = overlay.usage()
    sh(overlay, "dd if=/dev/urandom of=/big bs=1M count=2 2>/dev/null; ln /big /big2")
    after = overlay.usage()
    assert 2 << 20 <= after.size - before.size < 3 << 20
    assert after.inodes - before.inodes in (1, 2)  # the file, and perhaps a mount point


@pytest.mark.root
def test_an_ordinary_user_lists_and_commits_his_own_changes(as_user, busybox_root: Path) -> None:  # type: ignore[no-untyped-def]
    code = """
import io, os, shutil, sys
import containerkit as ck
shutil.copytree(sys.argv[1], "image", symlinks=True)
os.mkdir("upper"); os.mkdir("work")
overlay = ck.OverlayFS("image", "upper", "work")
ck.run(["sh", "-c", "echo new > /etc/new; rm -r /root"], rootfs=overlay, idmap=ck.IdMap.single(), check=True)
print(*overlay.diff(), sep="\\n")
import tarfile
out = io.BytesIO(); overlay.commit(out)
with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
    print(sorted({(info.uid, info.gid) for info in tar.getmembers()}), len(tar.getmembers()) > 1)
"""
    lines = as_user(code, str(busybox_root)).stdout.splitlines()
    assert lines == ["C /etc", "A /etc/new", "D /root", "[(0, 0)] True"]
