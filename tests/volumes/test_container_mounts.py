"""Mounts of a container: volumes that are filled on their first use, binds that are looked at again, files in /etc."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from archives import archive, entry
from made_images import MadeImage
from stored import put

from containerkit import Bind, File, InUse, InvalidValue, NotFound, Tmpfs, VolumeNotFound, run
from containerkit.images.image import Image
from containerkit.store import Store
from containerkit.volumes import copy_up
from containerkit.volumes.container_mounts import check_mounts, container_mounts, use
from containerkit.volumes.volume_mounts import VolumeMount, complete

pytestmark = pytest.mark.both

LOW = [
    "bin/", entry("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
    *(entry(f"bin/{name}", "@busybox") for name in ("sh", "cat", "ls", "stat", "touch", "rm", "echo", "ln", "mv")),
    "data/", entry("data/hidden", "low"), entry("data/kept", "low"), entry("data/sub/"), entry("data/sub/x", "x"),
    entry("links/"), entry("links/data", "@/data"), entry("links/out", "@../../../../etc"),
]  # fmt: skip
TOP = [entry("data/", mode=0o2750), entry("data/.wh.hidden", ""), entry("data/new", "top")]


@pytest.fixture
def image(store: Store) -> Image:
    return put(store, MadeImage([archive(LOW), archive(TOP)], Volumes={"/data": {}}))


def spec(*mounts: Any, **options: Any) -> Any:
    fields: dict[str, Any] = {
        "hostname": None, "domainname": None, "network": "none", "extra_hosts": {}, "dns": None,
    }  # fmt: skip
    return SimpleNamespace(mounts=complete(mounts), **{**fields, **options})


def used(store: Store, image: Image, what: Any, container: str = "c") -> None:
    with store.database.write() as rows:
        rows.execute(
            "INSERT OR IGNORE INTO containers VALUES (?, ?, ?, '{}', 'created', NULL, ?)",
            (container, container, image.id, time.time()),
        )
        use(store, rows, container, what.mounts)


def said(store: Store, image: Image, what: Any, script: str, **options: Any) -> str:
    """What a script says in a container of this spec; both its outputs."""
    with image.hold() as held:
        mounts = container_mounts(store, what, held.root)
        done = run(["/bin/sh", "-c", f"exec 2>&1\n{script}"], rootfs=image, mounts=mounts, **options)
    return done.stdout


# ---- volumes ---------------------------------------------------------------------------------------------------------


def test_a_volume_is_made_on_its_first_use_and_kept(store: Store, image: Image) -> None:
    what = spec("data:/v")
    used(store, image, what)
    said(store, image, what, "echo written > /v/file")
    assert said(store, image, what, "cat /v/file") == "written\n"
    volume = store.volumes.get("data")
    assert (Path(volume.path) / "file").read_text() == "written\n"
    assert os.stat(f"{volume.path}/file").st_uid == os.geteuid()  # as the program saw it, or the caller's own
    with pytest.raises(InUse, match="used by c"):
        volume.remove()


def test_two_containers_of_other_ids_share_a_volume(store: Store, image: Image) -> None:
    what = spec("data:/v")
    used(store, image, what)
    said(store, image, what, "echo one > /v/file; stat -c %u /v/file")
    assert said(store, image, what, "echo two >> /v/file; stat -c %u /v /v/file; cat /v/file") == "0\n0\none\ntwo\n"


def test_a_read_only_volume_is_not_written(store: Store, image: Image) -> None:
    what = spec("data:/v:ro")
    used(store, image, what)
    assert "Read-only file system" in said(store, image, what, "touch /v/x")


def test_a_snapshot_is_read_only_whatever_is_asked(store: Store, image: Image) -> None:
    store.volumes.create("data").snapshot("before")
    what = spec("before:/v")
    used(store, image, what)
    assert "Read-only file system" in said(store, image, what, "touch /v/x")


def test_volumes_of_the_image_are_anonymous_and_filled(store: Store, image: Image) -> None:
    what = spec()
    what.mounts = complete((), image.config.volumes)
    used(store, image, what)
    (volume,) = store.volumes.list()
    assert volume.anonymous
    assert said(store, image, what, "ls /data") == "kept\nnew\nsub\n"


def test_a_volume_that_was_taken_away_is_named(store: Store, image: Image) -> None:
    with pytest.raises(VolumeNotFound, match="'data'"):
        said(store, image, spec("data:/v"), "true")


def test_mounts_within_mounts_come_after_them(store: Store, image: Image) -> None:
    what = spec("inner:/v/in", "outer:/v", Tmpfs("/v/in/deep/tmp"))
    used(store, image, what)
    with image.hold() as held:
        targets = [mount.target for mount in container_mounts(store, what, held.root)]
    assert targets == [b"/v", b"/v/in", b"/etc/hosts", b"/v/in/deep/tmp"]
    assert said(store, image, what, "touch /v/in/x; ls /v/in") == "deep\nx\n"


# ---- the first use ---------------------------------------------------------------------------------------------------


def test_the_image_fills_a_new_volume_with_what_its_layers_show(store: Store, image: Image) -> None:
    what = spec("data:/data")
    used(store, image, what)
    assert (
        said(store, image, what, "ls /data; cat /data/kept /data/new; stat -c %a /data")
        == "kept\nnew\nsub\nlowtop2750\n"
    )
    assert sorted(os.listdir(os.path.dirname(store.volumes.get("data").path))) in (["d"], ["d", "lock"])


def test_what_a_program_has_removed_does_not_come_back(store: Store, image: Image) -> None:
    what = spec("data:/data")
    used(store, image, what)
    said(store, image, what, "rm -r /data/*")
    assert said(store, image, what, "ls /data") == ""


@pytest.mark.parametrize("how", ["nocopy", "not empty", "no such directory", "a link out"])
def test_a_volume_is_left_alone(store: Store, image: Image, how: str) -> None:
    what = spec({"nocopy": "data:/data:nocopy", "a link out": "data:/links/out"}.get(how, "data:/data"))
    if how == "no such directory":
        what = spec("data:/missing")
    used(store, image, what)
    if how == "not empty":
        (Path(store.volumes.get("data").path) / "mine").touch()
    with image.hold() as held:
        container_mounts(store, what, held.root)
    assert os.listdir(store.volumes.get("data").path) == (["mine"] if how == "not empty" else [])


def test_a_link_in_the_image_is_resolved_in_the_image(store: Store, image: Image) -> None:
    what = spec("data:/links/data")
    used(store, image, what)
    with image.hold() as held:
        container_mounts(store, what, held.root)
    assert sorted(os.listdir(store.volumes.get("data").path)) == ["kept", "new", "sub"]


def test_of_two_containers_that_start_at_once_one_fills_it(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = spec("data:/data")
    used(store, image, what)
    count, begun, go = [], threading.Event(), threading.Event()
    fill, real = copy_up._fill, copy_up.copy_merged

    def slow(*args: Any) -> bool:
        count.append(1)
        begun.set()
        assert go.wait(30)
        return real(*args)

    def filling(*args: Any) -> None:
        if os.geteuid() != 0:
            begun.set()
        fill(*args)

    monkeypatch.setattr(copy_up, "copy_merged", slow)
    monkeypatch.setattr(copy_up, "_fill", filling)

    def start() -> None:
        with image.hold() as held:
            container_mounts(store, what, held.root)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(os.listdir(store.volumes.get("data").path)) == ["kept", "new", "sub"]
    assert len(count) == (os.geteuid() == 0)


_STARTS = """
import os, sys
from types import SimpleNamespace
from containerkit.store import Store
from containerkit.volumes import trees
from containerkit.volumes.copy_up import first_use
from containerkit.volumes.volume_mounts import VolumeMount
with Store(sys.argv[1]) as store, store.images.list()[0].hold() as held:
    def stop():
        print("copied", flush=True)
        sys.stdin.read()
    store.home.sync = stop
    first_use(store, VolumeMount("data", "/data"), held.root)
"""


def test_a_kill_while_it_is_filled_leaves_it_empty_and_the_next_start_fills_it(store: Store, image: Image) -> None:
    what = spec("data:/data")
    used(store, image, what)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _STARTS, store.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"copied\n"
        child.kill()
    assert os.listdir(store.volumes.get("data").path) == []
    assert said(store, image, what, "ls /data") == "kept\nnew\nsub\n"


# ---- subpath ---------------------------------------------------------------------------------------------------------


def test_a_subpath_is_all_that_is_seen(store: Store, image: Image) -> None:
    volume = store.volumes.create("data")
    (Path(volume.path) / "a/b").mkdir(parents=True)
    (Path(volume.path) / "a/b/file").write_text("here\n")
    what = spec(VolumeMount("data", "/v", subpath="a/b"), VolumeMount("data", "/f", subpath="a/b/file"))
    used(store, image, what)
    assert said(store, image, what, "ls /v; cat /f; touch /v/new && stat -c %u /v/new") == "file\nhere\n0\n"
    assert sorted(os.listdir(f"{volume.path}/a/b")) == ["file", "new"]


@pytest.mark.parametrize("target", ["/etc", "../../../../../etc", "real"])
def test_a_link_in_a_subpath_is_refused(store: Store, image: Image, target: str) -> None:
    volume = store.volumes.create("data")
    (Path(volume.path) / "real").mkdir()
    (Path(volume.path) / "sub").symlink_to(target)
    what = spec(VolumeMount("data", "/v", subpath="sub"))
    used(store, image, what)
    with pytest.raises(OSError, match="no link"):
        said(store, image, what, "ls /v")
    with pytest.raises(NotFound, match="must be there"):
        said(store, image, spec(VolumeMount("data", "/v", subpath="missing")), "ls /v")


# ---- binds -----------------------------------------------------------------------------------------------------------


def test_a_bind_that_hands_the_host_over_is_refused_unless_it_is_trusted(store: Store, image: Image) -> None:
    for source in ("/etc", store.path, f"{store.path}/volumes"):
        with pytest.raises(InvalidValue, match="trusted=True"):
            check_mounts(store, [Bind(source, "/x")])
        with pytest.raises(InvalidValue, match="trusted=True"):
            said(store, image, spec(Bind(source, "/x")), "true")
    assert "passwd" in said(store, image, spec(Bind("/etc", "/x", trusted=True)), "ls /x")


def test_a_directory_of_the_host_is_seen_as_it_is_asked_for(store: Store, image: Image, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    what = spec(f"{tmp_path}/host:/x", f"{tmp_path}/host:/ro:ro", Bind(tmp_path / "host/new", "/n", create="dir"))
    check_mounts(store, what.mounts)
    assert "Read-only" in said(store, image, what, "touch /x/file /ro/file")
    assert sorted(os.listdir(tmp_path / "host")) == ["file", "new"]


def test_a_source_that_is_missing_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="create="):
        check_mounts(store, [Bind(tmp_path / "missing", "/x")])


# ---- /etc ------------------------------------------------------------------------------------------------------------


def test_the_files_of_etc_are_ours(store: Store, image: Image) -> None:
    what = spec(hostname="box", domainname="example.org", dns=["192.0.2.1"], extra_hosts={"db": "192.0.2.7"})
    assert said(store, image, what, "cat /etc/hostname /etc/resolv.conf /etc/hosts") == (
        "box\nnameserver 192.0.2.1\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        "127.0.1.1\tbox.example.org box\n192.0.2.7\tdb\n"
    )


def test_what_the_caller_mounts_there_counts_more(store: Store, image: Image) -> None:
    what = spec(File("/etc/hosts", "mine\n"), hostname="box")
    assert said(store, image, what, "cat /etc/hosts") == "mine\n"


def test_with_the_network_of_the_host_they_are_the_hosts(store: Store, image: Image) -> None:
    what = spec(network="host", extra_hosts={"db": "192.0.2.7"})
    assert said(store, image, what, "cat /etc/hosts", network="host").endswith("192.0.2.7\tdb\n")
    assert said(store, image, what, "cat /etc/resolv.conf", network="host") == Path("/etc/resolv.conf").read_text()
