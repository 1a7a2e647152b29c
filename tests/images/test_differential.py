"""The same layers, unpacked by umoci and by us: the same tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import archive, entry
from images_on_disk import layout
from made_images import MadeImage

import containerkit as ck
from containerkit.store import Store

pytestmark = pytest.mark.root

XATTR = "SCHILY.xattr."
CAPABILITY = (b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)).decode("utf-8", "surrogateescape")

BASE = archive(
    [
        entry("./", mode=0o755),
        "etc/",
        entry("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        "usr/",
        "usr/lib/",
        entry("usr/lib/libx.so.1", b"library" * 1000, mode=0o755),
        entry("usr/lib/libx.so", "@libx.so.1"),
        entry("lib", "@usr/lib"),
        entry("setuid", "s", mode=0o4755, uid=1, gid=2),
        entry("capable", "c", pax_headers={XATTR + "security.capability": CAPABILITY}),
        entry("noted", "n", pax_headers={XATTR + "user.note": "value"}),
        entry("sticky/", mode=0o1777, mtime=123),
        entry("setgid/", mode=0o2755, gid=7),
        entry("hard", "hard"),
        entry("link", "=hard"),
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("fifo", type=tarfile.FIFOTYPE, mode=0o640),
        entry("n" * 120, "long"),
        entry("/".join(["d" * 80] * 3) + "/", mtime=1),
        entry("\udcff\udcfe", "no UTF-8"),
        entry("Zürich", "ü"),
        entry("sparse", b"x" + bytes(300_000) + b"y"),
        "gone/",
        entry("gone/a", "a"),
        "gone/deep/",
        entry("gone/deep/b", "b"),
        "opaque/",
        entry("opaque/old", "old"),
        "replaced/",
        entry("replaced/x", "x"),
        entry("a file", "f"),
        entry("big ids", "b", uid=3_000_000_000, gid=3_000_000_001),
        entry("fraction", "f", mtime=1_234_567_890.5),
    ]
)
CHANGES = archive(
    [
        "etc/",
        entry("etc/.wh.passwd", ""),
        entry("etc/group", "root:x:0:\n"),
        ".wh.gone",
        entry("opaque/", mode=0o700, mtime=9),
        entry("opaque/.wh..wh..opq", ""),
        entry("opaque/new", "new"),
        entry("replaced", "now a file"),
        "a file/",
        entry("a file/in", "in"),
        entry("setuid", "changed", mode=0o4711, uid=9),
        entry("lib/by-link", "through the link"),
    ]
)
AGAIN = archive([entry("gone/", mode=0o711), entry("gone/c", "c"), entry("hard", "other"), ".wh.null"])


def described(root: Path) -> dict[bytes, Any]:
    """Everything that can be seen of a tree; times to the second, for umoci has no more."""
    found: dict[bytes, Any] = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                content = status.st_rdev
            attributes = {}
            for key in os.listxattr(path, follow_symlinks=False):
                if not key.startswith("user.overlay."):
                    attributes[key] = os.getxattr(path, key, follow_symlinks=False)
            owner = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
            links = 0 if kind == stat.S_IFDIR else status.st_nlink
            found[os.path.relpath(path, os.fsencode(root))] = (
                kind,
                *owner,
                int(status.st_mtime),
                links,
                content,
                attributes,
            )
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        yield store


def umoci(directory: Path, target: Path) -> Path:
    if shutil.which("umoci") is None:
        pytest.fail("umoci is missing: `make setup`")
    subprocess.run(["umoci", "unpack", "--image", f"{directory}:x", target], check=True, capture_output=True)
    return target / "rootfs"


@pytest.fixture
def merged(tmp_path: Path) -> Iterator[Any]:
    """Mounts what an image is made of, where it can be walked by path."""
    mounted: list[Path] = []

    def mount(root: ck.OverlayFS) -> Path:
        place = tmp_path / "merged"
        place.mkdir()
        with (
            ck.OverlayFS(root.lower, read_only=True).mount()
            if len(root.lower) > 1
            else ck.MountTree.clone(
                root.lower[0]  # type: ignore[arg-type]
            ) as tree
        ):
            tree.attach(place)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("layers", [[BASE], [BASE, CHANGES], [BASE, CHANGES, AGAIN]], ids=["one", "two", "three"])
def test_umoci_and_we_unpack_the_same_tree(layers: list[bytes], store: Store, tmp_path: Path, merged: Any) -> None:
    place = layout(MadeImage(layers), tmp_path / "layout")
    theirs = described(umoci(place, tmp_path / "bundle"))
    (image,) = store.images.load(place)
    with image.hold() as held:
        ours = described(merged(held.root))
    assert ours.keys() == theirs.keys()
    # Directories in which something changed: umoci gives them the time that they had, overlayfs that of the layer.
    for path, seen in theirs.items():
        if ours[path] != seen and seen[0] == stat.S_IFDIR:
            assert ours[path][:4] == seen[:4], path
        elif path == b"link" and layers[-1] is AGAIN:
            # Its other name is another file now; overlayfs goes on counting both (overlayfs.rst, "index").
            assert (*ours[path][:5], *ours[path][6:]) == (*seen[:5], *seen[6:])
        else:
            assert ours[path] == seen, path
