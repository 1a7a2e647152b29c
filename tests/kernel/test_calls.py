"""System calls that need more than their number."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerkit import Bind, run
from containerkit._native._ck import lib
from containerkit.kernel import calls

UP_AND_DOWN = "a/../a/../"
RENAMING = "import os\nopen('x', 'w').close()\nwhile True: os.rename('x', 'y'), os.rename('y', 'x')"


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    """A directory with ``a``, while somebody renames something: anywhere would do."""
    (tmp_path / "a").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with subprocess.Popen([sys.executable, "-c", RENAMING], cwd=tmp_path / "elsewhere") as renaming:
        try:
            yield tmp_path
        finally:
            renaming.kill()


def test_a_path_that_goes_up_is_resolved_though_others_rename(busy: Path) -> None:
    root = os.open(busy, os.O_PATH)
    try:
        path = UP_AND_DOWN.encode()
        # Without asking again it fails now and then: wait until it has.
        while (fd := lib.ck_openat2(root, path, os.O_PATH | os.O_CLOEXEC, 0, calls.RESOLVE_IN_ROOT)) != -errno.EAGAIN:
            os.close(fd)
        for _ in range(2000):
            os.close(calls.open_in_root(root, UP_AND_DOWN))
    finally:
        os.close(root)


@pytest.mark.both
def test_a_mount_goes_through_a_link_that_goes_up_though_others_rename(busy: Path, busybox_root: Path) -> None:
    root = busy / "root"
    (root / "a/data").mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "link").symlink_to(UP_AND_DOWN + "a")
    for _ in range(20):
        mounts = [Bind(busybox_root / "bin", "/bin"), Bind(busy, "/link/data")]
        assert run(["/bin/busybox", "true"], rootfs=root, mounts=mounts).ok
