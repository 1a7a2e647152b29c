"""Copies into containers and out of them, by docker's table, and as archives."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from archives import archive, entry
from made_containers import busybox_image
from patience import PATIENCE

from containerkit import Bind, Tmpfs
from containerkit._container_errors import ContainerNotFound
from containerkit.containers import aio
from containerkit.containers.access import tree
from containerkit.containers.container import Container
from containerkit.containers.copying import copy_in, copy_out, get_archive, put_archive, stat_path
from containerkit.errors import InvalidLayer, NotFound, SyscallError
from containerkit.kernel.tree import remove
from containerkit.store import Store

pytestmark = pytest.mark.both


@pytest.fixture
def container(store: Store) -> Iterator[Container]:
    made = store.containers.create(busybox_image(store), ["sleep", "1000"])
    yield made
    made.close()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory of the host: a file, and a tree."""
    path = tmp_path / "here"
    (path / "tree/below").mkdir(parents=True)
    (path / "file").write_text("file")
    (path / "tree/one").write_text("one")
    (path / "tree/below/two").write_text("two")
    (path / "tree/link").symlink_to("one")
    os.link(path / "tree/one", path / "tree/other")
    return path


def text(container: Container, path: str) -> str:
    out = io.BytesIO()
    copy_out(container, path, out, follow_link=True)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        [member] = tar.getmembers()
        file = tar.extractfile(member)
        assert file is not None
        return file.read().decode()


def names(container: Container, path: str) -> list[str]:
    with get_archive(container, path) as found, tarfile.open(fileobj=io.BytesIO(b"".join(found))) as tar:
        return sorted(tar.getnames())


def test_a_file_gets_in_and_out(container: Container, here: Path) -> None:
    (here / "file").chmod(0o750)
    copy_in(container, here / "file", "/tmp/new")
    found = stat_path(container, "/tmp/new")
    assert (found.name, found.size, stat.S_IMODE(found.mode), found.uid, found.gid) == ("new", 4, 0o750, 0, 0)
    copy_out(container, "/tmp/new", here / "back")
    assert (here / "back").read_text() == "file"
    assert (here / "back").stat().st_mode == (here / "file").stat().st_mode
    assert (here / "back").stat().st_mtime_ns == (here / "file").stat().st_mtime_ns


# The table of go-archive, copy_unix_test.go: the case, source, destination, and what is there then, or the error.
TABLE = [
    ("A", "file", "/tmp/new", ["new"]),
    ("B", "file", "/tmp/new/", NotFound),
    ("C", "file", "/tmp/old", ["old"]),
    ("C, which ends like a directory", "file", "/tmp/old/", SyscallError),
    ("D", "file", "/tmp/dir", ["dir/file"]),
    ("E", "tree", "/tmp/new", ["new/one", "new/below/two"]),
    ("E, which ends like a directory", "tree/", "/tmp/new/", ["new/one", "new/below/two"]),
    ("F", "tree", "/tmp/old", SyscallError),
    ("G", "tree", "/tmp/dir", ["dir/tree/one", "dir/tree/below/two"]),
    ("H", "tree/.", "/tmp/new", ["new/one", "new/below/two"]),
    ("I", "tree/.", "/tmp/old", SyscallError),
    ("J", "tree/.", "/tmp/dir", ["dir/one", "dir/below/two"]),
    ("no directory to be in", "file", "/tmp/missing/new", NotFound),
    ("a directory that is none", "file/", "/tmp/new", SyscallError),
    ("nothing", "nothing", "/tmp/new", NotFound),
]


@pytest.mark.parametrize(("source", "target", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_dockers_table(
    container: Container, here: Path, tmp_path: Path, source: str, target: str, expected: list[str] | type[Exception]
) -> None:
    put_archive(container, "/", archive([entry("tmp/old", "old"), "tmp/dir/", "there/", entry("there/file", "file")]))
    copy_in(container, f"{here}/tree", "/there")
    base = tmp_path / "tmp"
    (base / "dir").mkdir(parents=True)
    (base / "old").write_text("old")
    back = f"{tmp_path}{target}"
    if isinstance(expected, type):
        with pytest.raises(expected):
            copy_in(container, f"{here}/{source}", target)
        with pytest.raises(expected):
            copy_out(container, f"/there/{source}", back)
        return
    copy_in(container, f"{here}/{source}", target)
    copy_out(container, f"/there/{source}", back)
    for name in expected:
        content = "old" if source == "old" else name.rpartition("/")[2]
        content = content if content in ("one", "two") else "file"
        assert text(container, f"/tmp/{name}") == content
        assert (base / name).read_text() == content


def test_a_tree_keeps_its_links(container: Container, here: Path) -> None:
    copy_in(container, here / "tree", "/tree")
    assert stat_path(container, "/tree/link").link_target == "one"
    copy_out(container, "/tree", here / "back")
    assert os.readlink(here / "back/link") == "one"
    assert (here / "back/one").stat().st_ino == (here / "back/other").stat().st_ino


def test_a_link_is_copied_or_followed(container: Container, here: Path) -> None:
    copy_in(container, here / "tree/link", "/a")
    copy_in(container, here / "tree/link", "/b", follow_link=True)
    assert stat_path(container, "/a").link_target == "one"
    assert text(container, "/b") == "one"
    put_archive(container, "/", archive([entry("one", "in"), entry("c", "@/one")]))
    copy_out(container, "/c", here / "c")
    copy_out(container, "/c", here / "d", follow_link=True)
    assert os.readlink(here / "c") == "/one"
    assert (here / "d").read_text() == "in"


def test_links_at_the_destination_lead_on_in_the_container(container: Container, here: Path) -> None:
    links = [entry("to-dir", "@/etc"), entry("to-file", "@tmp/f"), entry("dangling", "@/tmp/made"), entry("tmp/f", "")]
    put_archive(container, "/", archive(links))
    copy_in(container, here / "file", "/to-dir/new")
    copy_in(container, here / "file", "/to-file")
    copy_in(container, here / "file", "/dangling")
    assert [text(container, path) for path in ("/etc/new", "/tmp/f", "/tmp/made")] == ["file"] * 3
    assert stat_path(container, "/to-file").link_target == "tmp/f"


def test_links_cannot_lead_out(container: Container, here: Path) -> None:
    (here / "secret").write_text("secret")
    put_archive(container, "/", archive([entry("up", f"@../../../..{here}"), entry("abs", f"@{here}")]))
    for link in ("/up", "/abs"):
        with pytest.raises(NotFound):
            copy_out(container, f"{link}/secret", here / "stolen")
        with pytest.raises(NotFound):
            copy_in(container, here / "file", f"{link}/written")
    assert not (here / "stolen").exists()
    assert not (here / "written").exists()


def test_what_is_there_keeps_its_attributes(container: Container, here: Path) -> None:
    put_archive(container, "/", archive([entry("dir/", mode=0o1777)]))
    copy_in(container, f"{here}/tree/.", "/dir")
    assert stat.S_IMODE(stat_path(container, "/dir").mode) == 0o1777


def test_a_directory_and_a_file_do_not_replace_each_other(container: Container, here: Path) -> None:
    put_archive(container, "/", archive([entry("a/tree/one/"), entry("b/tree/below", "")]))
    for target in ("/a", "/b"):
        with pytest.raises(SyscallError):
            copy_in(container, here / "tree", target)
    assert stat.S_ISDIR(stat_path(container, "/a/tree/one").mode)


def test_names_that_are_whiteouts_in_layers_are_names(container: Container, here: Path) -> None:
    (here / "tree/.wh.one").write_text("name")
    copy_in(container, here / "tree", "/tree")
    assert names(container, "/tree") == [
        "tree", "tree/.wh.one", "tree/below", "tree/below/two", "tree/link", "tree/one", "tree/other",
    ]  # fmt: skip


def test_an_archive_goes_in_and_out(container: Container, here: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(here / "tree", "new", filter=lambda info: info.replace(uid=0, gid=0))
    packed.seek(0)
    copy_in(container, packed, "/tmp")
    assert names(container, "/tmp/new/below") == ["below", "below/two"]
    assert names(container, "/tmp/new/below/.") == [".", "two"]
    with pytest.raises(SyscallError, match="unpacked in a directory"):
        copy_in(container, io.BytesIO(packed.getvalue()), "/etc/passwd")
    with pytest.raises(InvalidLayer):
        copy_in(container, io.BytesIO(b"no archive" * 100), "/tmp")


def test_an_archive_that_is_not_read_to_its_end(container: Container) -> None:
    put_archive(container, "/", archive([entry("big", b"x" * (8 << 20))]))
    with get_archive(container, "/") as found:
        assert len(next(iter(found))) > 0


def test_set_id_bits_come_out_only_where_they_are_asked_for(container: Container, here: Path) -> None:
    put_archive(container, "/", archive([entry("d/s", "s", mode=0o4755), entry("d/", mode=0o2755)]))
    copy_out(container, "/d", here / "d")
    copy_out(container, "/d/s", here / "s")
    copy_out(container, "/d/s", here / "kept", archive=True)
    assert [stat.S_IMODE((here / name).stat().st_mode) for name in ("d/s", "s", "kept")] == [0o755, 0o755, 0o4755]


def test_holes_stay_holes(container: Container, here: Path) -> None:
    with (here / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"end")
    copy_in(container, here / "sparse", "/sparse")
    copy_out(container, "/sparse", here / "back")
    assert (here / "back").stat().st_size == (here / "sparse").stat().st_size
    assert (here / "back").stat().st_blocks < 1000


def test_nothing_of_ours_is_left_in_the_container(container: Container, here: Path) -> None:
    copy_in(container, here / "file", "/tmp/a")
    copy_in(container, here / "tree", "/tmp/b")
    with pytest.raises(SyscallError):
        copy_in(container, here / "file", "/tmp/b/one/x")
    assert [name for name in names(container, "/tmp") if ".ck-" in name] == []


def test_two_copies_wait_for_each_other(container: Container, here: Path) -> None:
    errors: list[BaseException] = []

    def copy(number: int) -> None:
        try:
            copy_in(container, here / "file", f"/tmp/{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names(container, "/tmp") == ["tmp", "tmp/0", "tmp/1", "tmp/2"]


def test_a_read_only_container_takes_nothing(store: Store, here: Path) -> None:
    container = store.containers.create(busybox_image(store), ["true"], read_only=True)
    with pytest.raises(SyscallError, match="read-only"):
        copy_in(container, here / "file", "/tmp/new")


def test_a_removed_container_has_no_files(store: Store) -> None:
    container = store.containers.create(busybox_image(store), ["true"])
    container.remove()
    with pytest.raises(ContainerNotFound), tree(container):
        pass


# ---- large files, and containers that run ----------------------------------------------------------------------------


def test_large_files_of_a_tree(container: Container, here: Path) -> None:
    content = os.urandom(1 << 20) * 6
    (here / "tree/below/large").write_bytes(content)
    (here / "tree/below/large").chmod(0o640)
    os.utime(here / "tree/below", ns=(10**18, 10**18))
    copy_in(container, here / "tree", "/new")
    copy_in(container, f"{here}/tree/.", "/tmp")
    for path in ("/new", "/tmp"):
        assert stat.S_IMODE(stat_path(container, f"{path}/below/large").mode) == 0o640
        assert stat_path(container, f"{path}/below").mtime == 10**9
        out = here / path.strip("/")
        copy_out(container, path, out)
        assert (out / "below").stat().st_mtime == 10**9
        copy_out(container, f"{path}/.", out)
        assert (out / "below/large").read_bytes() == content


def test_what_runs_sees_what_comes_in_and_what_it_makes_comes_out(store: Store, here: Path) -> None:
    script = (
        "while [ ! -f /tmp/dir/file ]; do sleep 0.02; done; cat /tmp/dir/file > /vol/out; "
        "stat -c %u:%g /tmp/dir/file >> /vol/out; sleep 1000"
    )
    container = store.containers.create(
        busybox_image(store), ["sh", "-c", script], volumes=["volume:/vol"], mounts=[Tmpfs("/tmp")]
    )
    container.start()
    (here / "dir").mkdir()
    (here / "dir/file").write_text("from outside\n")
    copy_in(container, here / "dir", "/tmp")
    deadline = time.monotonic() + 20 * PATIENCE
    while time.monotonic() < deadline and not (here / "out").exists():
        with suppress(NotFound):
            copy_out(container, "/vol/out", here / "out")
            if "0:0" not in (here / "out").read_text():
                (here / "out").unlink()
    assert (here / "out").read_text() == "from outside\n0:0\n"
    assert (here / "out").stat().st_uid == os.geteuid()
    container.kill()
    copy_out(container, "/vol/out", here / "again")  # volumes are there in one that does not run, too
    with pytest.raises(NotFound):  # and tmpfs are not
        copy_out(container, "/tmp/dir", here / "gone")
    container.remove()


def test_of_the_kernels_views_the_directories_come_out(store: Store, here: Path) -> None:
    container = store.containers.create(busybox_image(store), ["sleep", "1000"])
    container.start()
    copy_out(container, "/.", here / "all")
    assert (here / "all/bin/busybox").exists()
    assert os.listdir(here / "all/proc") == []
    assert [path for path in (here / "all/sys").rglob("*") if not path.is_dir()] == []
    assert not (here / "all/dev/null").exists()
    container.remove(force=True)


def test_a_mount_point_is_not_taken_away(store: Store, here: Path) -> None:
    container = store.containers.create(busybox_image(store), ["sleep", "1000"])
    container.start()
    with pytest.raises(SyscallError):
        copy_in(container, here / "file", "/etc/hosts")
    with pytest.raises(SyscallError, match="mounted"):
        put_archive(container, "/etc", archive([entry("hosts", "@elsewhere")]))
    assert "localhost" in text(container, "/etc/hosts")
    container.remove(force=True)


def test_a_file_that_is_a_mount_point_gets_the_content(store: Store, here: Path) -> None:
    (here / "bound").write_text("old and longer")
    bind = Bind(here / "bound", "/etc/bound", read_only=False)
    container = store.containers.create(busybox_image(store), ["sleep", "1000"], mounts=[bind])
    for running in (False, True):
        if running:
            container.start()
        copy_in(container, here / "file", "/etc/bound")
        assert (here / "bound").read_text() == "file"
        (here / "bound").write_text("old and longer")
    container.remove(force=True)


def test_a_start_waits_for_a_copy(container: Container, here: Path) -> None:
    with tree(container) as files:
        starting = threading.Thread(target=container.start)
        starting.start()
        starting.join(0.3)
        assert starting.is_alive()
        assert files.process.locate(files.fileno(), b"/etc/passwd").status is not None
    starting.join()
    assert container.status.running
    container.remove(force=True)


@pytest.mark.parametrize("running", [False, True])
def test_owners_are_those_that_the_container_sees(store: Store, here: Path, caller: str, *, running: bool) -> None:
    container = store.containers.create(busybox_image(store), ["sleep", "1000"])
    if running:
        container.start()
    if caller == "root":
        os.chown(here / "file", 1000, 1001)
    copy_in(container, here / "file", "/tmp/roots")
    copy_in(container, here / "file", "/tmp/kept", archive=True)
    assert stat_path(container, "/tmp/roots")[4:6] == (0, 0)
    assert stat_path(container, "/tmp/kept")[4:6] == ((1000, 1001) if caller == "root" else (0, 0))
    copy_out(container, "/tmp/kept", here / "mine")
    copy_out(container, "/tmp/kept", here / "kept", archive=True)
    mine, kept = (here / "mine").stat(), (here / "kept").stat()
    assert (mine.st_uid, mine.st_gid) == (os.geteuid(), os.getegid())
    assert (kept.st_uid, kept.st_gid) == ((1000, 1001) if caller == "root" else (os.geteuid(), os.getegid()))
    container.remove(force=True)


def test_a_paused_container_is_copied_to_and_from(store: Store, here: Path, caller: str) -> None:
    if caller == "user":
        pytest.skip("an ordinary user's containers have no control group here, and cannot be paused")
    container = store.containers.create(busybox_image(store), ["sleep", "1000"])
    container.start()
    container.pause()
    copy_in(container, here / "file", "/tmp/new")
    copy_out(container, "/tmp/new", here / "back")
    assert (here / "back").read_text() == "file"
    assert container.status.status == "paused"
    container.remove(force=True)


def test_names_that_are_no_text(container: Container, here: Path) -> None:
    name = b"\xff new\nline"
    (here / "strange").mkdir()
    Path(os.fsdecode(os.fsencode(here / "strange") + b"/" + name)).write_bytes(b"x")
    copy_in(container, here / "strange", "/")
    copy_in(container, os.fsencode(here / "strange") + b"/" + name, b"/tmp/" + name)
    copy_out(container, "/strange", here / "back")
    assert os.listdir(os.fsencode(here / "back")) == [name]
    assert stat_path(container, b"/tmp/" + name).size == 1


def test_directories_without_end_are_refused(container: Container, here: Path) -> None:
    top = fd = os.open(here, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        if fd != top:
            os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(SyscallError, match="512 directories"):
        copy_in(container, here / "d", "/deep")
    assert remove(top, "d") == []
    os.close(top)


def test_archives_with_asyncio(container: Container) -> None:
    async def there_and_back() -> list[str]:
        ours = aio.Container(container)
        await ours.put_archive("/tmp", archive([entry("d/f", "text")]))
        assert (await ours.stat_path("/tmp/d/f")).size == 4
        with await ours.get_archive("/tmp/d") as found:
            packed = b"".join([piece async for piece in found])
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            return tar.getnames()

    assert asyncio.run(there_and_back()) == ["d", "d/f"]


def test_a_link_that_an_earlier_copy_has_brought_is_not_followed(container: Container, here: Path) -> None:
    """Who copies the same again would write where the container wants, as docker cp does."""
    (here / "precious").write_text("kept")
    put_archive(container, "/", archive([entry("report", f"@{here}/precious")]))
    copy_out(container, "/report", here / "report")
    assert os.readlink(here / "report") == f"{here}/precious"
    put_archive(container, "/", archive([entry("report", "of the container")]))
    with pytest.raises(OSError, match="symbolic link") as caught:
        copy_out(container, "/report", here / "report")
    assert caught.value.errno == errno.ELOOP
    assert (here / "precious").read_text() == "kept"
    (here / "directory").mkdir()
    (here / "todir").symlink_to("directory")
    copy_out(container, "/report", f"{here}/todir/")  # who says that it is a directory knows it
    assert (here / "directory/report").read_text() == "of the container"
