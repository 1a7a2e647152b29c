"""Volumes whose programs mean harm, and removals that come at the wrong moment; each with what falls for it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mountinfo
import pytest
from attack.racer import Racer
from stored import made, put

from containerkit import Bind, ContainerkitError, InUse, VolumeNotFound, run
from containerkit.overlayfs import OverlayFS
from containerkit.store import Store
from containerkit.volumes.container_mounts import container_mounts, use
from containerkit.volumes.volume import Volume
from containerkit.volumes.volume_mounts import VolumeMount

SECRET, GOOD = "secret of the host\n", "made in containers\n"  # of one length


@pytest.fixture
def volume(store: Store, tmp_path: Path) -> Volume:
    """With ``sub`` and ``evil`` in it: the one a directory, the other a link to a directory of the host like it."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/file").write_text(SECRET)
    volume = store.volumes.create("data")
    (Path(volume.path) / "sub").mkdir()
    (Path(volume.path) / "sub/file").write_text(GOOD)
    (Path(volume.path) / "evil").symlink_to(tmp_path / "host")
    (Path(volume.path) / "file").write_text(GOOD)
    (Path(volume.path) / "link").symlink_to(tmp_path / "host/file")
    return volume


def spec(*mounts: object) -> Any:
    return SimpleNamespace(mounts=mounts, hostname=None, domainname=None, network="none", extra_hosts={}, dns=None)


def seen(root: Path, mounts: list[Any]) -> str:
    try:
        return run(["/bin/cat", "/v/file"], rootfs=root, mounts=mounts).stdout
    except (ContainerkitError, OSError):
        return ""


# ---- a subpath that is exchanged -------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("A04", control="test_a_naive_subpath_is_led_to_the_host")
def test_a_subpath_exchanged_under_way_never_shows_the_host(
    store: Store, volume: Volume, busybox_root: Path, record_property: Callable[[str, object], None]
) -> None:
    what = spec(VolumeMount("data", "/v", subpath="sub"))
    root = OverlayFS(busybox_root)
    found = set()
    path = Path(volume.path)
    with Racer() as racer:
        for _ in range(60):
            with racer.swapping(path / "sub", path / "evil"):
                try:
                    mounts = container_mounts(store, what, root)
                except OSError:
                    continue
                found.add(seen(busybox_root, mounts))
    assert found <= {GOOD, ""}
    assert racer.exchanges > 60
    record_property("attempts", racer.exchanges)


@pytest.mark.both
def test_a_naive_subpath_is_led_to_the_host(volume: Volume, busybox_root: Path) -> None:
    path = Path(volume.path)
    assert not (path / "sub").is_symlink()
    (path / "sub").rename(path / "away")  # the worst moment for an exchange
    (path / "evil").rename(path / "sub")
    assert seen(busybox_root, [Bind(path / "sub", "/v")]) == SECRET


# ---- an archive of what is exchanged ---------------------------------------------------------------------------------


def content(archive: io.BytesIO) -> bytes:
    archive.seek(0)
    return archive.read()


@pytest.mark.root
@pytest.mark.attack("D05", control="test_tarfile_follows_a_link_that_is_exchanged")
def test_a_backup_under_way_never_has_what_a_link_leads_to(
    volume: Volume, record_property: Callable[[str, object], None]
) -> None:
    path = Path(volume.path)
    with Racer() as racer:
        for first, second in (("file", "link"), ("sub", "evil")):
            for _ in range(100):
                out = io.BytesIO()
                with racer.swapping(path / first, path / second):
                    try:
                        volume.backup(out)
                    except OSError:  # a name was another thing when it was opened
                        continue
                assert SECRET.encode() not in content(out)
    record_property("attempts", racer.exchanges)


@pytest.mark.root
def test_tarfile_follows_a_link_that_is_exchanged(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = Path(volume.path), io.BytesIO()

    def at_the_worst_moment(name: Path, mode: str) -> Any:
        """Between the look at what it is and the opening of it."""
        (path / "link").rename(path / "file")
        return open(name, mode)

    monkeypatch.setattr(tarfile, "bltn_open", at_the_worst_moment)
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(path / "file", "file")
    assert SECRET.encode() in content(out)


# ---- prune against everybody -----------------------------------------------------------------------------------------


def begin(store: Store, image: str, container: str, volume: str) -> None:
    with store.database.write(durable=False) as rows:
        rows.execute(
            "INSERT INTO containers VALUES (?, ?, ?, '{}', 'created', NULL, ?)",
            (container, container, image, time.time()),
        )
        use(store, rows, container, [VolumeMount(volume, "/v", anonymous=True)])


def end(store: Store, container: str) -> None:
    with store.database.write(durable=False) as rows:
        rows.execute("DELETE FROM containers WHERE id = ?", (container,))


@pytest.mark.both
@pytest.mark.attack("J03", control="test_a_naive_prune_takes_what_is_used_by_then")
def test_a_prune_never_takes_a_volume_that_a_container_has(
    store: Store, record_property: Callable[[str, object], None]
) -> None:
    image = str(put(store, made("file")).id)
    done, problems, pruned = threading.Event(), [], []

    def live(number: int) -> None:
        for count in range(40):
            name = f"volume-{number % 2}"
            begin(store, image, f"c{number}-{count}", name)
            mark = Path(store.path) / "volumes" / name / "d" / f"{number}-{count}"
            try:
                mark.touch()
                time.sleep(0.001)
                if not mark.exists():
                    problems.append(str(mark))
                with pytest.raises(InUse):
                    store.volumes.remove(name)
            except OSError as error:
                problems.append(str(error))
            end(store, f"c{number}-{count}")

    def prune() -> None:
        while not done.is_set():
            pruned.extend(store.volumes.prune().volumes)

    pruning = threading.Thread(target=prune)
    living = [threading.Thread(target=live, args=(number,)) for number in range(3)]
    for thread in (pruning, *living):
        thread.start()
    for thread in living:
        thread.join()
    done.set()
    pruning.join()
    assert problems == []
    assert pruned
    record_property("attempts", len(pruned))


@pytest.mark.both
def test_a_naive_prune_takes_what_is_used_by_then(store: Store) -> None:
    image = str(put(store, made("file")).id)
    store.volumes.create("data")
    candidates = store.volumes.list(dangling=True)
    begin(store, image, "c", "data")
    for volume in candidates:
        shutil.rmtree(os.path.dirname(volume.path))
    assert not os.path.exists(store.volumes.get("data").path)


@pytest.mark.both
def test_what_is_removed_while_it_is_used_is_an_error_that_says_so(store: Store, busybox_root: Path) -> None:
    what = spec(VolumeMount("data", "/v"))
    with pytest.raises(VolumeNotFound, match="'data'"):
        container_mounts(store, what, OverlayFS(busybox_root))


# ---- half of a restore -----------------------------------------------------------------------------------------------

_NAIVE = """
import sys, tarfile
with tarfile.open(sys.argv[1]) as tar:
    for member in tar:
        tar.extract(member, sys.argv[2], filter="data")
        print(member.name, flush=True)
        sys.stdin.readline()
"""


@pytest.mark.both
def test_a_naive_restore_that_is_killed_leaves_a_half(store: Store, tmp_path: Path) -> None:
    volume = store.volumes.create("data")
    with tarfile.open(tmp_path / "tar", "w") as tar:
        for name in ("one", "two"):
            tar.addfile(tarfile.TarInfo(name))
    command = [sys.executable, "-c", _NAIVE, str(tmp_path / "tar"), volume.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"one\n"
        child.kill()
    assert os.listdir(volume.path) == ["one"]


# ---- privilege -------------------------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("C10", control="none: the option itself is asked for, as of every bind")
def test_a_volume_gives_no_privilege_and_no_device(store: Store, volume: Volume, busybox_root: Path) -> None:
    mounts = container_mounts(store, spec(VolumeMount("data", "/v")), OverlayFS(busybox_root))
    shown = run(["/bin/cat", "/proc/self/mountinfo"], rootfs=busybox_root, mounts=mounts).stdout
    options = {mount.target: mount.options for mount in mountinfo.parse(shown)}["/v"]
    assert {"nosuid", "nodev"} <= set(options)
