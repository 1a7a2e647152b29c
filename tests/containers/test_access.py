"""The root of a container: the same whether it runs or not, and nobody's way to the host."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import archive, entry
from made_containers import busybox_image

from containerkit import Bind, Tmpfs
from containerkit.containers import access
from containerkit.containers.access import Tree, tree
from containerkit.containers.container import Container
from containerkit.containers.copying import put_archive
from containerkit.errors import Busy, NotFound, SyscallError, TreeProcessLost
from containerkit.layers.files import FileStatus
from containerkit.store import Store

pytestmark = pytest.mark.both


@pytest.fixture(params=["stopped", "running"])
def container(store: Store, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Container]:
    (tmp_path / "bound").mkdir()
    (tmp_path / "bound/file").write_text("bound")
    made = store.containers.create(
        busybox_image(store),
        ["sleep", "1000"],
        volumes=["volume:/vol"],
        mounts=[Bind(tmp_path / "bound", "/bound"), Tmpfs("/run")],
    )
    if request.param == "running":
        made.start()
    yield made
    made.remove(force=True)


def names(files: Tree, *paths: bytes) -> list[bool]:
    return [files.process.locate(files.fileno(), path).status is not None for path in paths]


def test_volumes_and_binds_are_there(container: Container) -> None:
    put_archive(container, "/vol", archive([entry("file", "v")]))
    with tree(container) as files:
        assert names(files, b"/vol/file", b"/bound/file", b"/bin/busybox", b"/nothing") == [True, True, True, False]


def test_a_read_only_bind_is_read_only(container: Container, tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="read-only"):
        put_archive(container, "/bound", archive([entry("new", "")]))
    assert os.listdir(tmp_path / "bound") == ["file"]


def test_no_path_leads_to_the_host(container: Container, tmp_path: Path) -> None:
    target = os.fsencode(tmp_path / "bound/file")
    put_archive(container, "/", archive([entry("up", "@../../../../.." + os.fsdecode(target))]))
    with tree(container) as files:
        for path in (target, b"/.." * 9 + target, b"/up", b"/proc/1/root" + target, b"/proc/self/cwd" + target):
            try:
                assert files.process.locate(files.fileno(), path).status is None
            except SyscallError:
                continue


def test_the_process_that_works_there_has_no_rights_outside(container: Container) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user may not look at it: it is not dumpable")
    with tree(container) as files:
        assert names(files, b"/bin") == [True]  # by now it has begun
        user = os.stat(f"/proc/{files.process.pid}/ns/user")
        assert user.st_ino != os.stat("/proc/self/ns/user").st_ino


def test_a_process_that_is_killed_is_told_and_leaves_nothing(container: Container) -> None:
    with tree(container) as files:
        os.kill(files.process.pid, signal.SIGKILL)
        with pytest.raises(TreeProcessLost):
            files.process.locate(files.fileno(), b"/")
    with tree(container) as files:
        assert names(files, b"/bin") == [True]


def test_what_is_at_a_path(container: Container) -> None:
    put_archive(
        container,
        "/",
        archive(
            [entry("d/f", "text", mode=0o640), entry("d/l", "@f"), entry("d/round", "@round"), entry("abs", "@/d/l")]
        ),
    )
    with tree(container) as files:

        def at(path: bytes, *, follow: bool = True) -> tuple[bytes, bytes, FileStatus | None]:
            return files.process.locate(files.fileno(), path, follow=follow)

        assert at(b"/abs")[:2] == (b"/d", b"f")
        assert at(b"/d/../d/./f")[1] == b"f"
        assert at(b"/d/..")[1] == b""
        assert at(b"/d/missing")[1:] == (b"missing", None)
        link = at(b"/d/l", follow=False)[2]
        assert link is not None
        assert link.link == b"f"
        for path, error in ((b"/missing/f", NotFound), (b"/d/f/x", SyscallError), (b"/d/round", SyscallError)):
            with pytest.raises(error):
                at(path)


def test_a_container_that_is_used_by_something_else_is_busy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    container = store.containers.create(busybox_image(store), ["true"])
    monkeypatch.setattr(access, "PATIENCE", 0.1)
    with tree(container), pytest.raises(Busy), tree(container):
        pass
    container.remove()
