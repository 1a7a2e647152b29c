"""Layers as they are applied: the rules of the OCI image-spec, layer.md, and what hostile archives try."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from archives import archive, entry

from containerkit.errors import InvalidLayer
from containerkit.layers.apply import OPAQUE, Applied, apply
from containerkit.layers.limits import LayerLimits

pytestmark = pytest.mark.root


def unpack(data: bytes, target: Path, **options: object) -> Applied:
    target.mkdir(exist_ok=True)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return apply(io.BytesIO(data), fd, **options)  # type: ignore[arg-type]
    finally:
        os.close(fd)


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


@pytest.fixture
def lower(tmp_path: Path) -> Iterator[Path]:
    """The tree of the golden vectors: a/x, a/y, b."""
    root = tmp_path / "lower"
    unpack(archive(["a/", entry("a/x", "old"), entry("a/y", "y"), entry("b", "b")]), root)
    return root


# What a layer makes of the lower tree. "a/x'" is a new a/x.
VECTORS = [
    (["a/", ("a/z", "z"), "a/.wh..wh..opq"], {"a", "a/z", "b"}),
    (["a/.wh..wh..opq", "a/", ("a/z", "z")], {"a", "a/z", "b"}),
    (["a/", "a/.wh.x", ("a/x", "new")], {"a", "a/x", "a/y", "b"}),
    (["a/", ("a/x", "new"), "a/.wh.x"], {"a", "a/x", "a/y", "b"}),
    ([".wh.a", "a/", ("a/n", "n")], {"a", "a/n", "b"}),
    (["a/", ("a/n", "n"), ".wh.a"], {"a", "a/n", "b"}),
    ([".wh.nope"], {"a", "a/x", "a/y", "b"}),
    (["a/", ".wh.a"], {"a", "b"}),
    ([".wh.a", ".wh.b"], set()),
    ([("a", "a file")], {"a", "b"}),
    (["b/", ("b/c", "c")], {"a", "a/x", "a/y", "b", "b/c"}),
    (["a/", "a/.wh.x", "a/.wh..wh..opq", ("a/q", "q")], {"a", "a/q", "b"}),
]


@pytest.mark.parametrize(("layer", "expected"), VECTORS, ids=range(len(VECTORS)))
def test_a_layer_changes_a_tree_as_the_specification_says(
    layer: list[str | tuple[str, str]], expected: set[str], lower: Path
) -> None:
    data = archive([one if isinstance(one, str) else entry(*one) for one in layer])
    unpack(data, lower, onto=True)
    assert names(lower) == expected
    if "a/x" in expected and ("a/x", "new") in layer:
        assert (lower / "a/x").read_text() == "new"


@pytest.mark.parametrize(("layer", "expected"), VECTORS, ids=range(len(VECTORS)))
def test_a_layer_below_an_overlay_shows_the_same(
    layer: list[str | tuple[str, str]], expected: set[str], lower: Path, tmp_path: Path
) -> None:
    import containerkit as ck

    data = archive([one if isinstance(one, str) else entry(*one) for one in layer])
    unpack(data, tmp_path / "upper")
    found = ck.run(
        ["busybox", "find", "/", "-mindepth", "1", "-xdev"],
        rootfs=ck.OverlayFS([tmp_path / "upper", lower, _busybox(tmp_path)]),
    ).stdout.split()
    ours = {name[1:] for name in found} - {"bin", "bin/busybox", "proc", "sys", "dev", "tmp"}
    assert ours == expected


def _busybox(tmp_path: Path) -> Path:
    import shutil

    root = tmp_path / "busybox"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    return root


def test_an_opaque_directory_holds_no_whiteouts(tmp_path: Path) -> None:
    unpack(archive(["a/", "a/.wh.x", "a/s/", "a/s/.wh.y", "a/.wh..wh..opq"]), tmp_path / "l")
    assert names(tmp_path / "l") == {"a", "a/s"}
    assert os.getxattr(tmp_path / "l/a", OPAQUE) == b"y"


def test_a_whiteout_becomes_a_device_of_number_zero(tmp_path: Path) -> None:
    applied = unpack(archive(["d/", "d/.wh.x"]), tmp_path / "l")
    assert is_whiteout(tmp_path / "l/d/x")
    assert applied.whiteouts == (b"d/x",)
    assert applied.dependent is None


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh."])
def test_a_whiteout_of_nothing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidLayer, match="whiteout of nothing"):
        unpack(archive([entry(name, "")]), tmp_path / "l")


def test_bookkeeping_of_aufs_is_left_out(tmp_path: Path) -> None:
    unpack(archive([".wh..wh.plnk/", entry(".wh..wh.plnk/1.2", "x"), entry(".wh..wh.aufs", ""), "a/"]), tmp_path / "l")
    assert names(tmp_path / "l") == {"a"}


def test_a_directory_that_is_not_described_makes_the_layer_dependent(tmp_path: Path) -> None:
    applied = unpack(archive([entry("etc/x", "x")]), tmp_path / "l")
    assert applied.dependent is not None
    assert "etc" in applied.dependent
    assert (tmp_path / "l/etc").stat().st_mode & 0o7777 == 0o755


def test_a_hard_link_to_a_lower_file_makes_the_layer_dependent(tmp_path: Path) -> None:
    applied = unpack(archive([entry("h", "=below")]), tmp_path / "l")
    assert applied.dependent is not None
    assert "below" in applied.dependent


def test_attributes_are_those_of_the_archive(tmp_path: Path) -> None:
    data = archive(
        [
            entry("s", "x", mode=0o4755, uid=12, gid=34, mtime=1_234_567_890.25),
            entry("d/", mode=0o1777, uid=5, mtime=77),
            entry("d/in", "x"),
            entry("l", "@s", uid=7, mtime=99),
        ]
    )
    unpack(data, tmp_path / "l")
    status = (tmp_path / "l/s").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o4755, 12, 34)
    assert status.st_mtime_ns == 1_234_567_890_250_000_000
    status = (tmp_path / "l/d").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_mtime) == (0o1777, 5, 77)
    status = (tmp_path / "l/l").lstat()
    assert (status.st_uid, status.st_mtime) == (7, 99)


@pytest.mark.attack("E14", control="test_capabilities_and_user_attributes_are_kept_and_those_of_overlayfs_are_not")
def test_capabilities_and_user_attributes_are_kept_and_those_of_overlayfs_are_not(tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02" + b"\x00\x04\x00\x00" + bytes(12)
    headers = {
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.note": "a\0b",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
    }
    unpack(archive([entry("f", "x", uid=3, pax_headers=headers)]), tmp_path / "l")
    path = tmp_path / "l/f"
    assert set(os.listxattr(path)) == {"security.capability", "user.note"}
    assert os.getxattr(path, "user.note") == b"a\0b"
    assert os.getxattr(path, "security.capability") == capability


def test_runs_of_zeros_become_holes(tmp_path: Path) -> None:
    content = b"begin" + bytes(8 << 20) + b"end" + bytes(1 << 20)
    unpack(archive([entry("f", content)]), tmp_path / "l")
    assert (tmp_path / "l/f").read_bytes() == content
    assert (tmp_path / "l/f").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    "option", ["--format=gnu", *(f"--format=pax --sparse-version={version}" for version in ("0.0", "0.1", "1.0"))]
)
def test_sparse_files_of_every_format_of_gnu_tar_are_read(option: str, tmp_path: Path) -> None:
    import subprocess

    with (tmp_path / "f").open("wb") as file:
        for index in range(40):
            file.seek(index << 20)
            file.write(b"part %d" % index)
        file.truncate(50 << 20)
    done = subprocess.run(["tar", "-cS", *option.split(), "f"], cwd=tmp_path, check=True, capture_output=True)
    unpack(done.stdout, tmp_path / "l")
    assert (tmp_path / "l/f").read_bytes() == (tmp_path / "f").read_bytes()
    assert (tmp_path / "l/f").stat().st_blocks * 512 < 2 << 20


def test_hard_links_share_a_file_and_devices_are_devices(tmp_path: Path) -> None:
    data = archive(
        [
            entry("a", "x"),
            entry("b", "=a"),
            entry("c", "=/a"),
            entry("l", "@nowhere"),
            entry("m", "=l"),
            entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("p", type=tarfile.FIFOTYPE),
        ]
    )
    applied = unpack(data, tmp_path / "l")
    root = tmp_path / "l"
    assert root.joinpath("a").stat().st_ino == root.joinpath("b").stat().st_ino == root.joinpath("c").stat().st_ino
    assert root.joinpath("m").is_symlink()
    assert root.joinpath("null").stat().st_rdev == os.makedev(1, 3)
    assert root.joinpath("p").is_fifo()
    assert applied.dependent is None


@pytest.mark.attack("E14", control="test_a_whiteout_becomes_a_device_of_number_zero")
def test_a_device_of_number_zero_is_no_whiteout(tmp_path: Path) -> None:
    applied = unpack(archive([entry("w", type=tarfile.CHRTYPE)]), tmp_path / "l")
    assert names(tmp_path / "l") == set()
    assert applied.skipped == 1


def test_the_last_of_two_entries_of_one_name_counts(tmp_path: Path) -> None:
    data = archive([entry("f", "1"), entry("f", "2"), "d/", entry("d/x", "x"), entry("d", "file"), entry("d", "@f")])
    unpack(data, tmp_path / "l")
    assert (tmp_path / "l/f").read_text() == "2"
    assert (tmp_path / "l/d").is_symlink()


@pytest.mark.attack("E01", control="test_tarfile_leaves_the_root")
def test_a_file_is_not_written_through_a_link_that_stands_in_its_place(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    unpack(archive([entry("f", f"@{outside}"), entry("f", "new")]), tmp_path / "l")
    assert outside.read_text() == "untouched"
    assert (tmp_path / "l/f").read_text() == "new"


def test_a_link_to_a_directory_on_the_way_leads_to_it_inside_the_root(tmp_path: Path) -> None:
    unpack(archive(["usr/", "usr/lib/", entry("lib", "@/usr/lib"), entry("lib/x", "x")]), tmp_path / "l")
    assert (tmp_path / "l/usr/lib/x").read_text() == "x"


ESCAPES = {
    "parent": [entry("../canary", "bad")],
    "parent within": [entry("d/../../canary", "bad")],
    "absolute": [entry("/canary", "bad")],
    "absolute link": [entry("l", "@/"), entry("l/tmp/canary", "bad")],
    "link up": [entry("l", "@../"), entry("l/canary", "bad")],
    "link up twice": ["d/", entry("d/l", "@../.."), entry("d/l/canary", "bad")],
    "hard link to the outside": [entry("h", "=../canary"), entry("h", "bad")],
    "hard link through a link": [entry("l", "@.."), entry("h", "=l/canary")],
    "the root as a link": [entry("./", "@.."), entry("canary", "bad")],
    "whiteout of the outside": [entry("../.wh.canary", "")],
    "whiteout through a link": [entry("l", "@.."), entry("l/.wh.canary", "")],
    "opaque through a link": [entry("l", "@.."), entry("l/.wh..wh..opq", "")],
    "directory in place of a link": [entry("l", "@.."), "l/", entry("l/canary", "bad")],
}


@pytest.mark.attack("E01", "E03", control="test_tarfile_leaves_the_root")
@pytest.mark.parametrize("onto", [False, True], ids=["apart", "onto"])
@pytest.mark.parametrize("name", ESCAPES)
def test_no_entry_leaves_the_root(name: str, onto: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("precious")
    before = canary.stat()
    with suppress(InvalidLayer):
        unpack(archive(ESCAPES[name]), tmp_path / "l", onto=onto)
    after = canary.stat()
    assert canary.read_text() == "precious"
    assert (after.st_nlink, after.st_mode, after.st_uid) == (before.st_nlink, before.st_mode, before.st_uid)
    assert set(os.listdir(tmp_path)) == {"canary", "l"}


def test_tarfile_leaves_the_root(tmp_path: Path) -> None:
    """The control: the standard library's extractor, as programs called it for twenty years."""
    left = []
    for name, entries in ESCAPES.items():
        area = tmp_path / name.replace(" ", "-")
        area.mkdir()
        (area / "canary").write_text("precious")
        (area / "l").mkdir()
        with (
            suppress(OSError, tarfile.TarError, KeyError),
            tarfile.open(fileobj=io.BytesIO(archive(entries))) as tar,
        ):
            tar.extractall(area / "l", filter="fully_trusted")  # noqa: S202  that is what is shown
        if (area / "canary").read_text() != "precious" or (area / "canary").stat().st_nlink != 1:
            left.append(name)
    assert {"parent", "link up", "hard link through a link"} <= set(left)


@pytest.mark.attack("E04", control="test_attributes_are_those_of_the_archive")
@pytest.mark.parametrize(
    ("limits", "layer"),
    [
        ({"entries_max": 10}, [f"d{n}/" for n in range(11)]),
        ({"bytes_max": 1 << 20}, [entry("f", bytes(2 << 20))]),
        ({"depth_max": 10}, ["/".join("d" * 11) + "/"]),
        ({"xattr_bytes_max": 100}, [entry("f", "x", pax_headers={"SCHILY.xattr.user.x": "x" * 101})]),
        ({"header_max": 1000}, [entry("f" * 2000, "x")]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_more_than_the_limits_allow_is_refused(
    limits: dict[str, int], layer: list[str | tuple[tarfile.TarInfo, bytes]], tmp_path: Path
) -> None:
    with pytest.raises(InvalidLayer, match=next(iter(limits))):
        unpack(archive(layer), tmp_path / "l", limits=LayerLimits(**limits))


@pytest.mark.attack("E05", control="test_a_whiteout_becomes_a_device_of_number_zero")
def test_repeated_opaque_marks_cost_no_more_than_themselves(tmp_path: Path) -> None:
    data = archive(["a/", *(["a/.wh..wh..opq"] * 20_000), *(f"a/.wh.{n}" for n in range(5_000))])
    assert unpack(data, tmp_path / "l").inodes == 1


def test_the_digest_is_that_of_the_whole_stream_with_what_follows_the_archive(tmp_path: Path) -> None:
    import hashlib

    data = archive(["a/"]) + b"x" * 5000
    assert unpack(data, tmp_path / "l").diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidLayer, match="no tar archive"):
        unpack(b"root:x:0:0:root:/root:/bin/sh\n" * 40, tmp_path / "l")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    data = bytearray(archive([entry("f", "x")]))
    data[0] ^= 1
    with pytest.raises(InvalidLayer, match="checksum"):
        unpack(bytes(data), tmp_path / "l")


@pytest.mark.parametrize("cut", [100, 512, 700, 1100])
def test_an_archive_that_is_cut_off_is_refused(cut: int, tmp_path: Path) -> None:
    data = archive([entry("f" * 150, "x" * 3000)])[:cut]
    with pytest.raises(InvalidLayer, match="ends"):
        unpack(data, tmp_path / "l")
