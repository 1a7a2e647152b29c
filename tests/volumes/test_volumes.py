"""Volumes: made, found, listed, copied, written to archives and read from them, removed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from archives import archive, entry
from stored import made, put

from containerkit import Exists, InUse, InvalidLayer, InvalidValue, NameTaken, VolumeNotFound
from containerkit.store import Store
from containerkit.volumes.sweep import sweep_volumes
from containerkit.volumes.volume import Volume

pytestmark = pytest.mark.both


def use(store: Store, volume: str, container: str = "web") -> None:
    """A container that has the volume among its mounts, as a row."""
    with store.database.read() as rows:
        image = rows.execute("SELECT id FROM images").fetchone()
    image = image[0] if image else put(store, made("file")).id
    with store.database.write() as rows:
        rows.execute(
            "INSERT INTO containers VALUES (?, ?, ?, '{}', 'created', NULL, ?)",
            (container * 4, container, image, time.time()),
        )
        rows.execute("INSERT INTO volume_uses VALUES (?, ?, '/data', 0)", (container * 4, volume))


def fill(volume: Volume, text: str = "content") -> Path:
    path = Path(volume.path)
    (path / "d").mkdir()
    (path / "d/file").write_text(text)
    (path / "link").symlink_to("/etc/passwd")
    return path


def trash_is_empty(store: Store) -> bool:
    store.trash.wait()
    return os.listdir(store.home.directory("trash")) == []


# ---- made and found --------------------------------------------------------------------------------------------------


def test_a_volume_is_made_found_and_removed(store: Store) -> None:
    volume = store.volumes.create("data", labels={"a": "b"})
    assert (volume.name, volume.labels, volume.anonymous, volume.in_use) == ("data", {"a": "b"}, False, False)
    assert os.stat(volume.path).st_mode & 0o7777 == 0o755
    assert os.stat(os.path.dirname(volume.path)).st_mode & 0o7777 == 0o700
    assert store.volumes.get("data") == volume
    assert "data" in store.volumes
    volume.remove()
    assert "data" not in store.volumes
    assert not os.path.exists(volume.path)
    assert trash_is_empty(store)
    with pytest.raises(VolumeNotFound, match="'data'"):
        store.volumes.get("data")
    with pytest.raises(VolumeNotFound, match="removed"):
        volume.inspect()


def test_a_volume_without_a_name_is_anonymous(store: Store) -> None:
    volume = store.volumes.create()
    assert volume.anonymous
    assert len(volume.name) == 64
    assert repr(volume) == f"<Volume {volume.name[:12]}>"


def test_making_it_again_gives_the_same_one_unless_it_was_to_be_another(store: Store) -> None:
    volume = store.volumes.create("data", labels={"a": "b"})
    assert store.volumes.create("data") == volume
    assert store.volumes.create("data", labels={"a": "b"}) == volume
    assert store.volumes.ensure("data") == volume
    with pytest.raises(NameTaken, match="other labels"):
        store.volumes.create("data", labels={"a": "c"})


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a", ""])
def test_a_name_that_leads_elsewhere_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidValue):
        store.volumes.create(name)
    assert os.listdir(store.home.directory("volumes")) == []
    with pytest.raises(VolumeNotFound):
        store.volumes.remove(name)


def test_lists_are_filtered_as_docker_filters_them(store: Store) -> None:
    for name, labels in (("one", {"k": "v"}), ("two", {"k": "w"}), ("three", {})):
        store.volumes.create(name, labels=labels)
    use(store, "two")
    names = lambda **options: [volume.name for volume in store.volumes.list(**options)]  # type: ignore[arg-type]  # noqa: E731
    assert names() == ["one", "three", "two"]
    assert names(name="t") == ["three", "two"]
    assert names(dangling=True) == ["one", "three"]
    assert names(dangling=False) == ["two"]
    assert names(label="k") == ["one", "two"]
    assert names(label=["k=v"]) == ["one"]


def test_inspect_says_what_docker_says(store: Store) -> None:
    volume = store.volumes.create("data", labels={"a": "b"})
    (Path(volume.path) / "x").write_bytes(b"x" * 100_000)
    said = volume.inspect()
    assert said.pop("UsageData")["Size"] >= 100_000
    assert said.pop("CreatedAt").endswith("Z")
    assert said == {
        "Driver": "local", "Labels": {"a": "b"}, "Mountpoint": volume.path, "Name": "data", "Options": None,
        "Scope": "local",
    }  # fmt: skip


# ---- removed ---------------------------------------------------------------------------------------------------------


def test_a_volume_that_a_container_has_stays(store: Store) -> None:
    volume = store.volumes.create("data")
    fill(volume)
    use(store, "data")
    assert volume.users == ["web"]
    for force in (False, True):
        with pytest.raises(InUse, match="used by web"):
            store.volumes.remove("data", force=force)
    assert store.volumes.prune(all=True).volumes == ()
    assert (Path(volume.path) / "d/file").exists()


def test_removing_what_is_not_there_is_an_error_unless_forced(store: Store) -> None:
    with pytest.raises(VolumeNotFound):
        store.volumes.remove("data")
    store.volumes.remove("data", force=True)


def test_prune_takes_the_anonymous_ones_and_all_takes_every_one(store: Store) -> None:
    named, kept, anonymous = store.volumes.create("data"), store.volumes.create(), store.volumes.create()
    fill(anonymous)
    use(store, kept.name)
    dry = store.volumes.prune(dry_run=True)
    assert dry.volumes == (anonymous.name,)
    assert anonymous.name in store.volumes
    assert store.volumes.prune() == dry
    assert dry.size > 0
    assert store.volumes.prune(all=True, label="other").volumes == ()
    assert store.volumes.prune(all=True).volumes == (named.name,)
    assert [volume.name for volume in store.volumes.list()] == [kept.name]
    assert trash_is_empty(store)


# ---- copies and archives ---------------------------------------------------------------------------------------------


def test_a_clone_goes_its_own_way_and_a_snapshot_says_what_it_is(store: Store) -> None:
    volume = store.volumes.create("data", labels={"a": "b"})
    path = fill(volume)
    clone, snapshot = volume.clone("copy"), volume.snapshot("before")
    (path / "d/file").write_text("changed")
    for copy in (clone, snapshot):
        assert (Path(copy.path) / "d/file").read_text() == "content"
        assert os.readlink(f"{copy.path}/link") == "/etc/passwd"
        assert copy.labels == {"a": "b"}
    assert (clone.read_only, snapshot.read_only) == (False, True)
    assert snapshot.options == {"snapshot": "data"}
    with pytest.raises(NameTaken):
        volume.clone("copy")
    store.trash.empty()
    assert trash_is_empty(store)
    assert os.listdir(store.home.directory("staging")) == []


def test_a_backup_is_restored_into_a_new_volume(store: Store, tmp_path: Path) -> None:
    path = fill(store.volumes.create("data"))
    (path / "d").chmod(0o750)
    os.utime(path / "d/file", ns=(1, 7_000_000_000))
    with open(tmp_path / "backup.tar", "wb") as file:
        packed = store.volumes.get("data").backup(file)
    assert packed.entries == 3
    new = store.volumes.create("new")
    with open(tmp_path / "backup.tar", "rb") as file:
        new.restore(file)
    assert (Path(new.path) / "d/file").read_text() == "content"
    assert os.stat(f"{new.path}/d").st_mode & 0o7777 == 0o750
    assert os.stat(f"{new.path}/d/file").st_mtime_ns == 7_000_000_000
    with open(tmp_path / "backup.tar", "rb") as file, pytest.raises(Exists, match="new and empty"):
        new.restore(file)


def test_a_backup_goes_through_any_file_and_may_be_compressed(store: Store) -> None:
    fill(store.volumes.create("data"))
    out = io.BytesIO()
    store.volumes.get("data").backup(out, compression="gzip")
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert tar.getnames() == ["d", "d/file", "link"]
    out.seek(0)
    new = store.volumes.create("new")
    new.restore(out)
    assert (Path(new.path) / "d/file").read_text() == "content"


def test_a_volume_with_files_is_not_written_over(store: Store) -> None:
    volume = store.volumes.create("data")
    fill(volume)
    with pytest.raises(Exists):
        volume.restore(io.BytesIO(archive([entry("d/other", "x")])))
    assert os.listdir(f"{volume.path}/d") == ["file"]
    store.trash.wait()
    assert sorted(os.listdir(os.path.dirname(volume.path))) == ["d", "lock"]
    assert sweep_volumes(store) == 0
    assert os.listdir(os.path.dirname(volume.path)) == ["d"]


def test_an_archive_that_is_cut_short_or_leads_out_leaves_the_volume_empty(store: Store) -> None:
    volume = store.volumes.create("data")
    good = archive([entry("d/file", b"x" * 100_000)])
    for bad in (good[:50_000], archive([entry("../out", "x")])):
        with pytest.raises(InvalidLayer):
            volume.restore(io.BytesIO(bad))
        assert os.listdir(volume.path) == []
    volume.restore(io.BytesIO(good))
    assert os.listdir(f"{volume.path}/d") == ["file"]


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_what_has_no_row_is_swept_and_a_new_volume_of_that_name_is_empty(store: Store) -> None:
    left = Path(store.path) / "volumes/data/d"
    left.mkdir(parents=True)
    (left / "old").touch()
    volume = store.volumes.create("data")
    assert os.listdir(volume.path) == []
    (Path(store.path) / "volumes/other").mkdir()
    assert sweep_volumes(store) == 1
    assert os.listdir(store.home.directory("volumes")) == ["data"]


def test_a_row_without_a_directory_is_swept(store: Store) -> None:
    volume = store.volumes.create("data")
    os.rename(os.path.dirname(volume.path), f"{store.path}/trash/x")
    assert sweep_volumes(store) == 1
    assert store.volumes.list() == []


_RESTORES = """
import os, sys
from containerkit.store import Store
from containerkit.volumes import trees
unpack = trees.unpack
def stop(*args):
    unpack(*args)
    print("unpacked", flush=True)
    sys.stdin.read()
trees.unpack = stop
with Store(sys.argv[1]) as store, open(sys.argv[2], "rb") as file:
    store.volumes.get("data").restore(file)
"""


def test_a_killed_restore_leaves_the_volume_empty_and_ready_for_another(store: Store, tmp_path: Path) -> None:
    volume = store.volumes.create("data")
    (tmp_path / "tar").write_bytes(archive([entry("file", "x")]))
    command = [sys.executable, "-c", _RESTORES, store.path, str(tmp_path / "tar")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"unpacked\n"
        assert sweep_volumes(store) == 0
        child.send_signal(signal.SIGKILL)
    assert os.listdir(volume.path) == []
    assert sweep_volumes(store) == 1
    with open(tmp_path / "tar", "rb") as file:
        volume.restore(file)
    assert os.listdir(volume.path) == ["file"]


def test_what_happens_to_a_volume_can_be_followed(store: Store) -> None:
    store.volumes.create("data").clone("copy")
    store.volumes.create("data")
    store.volumes.remove("data")
    store.volumes.prune(all=True)
    said = [(event.action, event.id) for event in store.events(type="volume")]
    assert said == [("create", "data"), ("create", "copy"), ("destroy", "data"), ("destroy", "copy")]


def test_a_collection_sweeps_volumes(store: Store) -> None:
    (Path(store.path) / "volumes/left").mkdir()
    assert store.collect().leftovers == 1
    assert os.listdir(store.home.directory("volumes")) == []
