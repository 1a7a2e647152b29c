"""Trees as archives: what is written is what was there, and always the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from containerkit.layers.apply import apply
from containerkit.layers.pack import Packed, pack_layer, pack_tree

pytestmark = pytest.mark.root


def packed(root: Path, *, layer: bool = True, **options: object) -> tuple[bytes, Packed]:
    out = io.BytesIO()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        result = (pack_layer if layer else pack_tree)(fd, out, **options)  # type: ignore[arg-type]
    finally:
        os.close(fd)
    return out.getvalue(), result


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def unpacked(data: bytes, root: Path) -> Path:
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        apply(io.BytesIO(data), fd)
    finally:
        os.close(fd)
    return root


def described(root: Path) -> dict[str, object]:
    """Everything that can be seen of a tree, but for times below a second."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = status.st_rdev
        names = os.listxattr(path, follow_symlinks=False)
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        time = 0 if content == 0 else int(status.st_mtime)  # a whiteout has none
        links = 0 if kind == stat.S_IFDIR else status.st_nlink
        owner = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        found[str(path.relative_to(root))] = (kind, *owner, time, links, content, attributes)
    return found


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A tree of everything that can be in a layer."""
    root = tmp_path / "odd"
    root.mkdir()
    (root / "file").write_bytes(b"content")
    os.chown(root / "file", 3_000_000, 4_000_000)
    os.chmod(root / "file", 0o6755)
    os.setxattr(root / "file", "user.note", b"a\0\xff=\n")
    os.setxattr(root / "file", "security.capability", b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12))
    os.link(root / "file", root / "second name")
    (root / "empty").touch()
    (root / "link").symlink_to("/somewhere/else" * 20)
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "sticky").mkdir()
    os.chmod(root / "sticky", 0o1777)
    os.setxattr(root / "sticky", "user.dir", b"x")
    deep = root / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_text("long")
    (root / "Zürich").write_text("ü")
    with open(os.fsencode(root) + b"/\xff\xfe", "wb") as file:
        file.write(b"no UTF-8")
    with (root / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"island")
    (root / "gone").mkdir()
    os.mknod(root / "gone/whiteout", stat.S_IFCHR, 0)
    (root / "opaque").mkdir()
    os.setxattr(root / "opaque", "user.overlay.opaque", b"y")
    (root / "opaque/in").write_text("in")
    for path in root.rglob("*"):
        os.utime(path, (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    return root


def test_what_is_packed_and_applied_again_is_the_same(odd: Path, tmp_path: Path) -> None:
    data, result = packed(odd)
    again = unpacked(data, tmp_path / "again")
    assert described(again) == described(odd)
    assert (again / "sparse").stat().st_blocks * 512 < 1 << 20
    assert result.left_out == 0
    assert result.diff_id == result.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_the_same_content_has_the_same_bytes_in_another_directory(odd: Path, tmp_path: Path) -> None:
    first, _ = packed(odd)
    again = unpacked(first, tmp_path / "again")
    assert packed(again)[0] == first


def test_whiteouts_come_as_files_and_opaque_directories_with_a_mark(odd: Path) -> None:
    data, _ = packed(odd)
    names = [info.name for info in members(data)]
    assert "gone/.wh.whiteout" in names
    assert names.index("opaque/.wh..wh..opq") < names.index("opaque/in")


def test_gnu_tar_reads_it_without_complaint(odd: Path, tmp_path: Path) -> None:
    data, _ = packed(odd, layer=False)
    done = subprocess.run(["tar", "-tvf", "-"], input=data, capture_output=True)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_layer_holds_the_same_archive(compression: str, odd: Path, tmp_path: Path) -> None:
    plain, first = packed(odd)
    data, result = packed(odd, compression=compression)
    assert result.diff_id == first.diff_id
    assert result.size == len(data) < len(plain)
    assert result.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert described(unpacked(data, tmp_path / "again")) == described(odd)


def test_times_are_not_later_than_the_source_date(odd: Path) -> None:
    data, _ = packed(odd, source_date_epoch=1_400_000_000)
    assert {int(info.mtime) for info in members(data)} == {0, 1_400_000_000}


def test_the_source_date_of_the_environment_counts(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1300000000")
    data, _ = packed(odd)
    assert max(info.mtime for info in members(data)) == 1_300_000_000


def test_sockets_are_left_out_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s"))
        _, result = packed(root)
    assert (result.entries, result.left_out) == (0, 1)


def test_a_file_that_became_shorter_is_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "r"
    root.mkdir()
    (root / "f").write_bytes(b"x" * 5000)
    real = os.pread

    def shrinking(fd: int, n: int, offset: int) -> bytes:
        os.truncate(root / "f", 100)
        return real(fd, n, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    data, _ = packed(root)
    assert (unpacked(data, tmp_path / "again") / "f").read_bytes() == b"x" * 100 + bytes(4900)
