"""Volumes of an ordinary user whose containers have his subordinate ids: files that he himself may not even read."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from mounted import PRIVILEGED

from containerkit import Bind, IdMap, run
from containerkit.kernel import tree
from containerkit.store import Store
from containerkit.volumes.volume import Volume

pytestmark = pytest.mark.rootless


@pytest.fixture
def volume(store: Store, busybox_root: Path) -> Volume:
    """With a tree of ids 5 and 7 inside, closed to everybody else."""
    volume = store.volumes.create("data")
    script = "mkdir /v/d; echo x > /v/d/file; chown 7:8 /v/d /v/d/file; chmod 700 /v/d; chown 5:6 /v; chmod 700 /v"
    mounts = [Bind(volume.path, "/v", read_only=False)]
    run(
        ["/bin/sh", "-ec", script],
        rootfs=busybox_root,
        mounts=mounts,
        idmap=IdMap.subordinate(),
        security=PRIVILEGED,
        check=True,
    )
    with pytest.raises(PermissionError):
        os.listdir(volume.path)
    return volume


def owners(archive: io.BytesIO) -> dict[str, tuple[int, int]]:
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        return {member.name: (member.uid, member.gid) for member in tar}


def test_they_are_counted_written_to_an_archive_and_read_from_it(store: Store, volume: Volume) -> None:
    assert volume.usage().inodes == 3
    out, again = io.BytesIO(), io.BytesIO()
    volume.backup(out)
    assert owners(out) == {"d": (7, 8), "d/file": (7, 8)}
    new = store.volumes.create("new")
    out.seek(0)
    new.restore(out)
    new.backup(again)
    assert owners(again) == owners(out)


def test_they_are_copied_with_their_owners(store: Store, volume: Volume) -> None:
    out = io.BytesIO()
    clone = volume.clone("copy")
    assert os.stat(clone.path).st_uid == os.stat(volume.path).st_uid != os.geteuid()
    clone.backup(out)
    assert owners(out) == {"d": (7, 8), "d/file": (7, 8)}


def test_they_are_deleted(store: Store, volume: Volume) -> None:
    volume.clone("copy")
    assert tree.remove(store.home.directory("volumes"), "copy") != []  # the user alone cannot
    for each in store.volumes.list():
        each.remove()
    store.trash.wait()
    assert os.listdir(store.home.directory("trash")) == []
