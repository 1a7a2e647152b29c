"""Images of an ordinary user, whose files are all his own and who is root inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import AsUser

pytestmark = pytest.mark.root

CODE = """
import os, shutil, tarfile
import containerkit as ck
os.makedirs("root/bin"); shutil.copy("/bin/busybox", "root/bin/busybox"); os.symlink("busybox", "root/bin/sh")
os.makedirs("root/closed/in")
closed = {".": 0o555, "./closed": 0o555, "./closed/in": 0}
def of_the_image(info):
    info.uid, info.gid, info.mode = 0, 0, closed.get(info.name, info.mode)
    return info
with tarfile.open("root.tar", "w") as tar:
    tar.add("root", ".", filter=of_the_image)
with ck.Store(os.path.abspath("store")) as store:
    image = store.images.import_("root.tar", name="mine:1")
    script = "busybox stat -c '%n %a %u' /closed /closed/in; busybox touch /closed/x 2>/dev/null || echo closed"
    print(ck.run(["sh", "-c", script], rootfs=image).stdout, end="")
    os.mkdir("upper"); os.mkdir("work")
    with image.hold() as held:
        overlay = ck.OverlayFS(held.root.lower, "upper", "work")
        ck.run(["sh", "-c", "echo changed > /new"], rootfs=overlay, check=True)
        changed = store.images.commit(overlay, image, name="mine:2")
    store.images.save(["mine:1", "mine:2"], "saved.tar")
    for name in ("mine:1", "mine:2"):
        store.images.remove(name, force=True)
    print(len(store.images.list()))
    store.images.load("saved.tar")
    script = "busybox cat /new; busybox stat -c %u /new"
    print(ck.run(["sh", "-c", script], rootfs=store.images.get("mine:2")).stdout, end="")
    print(store.fsck().problems)
"""


def test_an_ordinary_user_imports_runs_commits_saves_and_loads(as_user: AsUser, tmp_path: Path) -> None:
    assert as_user(CODE).stdout.splitlines() == [
        "/closed 555 0", "/closed/in 0 0", "closed", "0", "changed", "0", "()",
    ]  # fmt: skip
