"""D: copies into containers and out of them, while somebody in there means harm; each with what falls for it."""

from __future__ import annotations

import io
import lzma
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from archives import archive, entry
from attack.racer import Racer
from attack.subjects import Breach, Watched, breach_if
from made_containers import busybox_image
from naive import copying as naive

from containerkit import Bind, ContainerkitError, Tmpfs
from containerkit.containers import copying
from containerkit.containers.access import tree
from containerkit.containers.changes import commit, diff, export
from containerkit.store import Store

TRIES = 3000


class Ours:
    """A container, and for many copies one process that works on its files."""

    def __init__(self, work: Path, shared: Path, *mounts: Any, running: bool = True, more: bytes = b"") -> None:
        self._stack = ExitStack()
        store = self._stack.enter_context(Store(work / "store"))
        binds = (Bind(shared, "/shared", read_only=False), *mounts)
        self.container = store.containers.create(busybox_image(store), ["sleep", "1000"], mounts=binds)
        self._stack.callback(self.container.remove, force=True)
        if more:
            copying.put_archive(self.container, "/", more)
        if running:
            self.container.start()

    def keep_tree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One process for all that follows: the copies take a millisecond each."""
        files = self._stack.enter_context(tree(self.container))
        monkeypatch.setattr(copying, "tree", lambda _: nullcontext(files))

    def copy_out(self, path: str, destination: Path) -> None:
        copying.copy_out(self.container, path, destination)

    def copy_in(self, source: Path | str, path: str) -> None:
        copying.copy_in(self.container, source, path)

    def close(self) -> None:
        self._stack.close()


class Naive:
    """A root of the host's, with the shared directory in it."""

    def __init__(self, work: Path, shared: Path) -> None:
        self.root = work / "root"
        self.root.mkdir()
        shared.rename(self.root / "shared")
        shared.symlink_to(self.root / "shared")  # for who exchanges names in it

    def keep_tree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pass

    def copy_out(self, path: str, destination: Path) -> None:
        naive.copy_out(self.root, path, destination)

    def copy_in(self, source: Path, path: str) -> None:
        naive.copy_in(self.root, source, path)

    def close(self) -> None:
        pass


@pytest.fixture
def shared(tmp_path: Path, host: Watched) -> Path:
    """A directory that the container may write to: ``a`` is one, ``b`` a link to one of the host that is like it."""
    path = tmp_path / "shared"
    (path / "a/directory").mkdir(parents=True)
    (path / "a/file").write_text("good\n")
    (path / "a/directory/below").write_text("good below\n")
    (path / "b").symlink_to(host)
    return path


@pytest.fixture
def victim(
    subject: Callable[[Path, Path], Any], tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    made = subject(tmp_path, shared)
    try:
        made.keep_tree(monkeypatch)
        yield made
    finally:
        monkeypatch.undo()
        made.close()


@pytest.mark.root
@pytest.mark.attack("D01", ours=Ours, twin=Naive, control="naive copies")
def test_links_exchanged_during_a_copy_out_never_show_the_host(
    victim: Any, shared: Path, tmp_path: Path, trials: Callable[[int], None]
) -> None:
    found = set()
    with Racer() as racer, racer.swapping(shared / "a", shared / "b"):
        for number in range(TRIES):
            out = tmp_path / "out"
            with suppress(OSError, ContainerkitError):
                victim.copy_out("/shared/a/file", out)
                found.add(out.read_text())
            if number % 20 == 0 and isinstance(victim, Ours):
                with suppress(OSError, ContainerkitError):
                    victim.copy_out("/shared/.", tmp_path / f"whole{number}")
                for copied in ("a", "b"):
                    tree_of_it = tmp_path / f"whole{number}" / copied
                    breach_if(not tree_of_it.is_symlink() and (tree_of_it / "executable").exists(), "a tree was copied")
            breach_if("canary\n" in found, "a file of the host was copied out")
    assert "good\n" in found
    trials(TRIES)


@pytest.mark.root
@pytest.mark.attack("D01", ours=Ours, twin=Naive, control="naive copies")
def test_links_exchanged_during_a_copy_in_never_lead_to_the_host(
    victim: Any, shared: Path, tmp_path: Path, host: Watched, trials: Callable[[int], None]
) -> None:
    (tmp_path / "source").write_text("written")
    (tmp_path / "tree/directory").mkdir(parents=True)
    (tmp_path / "tree/directory/new").write_text("written")
    with Racer() as racer, racer.swapping(shared / "a", shared / "b"):
        for number in range(TRIES):
            with suppress(OSError, ContainerkitError):
                victim.copy_in(tmp_path / "source", "/shared/a/file")
            if number % 20 == 0 and isinstance(victim, Ours):
                with suppress(OSError, ContainerkitError):
                    victim.copy_in(f"{tmp_path}/tree/.", "/shared/a")
            if number % 100 == 0:
                host.check("by a copy")
    host.check("by a copy")
    assert (shared / "a/file").read_text() == "written"
    trials(TRIES)


@pytest.mark.both
@pytest.mark.attack("D02", control="test_a_naive_mount_point_is_made_on_the_host")
def test_a_copy_to_a_stopped_container_mounts_nowhere_else(tmp_path: Path, shared: Path, host: Watched) -> None:
    links = archive([entry("link", f"@{host}"), entry("up", f"@../../../../../..{host}")])
    mounts = (Bind(shared, "/link/made", read_only=False), Bind(shared, "/up/made", read_only=False))
    ours = Ours(tmp_path, shared, running=False, more=links)
    try:
        ours.container.remove()
        store = ours.container._store
        image = busybox_image(store, "linked:1")
        linked = store.containers.create(image, ["true"])
        copying.put_archive(linked, "/", links)
        image = commit(linked, "linked:2")
        linked.remove()
        ours.container = store.containers.create(image, ["true"], mounts=mounts)
        ours.container._store = store
        ours._stack.callback(ours.container.remove, force=True)
        with suppress(ContainerkitError):
            ours.copy_in(shared / "a/file", "/link/made/copied")
    finally:
        with suppress(ContainerkitError):
            ours.close()
    host.check("by a mount point")


def test_a_naive_mount_point_is_made_on_the_host(tmp_path: Path, host: Watched) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(host)
    naive.make_mount_point(tmp_path / "root", "link/made")
    with pytest.raises(Breach):
        host.check()


FAKES = ("xz", "unpigz", "pigz", "gzip", "tar", "nsenter", "ps", "python3", "sitecustomize.py", "ldconfig")


def fakes() -> bytes:
    """Programs and modules that leave a mark when anybody runs them."""
    script = "#!/bin/sh\necho > /marker\n"
    places = ("bin", "usr/bin", "usr/lib/python3", "usr/lib/python3.11", "usr/local/bin")
    return archive([entry(f"{place}/{name}", script, mode=0o755) for place in places for name in FAKES])


@pytest.mark.both
@pytest.mark.attack("D03", control="test_a_naive_copy_runs_what_is_in_the_root")
def test_no_copy_runs_anything_of_the_container(tmp_path: Path, shared: Path) -> None:
    ours = Ours(tmp_path, shared, more=fakes())
    try:
        packed = lzma.compress(archive([entry("new", "new")]))
        for running in (True, False):
            copying.copy_in(ours.container, io.BytesIO(packed), "/tmp")
            ours.copy_in(shared / "a", "/tmp/a")
            ours.copy_out("/tmp", tmp_path / "out")
            export(ours.container, io.BytesIO())
            commit(ours.container, pause=False)
            changed = [change.path for change in diff(ours.container)]
            assert "/tmp/new" in changed
            assert "/marker" not in changed
            if running:
                ours.container.kill()
    finally:
        ours.close()


@pytest.mark.root
def test_a_naive_copy_runs_what_is_in_the_root(tmp_path: Path, busybox_root: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(busybox_root, root, symlinks=True)
    (root / "bin/xz").unlink(missing_ok=True)
    (root / "bin/xz").write_text("#!/bin/sh\necho > /marker\n")
    (root / "bin/xz").chmod(0o755)
    (tmp_path / "archive").write_bytes(lzma.compress(archive([entry("new", "new")])))
    naive.decompress_in(root, tmp_path / "archive")
    assert (root / "marker").exists()


@pytest.mark.both
@pytest.mark.attack("D04", "E01", control="test_a_naive_archive_changes_modes_of_the_host")
def test_an_archive_changes_nothing_outside(tmp_path: Path, shared: Path, host: Watched) -> None:
    ours = Ours(tmp_path, shared)
    try:
        for members in (
            [entry("b/", mode=0o777)],
            [entry("b/file", "written"), entry("b/new", "written")],
            [entry("link", f"@{host}"), entry("link/", mode=0o777), entry("link/file", "written")],
            [entry("hard", f"={host}/file".replace("=/", "=")), entry("hard", "written")],
            [entry("../../../../../../../..", ""), entry(f"../../../../../../../..{host}/file", "written")],
            [entry(f"{host}/file", "written")],
        ):
            with suppress(OSError, ContainerkitError):
                copying.put_archive(ours.container, "/shared", archive(members))
            host.check(f"by {members}")
    finally:
        ours.close()


def test_a_naive_archive_changes_modes_of_the_host(tmp_path: Path, host: Watched) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/b").symlink_to(host)
    (tmp_path / "archive").write_bytes(archive([entry("b/", mode=0o777)]))
    naive.put_archive(tmp_path / "root", "/", tmp_path / "archive")
    with pytest.raises(Breach):
        host.check()


@pytest.mark.both
@pytest.mark.attack("D06", control="test_a_naive_copy_is_led_by_a_link_on_the_host")
def test_the_hosts_side_is_not_led_by_links_of_the_container(tmp_path: Path, shared: Path, host: Watched) -> None:
    ours = Ours(tmp_path, shared)
    (shared / "out").symlink_to(host / "file")
    try:
        copying.put_archive(ours.container, "/", archive([entry("mine", "written"), entry("dir/file", "written")]))
        for path in ("b", "b/", "b/file", "b/directory", "out"):
            with pytest.raises(ContainerkitError):
                copying.copy_out(ours.container, "/mine", f"{shared}/{path}")
            with pytest.raises(ContainerkitError):
                copying.copy_out(ours.container, "/dir/.", f"{shared}/{path}")
            with pytest.raises(ContainerkitError):
                copying.copy_in(ours.container, f"{shared}/{path}", "/tmp/stolen", follow_link=True)
        host.check("by a copy to what is shared")
        copying.copy_out(ours.container, "/mine", shared / "a")
        copying.copy_out(ours.container, "/dir", shared / "a/new")
        assert (shared / "a/mine").read_text() == (shared / "a/new/file").read_text() == "written"
    finally:
        ours.close()


def test_a_naive_copy_is_led_by_a_link_on_the_host(tmp_path: Path, shared: Path, host: Watched) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/mine").write_text("written")
    naive.copy_out_to(tmp_path / "root", "/mine", shared / "b/file")
    with pytest.raises(Breach):
        host.check()


@pytest.mark.both
@pytest.mark.attack("J08", control="test_a_naive_overwrite_that_is_killed_leaves_a_half")
def test_an_overwrite_that_fails_leaves_what_was_there(tmp_path: Path, shared: Path) -> None:
    ours = Ours(tmp_path, shared)
    try:
        copying.put_archive(ours.container, "/", archive([entry("tmp/f", "old"), entry("tmp/d/f", "old")]))
        new = archive([entry("f", b"new" * 100_000), entry("d/f", b"new" * 100_000)])
        for end in (1000, 200_000, 302_000, 500_000):  # in the middle of the one and of the other
            with suppress(ContainerkitError):
                copying.put_archive(ours.container, "/tmp", new[:end])
            copying.copy_out(ours.container, "/tmp", tmp_path / "out")
            whole = {"old", "new" * 100_000}
            assert {(tmp_path / "out" / name).read_text() for name in ("f", "d/f")} <= whole
            assert [name for name in os.listdir(tmp_path / "out") if name.startswith(".ck-")] == []
            shutil.rmtree(tmp_path / "out")
    finally:
        ours.close()


@pytest.mark.both
@pytest.mark.attack("J08", control="test_a_naive_overwrite_that_is_killed_leaves_a_half")
def test_an_overwrite_for_which_there_is_no_room_leaves_what_was_there(tmp_path: Path, shared: Path) -> None:
    ours = Ours(tmp_path, shared, Tmpfs("/small", size="1M"))
    try:
        copying.put_archive(ours.container, "/small", archive([entry("f", "old")]))
        (tmp_path / "big").write_bytes(b"new" * 700_000)
        (tmp_path / "tree").mkdir()
        shutil.copy(tmp_path / "big", tmp_path / "tree/f")
        for source, target in ((f"{tmp_path}/big", "/small/f"), (f"{tmp_path}/tree/.", "/small")):
            with pytest.raises(ContainerkitError, match="full"):
                copying.copy_in(ours.container, source, target)
        copying.copy_out(ours.container, "/small", tmp_path / "out")
        assert os.listdir(tmp_path / "out") == ["f"]
        assert (tmp_path / "out/f").read_text() == "old"
    finally:
        ours.close()


def test_a_naive_overwrite_that_is_killed_leaves_a_half(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with (tmp_path / "f").open("wb") as file:
        file.write(b"new" * 100)
    assert (tmp_path / "f").read_text() not in ("old", "new" * 100_000)


PAIR = "i=0; while :; do i=$((i+1)); echo $i > /a; echo $i > /z; done"


@pytest.mark.root
@pytest.mark.attack("J09", control="test_without_a_pause_a_commit_may_be_torn")
def test_a_commit_of_what_changes_has_files_that_fit_together(tmp_path: Path) -> None:
    assert all(abs(a - z) <= 1 for a, z in pairs(tmp_path, pause=True, times=4))


@pytest.mark.root
def test_without_a_pause_a_commit_may_be_torn(tmp_path: Path) -> None:
    assert any(abs(a - z) > 1 for a, z in pairs(tmp_path, pause=False, times=100))


def pairs(path: Path, *, pause: bool, times: int) -> Iterator[tuple[int, int]]:
    """What is in two files of a commit that are written one after the other, many others between them."""
    with Store(path / "store") as store:
        container = store.containers.create(busybox_image(store), ["sh", "-c", PAIR])
        copying.put_archive(container, "/", archive([entry(f"m/{number}", b"x" * 4096) for number in range(400)]))
        container.start()
        try:
            for _ in range(times):
                image = commit(container, pause=pause)
                layer = Path(store.layers.path(image.layers[-1]))
                with suppress(ValueError, FileNotFoundError):  # not written yet, or in the middle of it
                    yield int((layer / "a").read_text()), int((layer / "z").read_text())
        finally:
            container.remove(force=True)
