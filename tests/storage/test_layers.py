"""Layers of a store: staged, kept, found; and those that need what is below them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from archives import archive, entry
from stored import layer

import containerkit as ck
from containerkit.images.digest import Digest
from containerkit.layers.apply import Applied, apply
from containerkit.storage.layers import Staged
from containerkit.storage.leases import Lease
from containerkit.store import Store


def fill(staged: Staged, data: bytes, *, onto: bool = False) -> Applied:
    return apply(io.BytesIO(data), staged.fd, onto=onto, owners=os.geteuid() == 0)


def keep(store: Store, lease: Lease, data: bytes) -> str:
    with store.layers.stage(lease) as staged:
        applied = fill(staged, data)
        staged.keep(applied.diff_id, applied.diff_id, applied)
    return applied.diff_id


@pytest.mark.both
def test_what_is_not_kept_is_deleted(store: Store) -> None:
    with store.lease() as lease:
        with store.layers.stage(lease) as staged:
            fill(staged, layer("a"))
        with pytest.raises(ck.ClosedHandle):
            staged.keep("key", "key", fill_nothing())
    store.trash.empty_now()
    assert [os.listdir(f"{store.path}/{name}") for name in ("staging", "trash", "layers")] == [[], [], []]


def fill_nothing() -> Applied:
    return Applied("", 0, 0, 0, None, (), 0)


@pytest.mark.both
def test_of_two_who_unpack_the_same_the_first_is_kept(store: Store) -> None:
    with store.lease() as lease, store.layers.stage(lease) as first, store.layers.stage(lease) as second:
        one, two = fill(first, layer("a")), fill(second, layer("a"))
        assert first.keep(one.diff_id, one.diff_id, one)
        assert not second.keep(two.diff_id, two.diff_id, two)
        assert store.layers.path(one.diff_id)
    assert os.listdir(f"{store.path}/staging") == []


@pytest.mark.both
def test_one_that_was_kept_by_a_killed_program_is_made_anew(store: Store) -> None:
    with store.lease() as lease:
        key = keep(store, lease, layer("a"))
        old = store.layers.path(key)
        with store.database.write() as rows:
            rows.execute("UPDATE layers SET lease = 'dead'")
        assert not store.layers.has(key)
        keep(store, lease, layer("a"))
        assert store.layers.has(key)
        assert store.layers.path(key) != old
        store.collect()
        assert len(os.listdir(f"{store.path}/layers")) == 1


@pytest.mark.both
def test_a_whiteout_is_asked_for_in_the_layers_below(store: Store) -> None:
    with store.lease() as lease:
        keys = [
            keep(store, lease, archive([entry("d/"), entry("d/file", "x"), entry("d/link", "@/etc")])),
            keep(store, lease, archive([entry("e/"), entry("e/.wh.gone", "")])),
        ]
        assert store.layers.exist([], [])
        assert store.layers.exist([b"d/file", b"d/link", b"e"], keys)
        for path in (b"e/gone", b"d/link/passwd", b"../../../etc/passwd", b"nothing"):
            assert not store.layers.exist([path], keys), path


@pytest.mark.root
def test_a_layer_that_needs_those_below_it_is_made_upon_them(store: Store) -> None:
    below = archive([entry("d/", mode=0o711), entry("d/kept", "kept"), entry("d/gone", "gone")])
    above = archive([entry("d/new", "new"), entry("d/link", "=d/kept"), entry("d/.wh.gone", "")])
    with store.lease() as lease:
        key = keep(store, lease, below)
        with store.layers.stage(lease) as staged:
            assert fill(staged, above).dependent
        with store.layers.stage(lease, below=[key]) as staged:
            assert staged.keep("chain", "diff", fill(staged, above, onto=True))
        upper = Path(store.layers.path("chain"))
        assert sorted(os.listdir(upper / "d")) == ["gone", "kept", "link", "new"]
        assert (upper / "d").stat().st_mode & 0o777 == 0o711
        assert (upper / "d/link").stat().st_ino == (upper / "d/kept").stat().st_ino
    assert os.listdir(f"{store.path}/staging") == []


@pytest.mark.both
def test_a_digest_is_no_path(store: Store) -> None:
    with pytest.raises(ck.StoreError, match="no layer"):
        store.layers.path("../../etc")
    assert not store.layers.has(Digest.of(b"x"))
