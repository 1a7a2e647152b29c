"""Changes as docker prints them, from the upper directory of an overlay that the kernel has written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import containerkit as ck
from containerkit.layers.diff import diff

pytestmark = pytest.mark.root

IMAGE = """
mkdir -p a/b/c d/e etc gone/deep bin; echo c > a/b/c/file; echo x > a/x; echo f > d/e/f; echo p > etc/passwd
ln -s x a/link; echo g > gone/deep/g; echo one > hard1; ln hard1 hard2; mkfifo pipe; echo -n 12345 > five; chmod 755 a d
"""

# What is done in a container, and what `docker diff` prints then.
CASES = {
    "nothing": ("true", ""),
    "read": ("cat /etc/passwd > /dev/null", ""),
    "a new file": ("echo n > /etc/new", "C /etc, A /etc/new"),
    "a new file in a new directory": ("mkdir -p /n/m; echo n > /n/m/f", "A /n, A /n/m, A /n/m/f"),
    "a changed file": ("echo more >> /a/b/c/file", "C /a, C /a/b, C /a/b/c, C /a/b/c/file"),
    "touched": ("touch /a/x", "C /a, C /a/x"),
    "a touched directory": ("touch /a/b", ""),
    "touched through a link": ("touch /a/link", "C /a, C /a/x"),
    "another mode": ("chmod 600 /five", "C /five"),
    "the same mode": ("chmod $(stat -c %a /five) /five", ""),
    "a directory of another mode": ("chmod 700 /d/e", "C /d, C /d/e"),
    "another owner": ("chown 1:1 /five", "C /five"),
    "deleted": ("rm /etc/passwd", "C /etc, D /etc/passwd"),
    "a deleted directory": ("rm -r /gone", "D /gone"),
    "a deleted directory in one that stays": ("rm -r /gone/deep", "C /gone, D /gone/deep"),
    "deleted and made again": ("rm /five; echo -n 54321 > /five", "C /five"),
    "a directory made again": (
        "rm -r /a/b; mkdir /a/b; echo n > /a/b/new", "C /a, C /a/b, A /a/b/new, D /a/b/c"
    ),
    "a directory made again with one in it": (
        "rm -r /gone; mkdir -p /gone/deep; echo h > /gone/deep/h", "C /gone, C /gone/deep, D /gone/deep/g, "
        "A /gone/deep/h"
    ),
    "a directory made again as it was": (
        "cp -a /gone /tmp/g; rm -r /gone; cp -a /tmp/g /gone", ""
    ),
    "a file in place of a directory": ("rm -r /gone; echo f > /gone", "C /gone"),
    "a directory in place of a file": ("rm /five; mkdir /five; echo i > /five/in", "C /five, A /five/in"),
    "renamed": ("mv /etc/passwd /etc/shadow", "C /etc, D /etc/passwd, A /etc/shadow"),
    "a renamed directory": ("mv /d/e /d/h", "C /d, D /d/e, A /d/h, A /d/h/f"),
    "a hard link": ("ln /five /six", "A /six"),
    "one of two names touched": ("touch /hard1", "C /hard1"),
    "made and deleted": ("echo t > /t; rm /t", ""),
    "same size and time": ("cp -p /five /tmp/t; echo -n abcde > /five; touch -r /tmp/t /five", ""),
    "a link to another": ("ln -sf y /a/link", "C /a, C /a/link"),
    "odd names": ("echo > '/a/ new line'; echo > '/a/.wh.x'", "C /a, A /a/ new line, A /a/.wh.x"),
}  # fmt: skip


@pytest.fixture
def overlay(busybox_root: Path, tmp_path: Path) -> ck.OverlayFS:
    image = tmp_path / "image"
    image.mkdir()
    os.system(f"cd {image} && {{ {IMAGE} }}")  # noqa: S605
    for path in image.rglob("*"):
        os.utime(path, (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    return ck.OverlayFS([image, busybox_root], tmp_path / "upper", tmp_path / "work")


def changes(overlay: ck.OverlayFS) -> set[str]:
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (overlay.upper, *overlay.lower)]  # type: ignore[arg-type]
    try:
        return {str(change) for change in diff(fds[0], fds[1:])}
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_told_as_docker_tells_it(case: str, overlay: ck.OverlayFS) -> None:
    script, expected = CASES[case]
    ck.run(["sh", "-c", script], rootfs=overlay, security=ck.Security.compat(), check=True)
    assert changes(overlay) == set(filter(None, expected.split(", ")))


def test_what_a_middle_layer_hides_is_not_there_to_be_deleted(tmp_path: Path) -> None:
    for name in ("upper", "middle", "bottom"):
        (tmp_path / name / "d").mkdir(parents=True)
    (tmp_path / "bottom/d/x").touch()
    (tmp_path / "bottom/d/y").touch()
    os.setxattr(tmp_path / "middle/d", "user.overlay.opaque", b"y")
    os.mknod(tmp_path / "upper/d/x", stat.S_IFCHR, 0)
    (tmp_path / "upper/d/y").touch()
    overlay = ck.OverlayFS([tmp_path / "middle", tmp_path / "bottom"], tmp_path / "upper", tmp_path / "work")
    assert changes(overlay) == {"C /d", "A /d/y"}
