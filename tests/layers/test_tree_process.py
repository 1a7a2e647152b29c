"""A process apart that works on trees: what it does, and what becomes of its errors and of itself."""

import gzip
import io
import os
import signal
import tarfile
from pathlib import Path

import pytest

import containerkit as ck
from containerkit.errors import ClosedHandle, InvalidLayer, InvalidValue, TreeProcessLost
from containerkit.layers.apply import apply
from containerkit.layers.diff import diff
from containerkit.layers.limits import LayerLimits
from containerkit.layers.pack import pack_layer
from containerkit.layers.usage import usage
from containerkit.tree_process import TreeProcess

pytestmark = pytest.mark.both


def archive(*entries, compression="gz"):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=f"w:{compression}") as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.uid, entry.gid, entry.mtime = os.geteuid() and 0, 0, 1_600_000_000
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


LAYER = archive(("etc", None), ("etc/hostname", b"here\n"), ("etc/.wh.gone", b""))


class Opened:
    """Descriptors by path, closed at the end."""

    def __init__(self):
        self.fds = []

    def __call__(self, path, flags=os.O_RDONLY):
        self.fds.append(os.open(path, flags, 0o600))
        return self.fds[-1]


@pytest.fixture
def opened():
    each = Opened()
    yield each
    for fd in each.fds:
        os.close(fd)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place" / "tree").mkdir(parents=True)
    return tmp_path / "place"


@pytest.fixture
def source(tmp_path, opened):
    def write(data):
        path = tmp_path / f"archive{len(opened.fds)}"
        path.write_bytes(data)
        return opened(path)

    return write


@pytest.fixture
def worker(place):
    with TreeProcess([place]) as started:
        yield started


def test_a_layer_becomes_the_same_tree_as_in_this_process(worker, place, source, opened):
    (place / "twin").mkdir()
    there = worker.apply(source(LAYER), opened(place / "tree"))
    here = apply(io.BytesIO(LAYER), opened(place / "twin"), owners=os.geteuid() == 0)
    assert there == here
    assert (place / "tree/etc/hostname").read_bytes() == b"here\n"
    assert (place / "tree/etc/gone").is_char_device()
    assert (place / "tree/etc/hostname").stat().st_mtime == 1_600_000_000


def test_a_layer_may_come_through_a_pipe(worker, place, opened):
    read, write = os.pipe()
    opened.fds.append(read)
    os.write(write, LAYER)
    os.close(write)
    assert worker.apply(read, opened(place / "tree")).files == 5


def test_a_layer_on_a_merged_tree_deletes_what_it_hides(worker, place, source, opened):
    (place / "tree/etc").mkdir()
    (place / "tree/etc/gone").write_text("x")
    worker.apply(source(LAYER), opened(place / "tree"), onto=True)
    assert not (place / "tree/etc/gone").exists()


def test_one_worker_serves_many_requests(worker, place, source, opened):
    for number in range(3):
        (place / str(number)).mkdir()
        worker.apply(source(LAYER), opened(place / str(number)))
    assert len(list(place.glob("?/etc/hostname"))) == 3


def test_packing_comparing_counting_are_as_in_this_process(worker, place, tmp_path, source, opened):
    tree = opened(place / "tree")
    worker.apply(source(LAYER), tree)
    flags = os.O_RDWR | os.O_CREAT
    packed = worker.pack_layer(tree, opened(tmp_path / "there", flags), compression="gzip", source_date_epoch=1 << 31)
    with (tmp_path / "here").open("wb") as out:
        assert packed == pack_layer(tree, out, compression="gzip", source_date_epoch=1 << 31)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()
    assert worker.diff(tree, []) == diff(tree, [])
    assert worker.usage(tree) == usage(tree)


def test_a_tree_is_packed_whole(worker, place, tmp_path, opened):
    (place / "tree/file").write_text("content")
    worker.pack_tree(opened(place / "tree"), opened(tmp_path / "out", os.O_RDWR | os.O_CREAT))
    with tarfile.open(tmp_path / "out") as tar:
        assert "file" in tar.getnames()


def test_a_tree_is_copied_and_removed(worker, place, opened):
    (place / "tree/a/b").mkdir(parents=True)
    (place / "tree/a/b/file").write_text("content")
    (place / "copy").mkdir()
    worker.copy_tree(opened(place / "tree"), opened(place / "copy"))
    assert (place / "copy/a/b/file").read_text() == "content"
    assert worker.remove(opened(place), "copy") == []
    assert not (place / "copy").exists()


def test_names_that_are_no_utf8_come_back_as_they_are(worker, place, opened):
    (place / "tree" / os.fsdecode(b"\xff\xe4")).write_text("x")
    assert [change.path for change in worker.diff(opened(place / "tree"), [])] == [os.fsdecode(b"/\xff\xe4")]


def test_an_answer_may_be_longer_than_a_message(worker, place, opened):
    names = [f"{number:0200}" for number in range(1000)]
    for name in names:
        (place / "tree" / name).touch()
    assert [change.path for change in worker.diff(opened(place / "tree"), [])] == [f"/{name}" for name in names]


def test_progress_is_told(worker, place, source, opened):
    told = []
    worker.apply(source(LAYER), opened(place / "tree"), progress=told.append)
    assert told
    assert all(isinstance(size, int) for size in told)


def test_an_error_of_progress_ends_the_work_and_the_worker(worker, place, source, opened):
    def stop(size):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        worker.apply(source(LAYER), opened(place / "tree"), progress=stop)
    assert worker.closed


def test_a_damaged_layer_is_the_same_error_and_the_worker_goes_on(worker, place, source, opened):
    evil = archive(("../outside", b"x"))
    with pytest.raises(InvalidLayer) as here:
        apply(io.BytesIO(evil), opened(place / "tree"))
    with pytest.raises(InvalidLayer) as there:
        worker.apply(source(evil), opened(place / "tree"))
    assert (str(there.value), there.value.entry) == (str(here.value), here.value.entry)
    assert worker.usage(opened(place / "tree")).inodes == 1


def test_limits_count_there(worker, place, source, opened):
    with pytest.raises(InvalidLayer):
        worker.apply(source(LAYER), opened(place / "tree"), limits=LayerLimits(entries_max=1))


def test_a_directory_outside_of_its_places_is_refused_here(worker, tmp_path, opened):
    with pytest.raises(InvalidValue, match="not below"):
        worker.usage(opened(tmp_path))


def test_a_directory_that_was_exchanged_is_refused(worker, place, opened):
    tree = opened(place / "tree")
    (place / "tree").rename(place / "moved")
    (place / "tree").mkdir()
    assert worker.usage(tree).inodes == 1  # known by where it is now
    worker._places[0].below = lambda identity, path: b"tree"
    with pytest.raises(InvalidValue, match="another directory"):
        worker.usage(tree)


def test_a_worker_that_dies_is_a_typed_error(worker, place, opened):
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(TreeProcessLost):
        worker.usage(opened(place))
    assert worker.closed
    with pytest.raises(ClosedHandle):
        worker.usage(opened(place))


def test_it_is_gone_when_it_is_closed(place):
    worker = TreeProcess([place])
    pid = worker.pid
    worker.close()
    worker.close()
    assert not Path(f"/proc/{pid}").exists()


def bomb_of_names(count):
    """A small archive whose whiteouts have to be remembered to its end: 3,500 bytes each."""
    with io.BytesIO() as made, tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("/".join(["d" * 250] * 13) + "/.wh." + "0" * 200))
        one = made.getvalue()
    assert one.count(b"0" * 200) == 1
    start, _, end = one.partition(b"0" * 200)
    return gzip.compress(b"".join(b"%b%0200d%b" % (start, number, end) for number in range(count)), 1)


def test_a_memory_bomb_is_a_typed_error_and_leaves_the_caller_alone(place, source, opened):
    with TreeProcess([place], memory_max="160M") as worker, pytest.raises(TreeProcessLost, match="160M"):
        worker.apply(source(bomb_of_names(35_000)), opened(place / "tree"))


def bomb_of_zeros(size):
    """A megabyte of zeros, compressed once and repeated, as the members of one gzip file."""
    header = tarfile.TarInfo("zeros")
    header.size = size
    return gzip.compress(header.tobuf()) + gzip.compress(bytes(1 << 20)) * (size >> 20) + gzip.compress(bytes(1024))


def test_a_decompression_bomb_meets_the_limit(worker, place, source, opened):
    with pytest.raises(InvalidLayer, match="bytes_max"):
        worker.apply(source(bomb_of_zeros(1 << 30)), opened(place / "tree"), limits=LayerLimits(bytes_max="512M"))
    assert worker.usage(opened(place / "tree")).size < 1 << 20


def test_what_is_long_needs_no_more_memory(place, source, opened):
    with TreeProcess([place], memory_max="160M") as worker:
        worker.apply(source(bomb_of_zeros(192 << 20)), opened(place / "tree"))
    found = (place / "tree" / "zeros").stat()
    assert found.st_size == 192 << 20
    assert found.st_blocks * 512 < 1 << 20  # holes, but for where a piece ended within a block


def test_in_a_containers_user_namespace_files_get_its_own_ids(source, opened, tmp_path):
    with (
        ck.Sandbox(mounts=[ck.Tmpfs("/data")]) as sandbox,
        sandbox.process(["sleep", "60"]) as program,
        ck.Namespace.of(program.pid, "user") as userns,
        TreeProcess(userns=userns) as worker,
    ):
        data = opened(f"/proc/{program.pid}/root/data")
        worker.apply(source(archive(("hello", b"hello"))), data, onto=True)
        assert sandbox.run(["stat", "-c", "%u %g %s", "/data/hello"]).stdout == "0 0 5\n"
        worker.pack_tree(data, opened(tmp_path / "out", os.O_RDWR | os.O_CREAT))
        with tarfile.open(tmp_path / "out") as tar:
            assert (tar.getmember("hello").uid, tar.getmember("hello").size) == (0, 5)
