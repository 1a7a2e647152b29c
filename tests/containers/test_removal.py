"""What is removed is gone, what runs is not removed, and what a kill leaves is found."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import containerkit as ck
from containerkit.containers.container import Container
from containerkit.images.image import Image
from containerkit.storage.locks import try_lock
from containerkit.store import Store

pytestmark = pytest.mark.both


def directories(store: Store) -> list[str]:
    return os.listdir(Path(store.path) / "containers")


def test_a_removed_container_is_gone(store: Store, image: Image) -> None:
    made = store.containers.create(image, name="one")
    made.remove()
    assert directories(store) == []
    assert "one" not in store.containers
    for gone in (made.remove, made.row, lambda: made.name, lambda: made.directory):
        with pytest.raises(ck.ContainerNotFound, match="one"):
            gone()
    store.containers.create(image, name="one")
    store.trash.wait()
    assert os.listdir(Path(store.path) / "trash") == []


def test_one_whose_lock_is_held_runs(store: Store, image: Image) -> None:
    made = store.containers.create(image)
    held = try_lock(made.directory.fileno(), "lock")
    assert held is not None
    with held, pytest.raises(ck.WrongState, match="stop it first"):
        made.remove()
    assert directories(store) == [made.id]
    made.remove()


def test_of_many_that_remove_it_one_has_removed_it(store: Store, image: Image) -> None:
    made = store.containers.create(image)
    done: list[object] = []

    def remove() -> None:
        try:
            store.containers.get(made.id).remove()
            done.append(None)
        except (ck.ContainerNotFound, ck.WrongState) as error:
            done.append(error)

    threads = [threading.Thread(target=remove) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count(None) == 1
    assert directories(store) == []


def test_a_directory_without_a_row_is_collected(store: Store, image: Image) -> None:
    kept = store.containers.create(image)
    left = Path(store.path) / "containers" / ("0" * 64)
    (left / "rw/upper").mkdir(parents=True)
    assert store.collect().leftovers == 1
    assert store.collect().leftovers == 0
    assert directories(store) == [kept.id]


def test_a_row_without_a_directory_can_be_removed(store: Store, image: Image) -> None:
    made = store.containers.create(image)
    store.trash.take(store.home.directory("containers"), made.id)
    made.remove()
    assert store.containers.list(all=True) == []


def test_an_image_of_a_container_stays(store: Store, image: Image) -> None:
    made = store.containers.create(image, name="user-1")
    for force in (False, True):
        with pytest.raises(ck.InUse, match="user-1"):
            store.images.remove(image.id, force=force)
        with pytest.raises(ck.InUse, match="user-1"):
            store.images.remove("test:1", force=force)
    assert store.images.prune(all=True).deleted == ()
    assert store.disk_usage().images[0].in_use
    store.images.tag(image, "test:2")
    assert store.images.remove("test:1").untagged == ("docker.io/library/test:1",)
    made.remove()
    store.images.remove("test:2")


def test_prune_removes_what_does_not_run(store: Store, image: Image) -> None:
    one = store.containers.create(image, labels={"keep": "yes"})
    two = store.containers.create(image, labels={"keep": "no"})
    busy = store.containers.create(image)
    held = try_lock(busy.directory.fileno(), "lock")
    assert held is not None
    with held:
        assert store.containers.prune(label="keep=no").containers == (two.id,)
        assert store.containers.prune(until=one.created).containers == ()
        assert store.containers.prune().containers == (one.id,)
    assert store.containers.list(all=True) == [busy]


def test_a_forgotten_container_keeps_no_descriptor(store: Store, image: Image) -> None:
    def look(container: Container) -> int:
        return container.directory.fileno()

    fd = look(store.containers.create(image))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_was_written_is_counted(store: Store, image: Image) -> None:
    ran = store.containers.run(image, ["sh", "-c", "seq 100000 > /file; seq 1000 > /data/file"], volumes=["/data"])
    assert ran.ok, ran.stderr
    usage = store.disk_usage()
    assert usage.containers > 500_000
    assert 3_000 < usage.volumes < 100_000
    said = ran.container.inspect(size=True)
    assert said["SizeRw"] == usage.containers
    assert said["SizeRootFs"] > said["SizeRw"]
    assert store.containers.prune(volumes=True).size == usage.containers
    assert store.disk_usage()[-2:] == (0, 0)


def test_a_container_without_its_files_is_found_and_removed(store: Store, image: Image) -> None:
    whole, lost, torn = (store.containers.create(image, name=name) for name in ("whole", "lost", "torn"))
    assert store.fsck().clean
    store.trash.take(store.home.directory("containers"), lost.id)
    os.rmdir(Path(store.path) / "containers" / torn.id / "rw/work")
    found = store.fsck(repair=False).problems
    assert {(problem.kind, problem.what, problem.repair) for problem in found} == {
        ("container", "lost", None),
        ("container", "torn", None),
    }
    assert {problem.repair for problem in store.fsck().problems} == {"removed"}
    assert store.fsck().clean
    assert store.containers.list(all=True) == [whole]
