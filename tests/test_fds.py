"""Which descriptors a program has: its three streams, those that were passed, and never one more."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starts import ISOLATED, STARTS, host_said, isolated, settled, sleeping

from containerkit import PIPE, Bind, Process, Sandbox
from containerkit.errors import InvalidValue, SpawnError

pytestmark = pytest.mark.both


@pytest.fixture(params=STARTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STARTS[request.param]


def open_in(process: Process) -> dict[int, str]:
    """What the program has open, seen from outside."""
    directory = f"/proc/{settled(process).pid}/fd"
    return {int(number): os.readlink(f"{directory}/{number}") for number in os.listdir(directory)}


@pytest.fixture
def planted() -> Iterator[None]:
    """200 descriptors that every child inherits which does nothing about it: of each kind, low and high."""
    with ExitStack() as stack:
        kinds = [
            lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            lambda: os.open("/", os.O_PATH),
            lambda: os.open("/etc/passwd", os.O_RDONLY),
            lambda: socket.socket().detach(),
            lambda: os.memfd_create("canary", 0),
        ]
        highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 100_000) - 1
        for number in range(200):
            fd = kinds[number % len(kinds)]()
            if number % 4 == 0:
                high = highest - number
                os.dup2(fd, high)
                os.close(fd)
                fd = high
            stack.callback(os.close, fd)
            os.set_inheritable(fd, True)
        yield


@pytest.mark.usefixtures("planted")
def test_nothing_of_what_the_host_has_open_reaches_the_program(options: dict[str, Any]) -> None:
    with sleeping(stdin=PIPE, stdout=PIPE, stderr=PIPE, **options) as process:
        found = open_in(process)
    assert set(found) == {0, 1, 2}
    assert all(target.startswith("pipe:") for target in found.values())


@pytest.mark.usefixtures("planted")
def test_only_what_is_passed_reaches_the_program(options: dict[str, Any]) -> None:
    reading, writing = os.pipe()
    try:
        with sleeping(pass_fds=[reading, writing], **options) as process:
            found = open_in(process)
        assert set(found) == {0, 1, 2, reading, writing}
        assert found[reading] == found[writing] == os.readlink(f"/proc/self/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.usefixtures("planted")
def test_a_program_that_joins_a_sandbox_has_three_descriptors() -> None:
    with Sandbox() as box, box.process(["sleep", "60"]) as process:
        assert set(open_in(process)) == {0, 1, 2}


@pytest.mark.usefixtures("planted")
def test_the_naive_twin_inherits_them_all() -> None:
    """So the tests above can fail."""
    child = os.posix_spawnp("sleep", ["sleep", "60"], {"PATH": os.environ["PATH"]})
    try:
        assert len(os.listdir(f"/proc/{child}/fd")) >= 203
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# ---- pass_fds ----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    """Six open files; file i says i."""
    with ExitStack() as stack:
        fds = []
        for number in range(6):
            (tmp_path / str(number)).write_text(f"{number}")
            fds.append(os.open(tmp_path / str(number), os.O_RDONLY))
            stack.callback(os.close, fds[-1])
        yield fds


def target_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def test_passed_descriptors_keep_their_numbers(options: dict[str, Any], files: list[int]) -> None:
    with sleeping(pass_fds=files, **options) as process:
        found = open_in(process)
    assert {fd: os.path.basename(found[fd]) for fd in files} == {fd: str(i) for i, fd in enumerate(files)}


@pytest.mark.parametrize(
    "shape",
    [
        {3: 0, 4: 1, 5: 2, 6: 3, 7: 4, 8: 5},  # the numbers that the plan, the sockets and the first ones have
        {3: 5, 4: 4, 5: 3, 6: 2, 7: 1, 8: 0},
        {6: 1, 7: 0},
        {7: 2, 8: 1, 6: 0},
        {900: 0, 3: 1},
        {3: 0, 4: 0, 5: 0},
    ],
    ids=str,
)
def test_a_mapping_gives_new_numbers(options: dict[str, Any], files: list[int], shape: dict[int, int]) -> None:
    with sleeping(pass_fds={target: files[source] for target, source in shape.items()}, **options) as process:
        found = {number: os.path.basename(path) for number, path in open_in(process).items() if number > 2}
    assert found == {target: str(source) for target, source in shape.items()}


def test_a_mapping_can_swap(options: dict[str, Any], files: list[int]) -> None:
    first, second = files[:2]
    with sleeping(pass_fds={first: second, second: first}, **options) as process:
        found = open_in(process)
    assert (os.path.basename(found[first]), os.path.basename(found[second])) == ("1", "0")


def test_ours_stay_open_and_as_they_were(options: dict[str, Any], files: list[int]) -> None:
    before = [(target_of(fd), os.get_inheritable(fd)) for fd in files]
    with sleeping(pass_fds=dict.fromkeys(files, files[0]), **options):
        pass
    assert [(target_of(fd), os.get_inheritable(fd)) for fd in files] == before


def test_two_hundred_can_be_passed(options: dict[str, Any], files: list[int]) -> None:
    with sleeping(pass_fds={300 + number: files[number % 6] for number in range(200)}, **options) as process:
        found = open_in(process)
    assert set(found) == {0, 1, 2, *range(300, 500)}


def test_more_than_can_be_passed_is_refused_with_the_number(files: list[int]) -> None:
    with pytest.raises(InvalidValue, match="pass_fds"):
        Process(["true"], pass_fds={300 + number: files[0] for number in range(300)})


@pytest.mark.parametrize("number", [0, 2, -1])
def test_a_standard_stream_cannot_be_passed(number: int) -> None:
    with pytest.raises(InvalidValue, match="standard stream: use stdin="):
        Process(["true"], pass_fds=[number])


@pytest.mark.parametrize("flags", [os.O_RDONLY | os.O_DIRECTORY, os.O_PATH], ids=["directory", "path"])
def test_what_leads_out_of_the_root_cannot_be_passed(options: dict[str, Any], flags: int) -> None:
    directory = os.open("/", flags)
    try:
        with pytest.raises(InvalidValue, match=f"pass_fds {directory} is .* would lead out of the root"):
            Process(["true"], pass_fds=[directory], **options)
    finally:
        os.close(directory)


def test_what_is_not_open_cannot_be_passed() -> None:
    with pytest.raises(InvalidValue, match="pass_fds 4000 is not an open descriptor"):
        Process(["true"], pass_fds=[4000])


@pytest.mark.parametrize("number", [1 << 30, (1 << 31) - 1, 1 << 31, 1 << 32])
def test_a_number_that_no_descriptor_can_have_is_an_error(files: list[int], number: int) -> None:
    with pytest.raises((InvalidValue, SpawnError), match="descriptor"):
        Process(["true"], pass_fds={number: files[0]})


def test_a_limit_on_open_files_below_a_passed_number_does_not_close_it(files: list[int]) -> None:
    with sleeping(pass_fds={500: files[0]}, rlimits={"nofile": 10}, **ISOLATED) as process:
        assert set(open_in(process)) == {0, 1, 2, 500}


def test_a_start_without_a_descriptor_to_spare_says_so_and_leaves_nothing() -> None:
    lines = host_said("""
        ck.run(["true"])
        before = sorted(os.listdir("/proc/self/fd"))
        held = []
        # The sockets and files of a start need several: each number of free ones fails at another place.
        for free in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
            held = []
            try:
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            for fd in held[len(held) - free:]:
                os.close(fd)
            del held[len(held) - free:]
            try:
                Process(["true"], stdout=PIPE, **ISOLATED).close()
                result = "started"
            except OSError as error:
                result = errno.errorcode[error.errno]
            except ck.ContainerkitError as error:
                result = repr(error)
            for fd in held:
                os.close(fd)
            print(free, result, len(os.listdir("/proc/self/fd")) - len(before))
    """)
    assert [line for line in lines if not line.endswith((" EMFILE 0", " started 0"))] == []
    assert lines[0] == "0 EMFILE 0"
    assert lines[-1] == "11 started 0"


def test_a_mount_of_a_file_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tmp_path.chmod(0o755)
    before = len(os.listdir("/proc/self/fd"))
    with sleeping(**isolated(Bind(tmp_path / "file", "/tmp/file"))) as process:
        assert set(open_in(process)) == {0, 1, 2}
        assert len(os.listdir("/proc/self/fd")) - before <= 5  # of the process itself
