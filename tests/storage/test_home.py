"""The directory of a store: what becomes one, what is one, and what is never touched."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from stored import made, put

import containerkit as ck
from containerkit.storage.home import MARKER, default_path
from containerkit.store import Store

pytestmark = pytest.mark.both


def contents(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_a_new_directory_an_empty_one_and_a_store_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "new", "deep/er"):
        with Store(tmp_path / name) as store:
            assert store.path == str(tmp_path / name)
            assert os.stat(store.path).st_mode & 0o777 == 0o700


def test_its_uuid_stays_the_same(path: Path) -> None:
    with Store(path) as first, Store(path) as second:
        assert first.home.uuid == second.home.uuid == json.loads((path / MARKER).read_text())["uuid"]


@pytest.mark.attack("J02", control="test_a_new_directory_an_empty_one_and_a_store_can_be_opened")
def test_a_directory_with_anything_in_it_is_refused_and_left_as_it_is(path: Path) -> None:
    path.mkdir(0o700)
    (path / "photos").mkdir()
    (path / "photos/wedding").write_text("precious")
    before = contents(path)
    with pytest.raises(ck.StoreError, match="photos"):
        Store(path)
    assert contents(path) == before


@pytest.mark.attack("J02", control="test_a_new_directory_an_empty_one_and_a_store_can_be_opened")
def test_root_home_and_current_directory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    inside = [str(tmp_path / name) for name in ("home", "here/.", "link")]
    for text in ("/", "//", "/..", *inside, "", ".", "here", "~", "a\0b"):
        with pytest.raises(ck.StoreError):
            Store(text)
    assert contents(tmp_path) == {"home", "here", "link"}


@pytest.mark.attack("J02", control="test_a_new_directory_an_empty_one_and_a_store_can_be_opened")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(ck.StoreError, match="symbolic link"):
        Store(tmp_path / "link")
    assert contents(tmp_path / "target") == set()


@pytest.mark.parametrize("name", ["layers", "trash", "staging", "blobs", "images"])
def test_a_link_in_place_of_one_of_its_directories_is_not_followed(path: Path, name: str) -> None:
    Store(path).close()
    (path / "elsewhere").mkdir()
    (path / "elsewhere/precious").touch()
    (path / name).rename(path / "old")
    (path / name).symlink_to("elsewhere")
    with pytest.raises(ck.StoreError, match=name):
        Store(path)
    assert (path / "elsewhere/precious").exists()


@pytest.mark.parametrize("marker", ["", "{}", "[]", '{"magic": "other", "version": 1, "uuid": "x"}', "\0" * 5000])
def test_a_marker_that_is_none_makes_no_store(path: Path, marker: str) -> None:
    path.mkdir(0o700)
    (path / MARKER).write_text(marker)
    with pytest.raises(ck.StoreError, match="not ours"):
        Store(path)
    assert contents(path) == {MARKER}


def test_a_directory_that_others_may_enter_is_refused(path: Path) -> None:
    Store(path).close()
    path.chmod(0o770)
    with pytest.raises(ck.StoreError, match="chmod 700"):
        Store(path)


def test_nobody_is_told_to_close_a_directory_that_is_no_store(path: Path) -> None:
    """``chmod 700 /etc`` would be bad advice."""
    path.mkdir()
    path.chmod(0o755)
    (path / "passwd").touch()
    with pytest.raises(ck.StoreError, match="not a store and not empty") as raised:
        Store(path)
    assert "chmod" not in str(raised.value)


def test_a_directory_of_somebody_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ck.StoreError, match="belongs to uid"):
        Store(path)


def test_a_newer_layout_and_a_newer_database_are_refused(path: Path) -> None:
    with Store(path) as store, store.database.write() as rows:
        rows.execute("PRAGMA user_version = 99")
    with pytest.raises(ck.StoreError, match=r"version 99.*upgrade"):
        Store(path)
    marker = json.loads((path / MARKER).read_text())
    (path / MARKER).write_text(json.dumps(marker | {"version": 2}))
    with pytest.raises(ck.StoreError, match=r"layout 2.*upgrade"):
        Store(path)


def test_a_damaged_database_is_told(path: Path) -> None:
    with Store(path) as store:
        put(store, made("a"), "x")
    (path / "db.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(ck.StoreError, match="damaged"):
        Store(path)


def test_what_a_killed_attempt_left_of_a_marker_is_no_hindrance(path: Path) -> None:
    path.mkdir(0o700)
    (path / ".containerkit-store.1234").write_text("{")
    Store(path).close()
    assert not list(path.glob(".containerkit*"))


def test_the_default_follows_the_environment(monkeypatch: pytest.MonkeyPatch, caller: str) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.delenv("CONTAINERKIT_STORE", raising=False)
    assert default_path() == ("/var/lib/containerkit" if caller == "root" else "/data/containerkit")
    monkeypatch.setenv("CONTAINERKIT_STORE", "/chosen")
    assert default_path() == "/chosen"


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store(path)
    store.close()
    store.close()
    with pytest.raises(ck.StoreError, match="closed"):
        store.images.list()


def test_a_fork_of_the_program_has_connections_of_its_own(store: Store) -> None:
    put(store, made("a"), "x")
    pid = os.fork()
    if not pid:
        code = 1
        try:
            store.images.tag("x", "y")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    store.images.tag("x", "z")
    assert len(store.images.get("x").names) == 3


def test_a_store_can_be_opened_from_within(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    monkeypatch.chdir(path)
    Store(path).close()


def test_what_comes_while_the_trash_is_emptied_is_deleted_too(store: Store) -> None:
    begun, go = threading.Event(), threading.Event()
    remove = store.trash._remove

    def slow(parent: int, name: str) -> list[str]:
        begun.set()
        assert go.wait(30)
        return remove(parent, name)

    store.trash._remove = slow
    trash = Path(store.path, "trash")
    (trash / "one").mkdir()
    store.trash.empty()
    assert begun.wait(30)
    (trash / "two").mkdir()
    store.trash.empty()
    go.set()
    store.trash.wait()
    assert list(trash.iterdir()) == []
