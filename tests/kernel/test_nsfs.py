"""Namespace files, with the namespaces of this process and of ones that it makes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from containerkit.errors import InvalidValue, NotFound, SyscallError
from containerkit.kernel import calls, nsfs
from containerkit.kernel.fd import Fd
from containerkit.plan import CLONE_FLAGS


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a process that stays for the test."""
    with subprocess.Popen(["sleep", "30"]) as process:
        yield process.pid
        process.kill()


def own(kind: str) -> Fd:
    return Fd(nsfs.open_path(f"/proc/self/ns/{kind}"))


def test_knows_the_kinds_that_a_plan_can_make() -> None:
    assert {name: flag for flag, name in nsfs._BY_FLAG.items()} == CLONE_FLAGS
    assert set(nsfs.KINDS) == set(CLONE_FLAGS)


@pytest.mark.parametrize("kind", nsfs.KINDS)
def test_tells_the_kind_of_a_descriptor(kind: str) -> None:
    with own(kind) as fd:
        assert nsfs.kind(fd.fileno()) == kind


def test_refuses_a_descriptor_of_something_else() -> None:
    with Fd(os.open("/dev/null", os.O_RDONLY)) as fd, pytest.raises(InvalidValue, match="not one of a name"):
        nsfs.kind(fd.fileno())


def test_a_fifo_in_place_of_a_namespace_file_does_not_block(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "fifo")
    os.mkfifo(path)
    with Fd(nsfs.open_path(path)) as fd, pytest.raises(InvalidValue):
        nsfs.kind(fd.fileno())


def test_two_descriptors_of_one_namespace_have_one_identity() -> None:
    with own("net") as one, own("net") as two, own("uts") as other:
        assert nsfs.identity(one.fileno()) == nsfs.identity(two.fileno()) != nsfs.identity(other.fileno())


@pytest.mark.parametrize("kind", sorted(set(nsfs.KINDS) - nsfs.HIERARCHICAL))
def test_only_user_and_pid_namespaces_have_parents(kind: str) -> None:
    with own(kind) as fd, pytest.raises(InvalidValue, match="only user and pid"):
        nsfs.parent(fd.fileno())


def test_has_no_parent_beyond_our_own() -> None:
    with own("pid") as fd:
        assert nsfs.parent(fd.fileno()) is None


def test_a_namespace_is_owned_by_a_user_namespace() -> None:
    with own("user") as user, own("net") as net:
        owner = nsfs.owner(net.fileno())
        assert owner is not None
        with Fd(owner):
            assert nsfs.identity(owner) == nsfs.identity(user.fileno())


def test_only_a_user_namespace_has_an_owner_uid() -> None:
    with own("user") as user, own("net") as net:
        assert nsfs.owner_uid(user.fileno()) == 0
        with pytest.raises(InvalidValue, match="only user namespaces"):
            nsfs.owner_uid(net.fileno())


@pytest.mark.both
@pytest.mark.parametrize("name", [*nsfs.KINDS, "pid_for_children", "time_for_children"])
def test_opens_each_namespace_of_a_process_by_its_pidfd(sleeper: int, name: str) -> None:
    with Fd(os.pidfd_open(sleeper)) as pidfd, Fd(nsfs.open_pidfd(pidfd.fileno(), name)) as fd:
        assert nsfs.kind(fd.fileno()) == name.removesuffix("_for_children")
        assert nsfs.identity(fd.fileno())[1] == os.stat(f"/proc/{sleeper}/ns/{name}").st_ino


def without_ioctls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 6.11 and 6.13: no namespace and no pid from the ioctls of a pidfd."""

    class Old:
        def __getattr__(self, name: str) -> object:
            return getattr(nsfs_lib, name)

        def ck_ioctl(self, fd: int, request: int, argument: int) -> int:
            return -25 if request >> 8 == 0xFF else nsfs_lib.ck_ioctl(fd, request, argument)

        def ck_pidfd_pid(self, pidfd: int) -> int:
            return -25

    nsfs_lib = nsfs.lib
    monkeypatch.setattr(nsfs, "lib", Old())


def test_opens_by_proc_where_the_pidfd_has_no_ioctl(sleeper: int, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ioctls(monkeypatch)
    with Fd(os.pidfd_open(sleeper)) as pidfd, Fd(nsfs.open_pidfd(pidfd.fileno(), "net")) as fd:
        assert nsfs.identity(fd.fileno())[1] == os.stat("/proc/self/ns/net").st_ino


def test_a_successor_of_the_pid_is_not_taken_for_the_process(sleeper: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends while its file is opened: what was opened may be another's, and is not returned."""
    without_ioctls(monkeypatch)

    def end_then_open(pid: int, name: str) -> int:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED)
        return nsfs.open_path(f"/proc/self/ns/{name}")

    monkeypatch.setattr(nsfs, "open_pid", end_then_open)
    with Fd(os.pidfd_open(sleeper)) as pidfd, pytest.raises(SyscallError, match="the process has ended"):
        nsfs.open_pidfd(pidfd.fileno(), "net")


def test_a_process_that_was_reaped_has_no_pid_and_no_namespaces() -> None:
    with subprocess.Popen(["true"]) as process:
        pidfd = Fd(os.pidfd_open(process.pid))
    with pidfd:
        with pytest.raises(SyscallError, match="the process has ended"):
            calls.pid_of(pidfd.fileno())
        with pytest.raises(SyscallError, match="the process has ended"):
            nsfs.open_pidfd(pidfd.fileno(), "net")


def test_an_error_of_open_names_the_file() -> None:
    with pytest.raises(NotFound, match="/proc/self/ns/nothing") as caught:
        nsfs.open_path("/proc/self/ns/nothing")
    assert caught.value.filename == "/proc/self/ns/nothing"


@pytest.mark.rootless
def test_another_users_process_is_refused_with_a_hint() -> None:
    with pytest.raises(PermissionError, match="right to trace"):
        nsfs.open_pid(1, "net")


# ---- all of the machine's --------------------------------------------------------------------------------


@pytest.mark.both
def test_finds_our_own_namespaces_with_ourselves_in_them() -> None:
    found = {(one.kind, one.inode): one for one in nsfs.machine()}
    for kind in nsfs.KINDS:
        one = found[kind, os.stat(f"/proc/self/ns/{kind}").st_ino]
        assert one.processes >= 1
        assert 1 <= one.pid <= os.getpid()


@pytest.mark.both
def test_finds_the_owner_that_no_process_is_in() -> None:
    """A user namespace that owns another, and that everybody has left."""
    command = ["unshare", "--user", "--map-root-user", "unshare", "--user", "--map-root-user", "sleep", "30"]
    with subprocess.Popen(command) as process:
        try:
            wait_for_program(process.pid, "sleep")
            inode = os.stat(f"/proc/{process.pid}/ns/user").st_ino
            found = {one.inode: one for one in nsfs.machine() if one.kind == "user"}
            middle = found[inode].parent
            assert middle is not None
            assert (found[middle].processes, found[middle].pid) == (0, 0)
            assert found[middle].parent == os.stat("/proc/self/ns/user").st_ino
        finally:
            process.kill()


def wait_for_program(pid: int, name: str) -> None:
    """Until a process has come to run the last program of its command."""
    while True:
        with open(f"/proc/{pid}/comm") as file:
            if file.read() == f"{name}\n":
                return
        time.sleep(0.001)


@pytest.mark.root
def test_a_pin_with_blanks_in_its_name_is_found(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "a b\\c\nd")
    open(path, "w").close()
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", path], check=True)
    try:
        inode = os.stat(path).st_ino
        [found] = [one for one in nsfs.machine() if one.inode == inode]
        assert found.pins == (path,)
    finally:
        subprocess.run(["umount", path], check=True)
