"""What fsck finds, what it does about it, and what it leaves alone."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from stored import made, put, tree

import containerkit as ck
from containerkit.storage import sweep
from containerkit.store import Store

pytestmark = pytest.mark.both


def lose_tree(store: Store, key: str) -> None:
    shutil.rmtree(Path(store.layers.path(key)).parent)


def blob(store: Store, digest: str) -> Path:
    return Path(store.path, "blobs", digest.replace(":", "/"))


def test_a_store_that_is_well_is_clean(store: Store) -> None:
    image = put(store, made("a"), "x")
    report = store.fsck(deep=True)
    assert (report.clean, report.swept) == (True, sweep.Swept())
    assert store.images.list() == [image]


def test_a_lost_tree_is_unpacked_again_from_its_blob(store: Store) -> None:
    new = made("a", "b")
    image = put(store, new, "x")
    lose_tree(store, new.config.diff_ids[0])
    (problem,) = store.fsck().problems
    assert (problem.kind, problem.what, problem.repair) == (
        "layer",
        new.config.diff_ids[0],
        "unpacked again from its blob",
    )
    with image.hold() as held:
        assert tree(held.root) == ["a", "b"]
    assert store.fsck(deep=True).clean


def test_a_lost_tree_without_a_blob_takes_its_images_with_it(store: Store) -> None:
    new, other = made("a", "b"), made("b")
    put(store, new, "x"), put(store, other, "y")
    lose_tree(store, new.config.diff_ids[0])
    blob(store, new.manifest.layers[0].digest).unlink()
    report = store.fsck()
    assert {problem.kind for problem in report.problems} == {"layer", "blob"}
    assert [image.names for image in store.images.list()] == [["docker.io/library/y:latest"]]
    assert store.fsck(deep=True).clean


@pytest.mark.parametrize("deep", [False, True])
def test_a_blob_of_another_content_is_found_by_reading_it_and_comes_back_with_its_image(
    store: Store, deep: bool
) -> None:
    new = made("a")
    image, part = put(store, new, "x"), new.manifest.layers[0]
    blob(store, part.digest).write_bytes(bytes(part.size))
    report = store.fsck(deep=deep)
    assert [problem.kind for problem in report.problems] == (["blob"] if deep else [])
    with image.hold() as held:
        assert tree(held.root) == ["a"]
    if deep:
        with pytest.raises(ck.StoreError, match="no blob"):
            store.blobs.open(part.digest)
        put(store, new, "x")
        assert store.blobs.has(part.digest)
        assert store.fsck(deep=True).clean


def test_a_blob_of_another_length_is_found_at_once(store: Store) -> None:
    part = made("a").manifest.layers[0]
    put(store, made("a"), "x")
    os.truncate(blob(store, part.digest), 3)
    with pytest.raises(ck.StoreError, match="fsck"):
        store.blobs.open(part.digest)
    assert [problem.kind for problem in store.fsck().problems] == ["blob"]


def test_an_image_that_is_not_what_its_digest_says_is_removed(store: Store) -> None:
    put(store, made("a"), "x")
    with store.database.write() as rows:
        rows.execute("UPDATE images SET config = ?", (made("b").config.raw,))
    assert [problem.kind for problem in store.fsck().problems] == ["image"]
    assert store.images.list() == []
    assert os.listdir(f"{store.path}/layers") == []


def test_without_repair_it_only_tells(store: Store) -> None:
    new = made("a")
    put(store, new, "x")
    lose_tree(store, new.config.diff_ids[0])
    first = store.fsck(repair=False)
    assert store.fsck(repair=False) == first
    assert first.problems[0].repair is None


def test_leftovers_are_swept_and_are_no_damage(store: Store, path: Path) -> None:
    put(store, made("a"), "x")
    for name in ("layers/stranger/d", "staging/0123.abcd/d", "trash/abcd/d", "blobs/sha256/" + "0" * 64):
        (path / name).mkdir(parents=True)
    (path / "leases/0123").touch()
    report = store.fsck()
    assert (report.clean, report.swept.leftovers) == (True, 3)
    assert [os.listdir(path / name) for name in ("staging", "trash", "leases")] == [[], [], []]
    assert len(os.listdir(path / "layers")) == 1


def test_what_a_running_operation_makes_is_no_leftover(store: Store) -> None:
    new = made("a")
    with store.lease() as lease, store.layers.stage(lease) as staged:
        (Path(store.path) / "x").touch()
        os.mkdir("d", dir_fd=staged.fd)
        assert store.fsck(deep=True).clean
        assert os.listdir(staged.fd) == ["d"]
    assert os.listdir(f"{store.path}/staging") == []
    put(store, new, "x")


def test_a_lost_tree_whose_blob_is_wrong_takes_its_images_with_it(store: Store) -> None:
    new = made("a")
    put(store, new, "x")
    lose_tree(store, new.config.diff_ids[0])
    part = new.manifest.layers[0]
    blob(store, part.digest).write_bytes(bytes(part.size))
    (problem,) = store.fsck().problems
    assert problem.repair == "removed, with 1 images that need it"
    assert store.images.list() == []


def test_an_error_that_may_pass_is_no_reason_to_give_an_image_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    new = made("a")
    image = put(store, new, "x")
    lose_tree(store, new.config.diff_ids[0])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "unpacking", full)
        (problem,) = store.fsck().problems
        assert problem.repair is not None
        assert "No space" in problem.repair
        assert store.images.list() == [image]
    assert [problem.kind for problem in store.fsck().problems] == ["layer"]
    assert store.fsck(deep=True).clean
    with image.hold() as held:
        assert tree(held.root) == ["a"]
