"""Namespaces as handles."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from containerkit import holder
from containerkit.errors import ClosedHandle, Exists, InvalidValue, NotFound, NotPermitted, SpawnError, Unsupported
from containerkit.idmap import IdMap
from containerkit.kernel import nsfs
from containerkit.namespace import Namespace, NamespaceInfo, list_namespaces
from containerkit.namespaces import Namespaces
from containerkit.process import PIPE, Process

KINDS = pytest.mark.parametrize("kind", nsfs.KINDS)


def output(namespace: Namespace, *args: str, **options: Any) -> str:
    """What a program says that runs in the namespace."""
    with namespace.enter(args, stdout=PIPE, text=True, **options) as process:
        stdout, _ = process.communicate(timeout=10)
        assert process.returncode == 0
    return str(stdout)


def inode_of(kind: str, pid: int | str = "self") -> int:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def listed(kind: str, inode: int) -> list[NamespaceInfo]:
    return [one for one in list_namespaces(kind) if one.inode == inode]


# ---- create ----------------------------------------------------------------------------------------------


@pytest.mark.both
@KINDS
def test_creates_a_namespace_that_is_not_ours(kind: str) -> None:
    with Namespace.create(kind) as namespace:
        assert namespace.kind == kind
        assert namespace.inode != inode_of(kind)


@pytest.mark.both
@KINDS
def test_a_program_can_enter_what_was_created(kind: str) -> None:
    with Namespace.create(kind) as namespace:
        assert output(namespace, "readlink", f"/proc/self/ns/{kind}") == f"{kind}:[{namespace.inode}]\n"


@pytest.mark.both
def test_two_programs_meet_in_one_network_namespace() -> None:
    listen = "import socket; s = socket.create_server(('127.0.0.1', 7)); print('up', flush=True); s.accept()"
    connect = "import socket; socket.create_connection(('127.0.0.1', 7)); print('met')"
    with (
        Namespace.create("net") as net,
        net.enter([sys.executable, "-c", listen], stdout=PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        assert output(net, sys.executable, "-c", connect) == "met\n"
        assert server.wait(10) == 0


@pytest.mark.both
def test_a_new_network_namespace_has_its_loopback_interface_up() -> None:
    with Namespace.create("net") as net:
        assert output(net, "cat", "/proc/net/route", "/proc/net/if_inet6").count("lo\n") == 1


@pytest.mark.both
@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "ipc", "uts", "cgroup", "time"])
def test_is_owned_by_the_user_namespace_that_was_asked_for(kind: str) -> None:
    with (
        Namespace.create("user") as user,
        Namespace.create(kind, user=user) as namespace,
        namespace.owner() as owner,
    ):
        assert owner == user


@pytest.mark.root
def test_is_owned_by_roots_own_user_namespace() -> None:
    with Namespace.create("net") as net, net.owner() as owner, Namespace.current("user") as ours:
        assert owner == ours


@pytest.mark.rootless
def test_brings_a_user_namespace_for_an_ordinary_user() -> None:
    with Namespace.create("net") as net, net.owner() as owner, owner.parent() as parent:
        assert owner.owner_uid == os.geteuid()
        assert parent.inode == inode_of("user")


@pytest.mark.rootless
def test_an_ordinary_user_is_root_inside_with_their_one_id() -> None:
    with Namespace.create("user") as user:
        assert output(user, "cat", "/proc/self/uid_map").split() == ["0", str(os.geteuid()), "1"]


@pytest.mark.root
def test_two_user_namespaces_of_root_share_no_id() -> None:
    with Namespace.create("user") as one, Namespace.create("user") as two:
        starts = {output(user, "cat", "/proc/self/uid_map").split()[1] for user in (one, two)}
        assert len(starts) == 2
        assert "0" not in starts


@pytest.mark.root
def test_maps_ids_as_told() -> None:
    with Namespace.create("user", idmap=IdMap.range(300000, 10)) as user:
        assert output(user, "cat", "/proc/self/uid_map").split() == ["0", "300000", "10"]


@pytest.mark.both
def test_sets_the_clocks_of_a_time_namespace() -> None:
    with Namespace.create("time", monotonic=86400, boottime=-0.5) as namespace:
        words = output(namespace, "cat", "/proc/self/timens_offsets").split()
    assert words == ["monotonic", "86400", "0", "boottime", "-1", "500000000"]


@pytest.mark.root
def test_mounts_in_a_new_mount_namespace_are_not_seen_here(tmp_path: os.PathLike[str]) -> None:
    with Namespace.create("mnt") as mnt:
        output(mnt, "mount", "-t", "tmpfs", "planted", os.fspath(tmp_path))
        assert "planted" in output(mnt, "cat", "/proc/self/mounts")
    with open("/proc/self/mounts") as file:
        assert "planted" not in file.read()


@pytest.mark.root
def test_leaves_no_process_but_for_a_pid_namespace() -> None:
    with Namespace.create("net") as net:
        assert [one.processes for one in listed("net", net.inode)] == []
    with Namespace.create("pid") as pid:
        [found] = listed("pid", pid.inode)
        assert (found.processes, found.command) == (1, "ck-init")


@pytest.mark.both
def test_closing_a_pid_namespace_ends_what_runs_in_it() -> None:
    pid = Namespace.create("pid")
    with pid.enter(["sleep", "60"]) as process:
        pid.close()
        assert process.returncode == -9


@pytest.mark.root
def test_closing_a_pid_namespace_does_not_wait_for_what_others_have_to_reap() -> None:
    """The kernel keeps PID 1 until all that was in the namespace is reaped: here by us, but later."""
    pid = Namespace.create("pid")
    with Process(["sleep", "60"], namespaces=Namespaces(pid=pid)) as process:
        pid.close()
        assert process.wait(10) == -9
    while holder._ending:  # reaped along with the next ones
        Namespace.create("uts").close()


@pytest.mark.both
def test_a_fork_of_the_program_does_not_end_its_pid_namespace() -> None:
    with Namespace.create("pid") as pid:
        child = os.fork()
        if child == 0:
            pid.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert output(pid, "echo", "alive") == "alive\n"


def test_a_forgotten_pid_namespace_ends_with_a_warning() -> None:
    pid = Namespace.create("pid")
    with pytest.warns(ResourceWarning, match="unclosed <Namespace pid:"):
        del pid


@pytest.mark.both
def test_the_caller_stays_where_it_is() -> None:
    before = {kind: inode_of(kind) for kind in nsfs.KINDS}
    for kind in nsfs.KINDS:
        with Namespace.create(kind) as namespace:
            output(namespace, "true")
    assert {kind: inode_of(kind) for kind in nsfs.KINDS} == before


def test_a_refused_map_leaves_nothing_and_names_the_step() -> None:
    overlapping = IdMap([(0, 1000, 10), (5, 2000, 10)], [(0, 1000, 10)])
    with pytest.raises(SpawnError, match="map user ids") as caught:
        Namespace.create("user", idmap=overlapping)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("network",), {}, "must be one of user, mnt, pid, net"),
        (("net",), {"monotonic": 1}, "clock offsets belong to a time namespace"),
        (("net",), {"idmap": IdMap.identity()}, "this 'net' needs none"),
    ],
)
@pytest.mark.root
def test_refuses_arguments_that_do_not_fit(arguments: Sequence[str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        Namespace.create(*arguments, **options)


def test_refuses_an_owner_that_is_no_user_namespace() -> None:
    with Namespace.current("net") as net, pytest.raises(InvalidValue, match="must be a user namespace"):
        Namespace.create("uts", user=net)


def test_refuses_to_nest_user_namespaces_from_outside() -> None:
    with Namespace.create("user") as user, pytest.raises(Unsupported, match="enter"):
        Namespace.create("user", user=user)


# ---- open ------------------------------------------------------------------------------------------------


@KINDS
def test_current_is_the_one_we_are_in(kind: str) -> None:
    with Namespace.current(kind) as ours, Namespace.open(f"/proc/self/ns/{kind}") as opened:
        assert ours == opened
        assert ours.inode == inode_of(kind)


@pytest.mark.both
def test_finds_the_namespace_of_a_running_process() -> None:
    with (
        Namespace.create("net") as net,
        net.enter(["sleep", "60"]) as process,
        Namespace.of(process, "net") as by_handle,
        Namespace.of(process.pid, "net") as by_pid,
    ):
        assert by_handle == by_pid == net


def test_has_no_namespace_of_a_pid_that_is_not_there() -> None:
    with pytest.raises(NotFound):
        Namespace.of(2**22 + 1, "net")


def test_refuses_a_file_that_is_no_namespace() -> None:
    with pytest.raises(InvalidValue, match=r"'/etc/passwd' is not the file of a namespace"):
        Namespace.open("/etc/passwd")


def test_refuses_a_descriptor_that_is_no_namespace_and_leaves_it_open() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(InvalidValue):
        Namespace(fd)
    os.close(fd)


# ---- what it is ------------------------------------------------------------------------------------------


def test_equal_handles_are_one_key() -> None:
    with Namespace.current("net") as one, Namespace.current("net") as two, Namespace.current("uts") as other:
        assert one == two != other
        assert len({one, two, other}) == 2
        assert one != "net"


def test_a_closed_handle_still_tells_what_it_was() -> None:
    with Namespace.current("net") as net:
        assert repr(net) == f"<Namespace net:[{net.inode}] fd={net.fileno()}>"
    assert repr(net) == f"<Namespace net:[{net.inode}] closed>"
    with pytest.raises(ClosedHandle):
        net.owner()


def test_a_new_pid_namespace_is_a_child_of_ours() -> None:
    with Namespace.create("pid") as pid, pid.parent() as parent, Namespace.current("pid") as ours:
        assert parent == ours


def test_nothing_beyond_our_own_namespaces_is_told() -> None:
    with Namespace.current("user") as user:
        assert user.parent() is None
        assert user.owner() is None


def test_a_network_namespace_has_no_parent() -> None:
    with Namespace.current("net") as net, pytest.raises(InvalidValue, match="only user and pid"):
        net.parent()


def test_cannot_be_pickled() -> None:
    with Namespace.current("net") as net, pytest.raises(TypeError):
        pickle.dumps(net)


# ---- pin -------------------------------------------------------------------------------------------------


@pytest.fixture
def private_directory(tmp_path: os.PathLike[str]) -> Iterator[str]:
    """A mount whose events reach no other mount namespace: a mnt namespace can be pinned on no other."""
    path = os.fspath(tmp_path)
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "--make-private", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["user", "mnt", "net", "ipc", "uts", "cgroup", "time"])
def test_a_pin_keeps_it_alive_without_a_handle(private_directory: str, kind: str) -> None:
    path = os.path.join(private_directory, kind)
    with Namespace.create(kind) as namespace:
        namespace.pin(path)
    with Namespace.open(path) as opened:
        assert opened == namespace
    Namespace.unpin(path)
    assert not os.path.lexists(path)


@pytest.mark.root
def test_a_pin_is_listed(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "net")
    with Namespace.create("net") as net:
        net.pin(path)
        [found] = listed("net", net.inode)
        assert (found.pins, found.processes, found.owner) == ((path,), 0, inode_of("user"))
        Namespace.unpin(path)
        assert listed("net", net.inode) == []


@pytest.mark.root
def test_a_second_pin_at_one_place_is_refused(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "net")
    with Namespace.create("net") as net:
        net.pin(path)
        with pytest.raises(Exists, match="unpin"):
            net.pin(path)
        Namespace.unpin(path)


@pytest.mark.root
def test_a_link_is_not_followed_to_a_place_to_pin(tmp_path: os.PathLike[str]) -> None:
    target, link = os.path.join(tmp_path, "target"), os.path.join(tmp_path, "link")
    open(target, "w").close()
    os.symlink(target, link)
    with Namespace.create("net") as net, pytest.raises(InvalidValue, match="a plain file"):
        net.pin(link)
    assert os.readlink(link) == target


@pytest.mark.root
def test_our_own_mount_namespace_cannot_be_pinned(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "mnt")
    with Namespace.current("mnt") as mnt, pytest.raises(OSError, match="never in its own"):
        mnt.pin(path)
    assert not os.path.lexists(path)


@pytest.mark.rootless
def test_an_ordinary_user_cannot_pin(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "net")
    with Namespace.create("net") as net, pytest.raises(NotPermitted, match="CAP_SYS_ADMIN"):
        net.pin(path)
    assert not os.path.lexists(path)


def test_a_file_without_a_namespace_is_not_unpinned(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "plain")
    open(path, "w").close()
    with pytest.raises(InvalidValue, match="no namespace is pinned"):
        Namespace.unpin(path)
    assert os.path.exists(path)


# ---- list ------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_lists_our_own_namespaces() -> None:
    for kind in nsfs.KINDS:
        [found] = listed(kind, inode_of(kind))
        assert found.processes >= 1
        assert found.command


@pytest.mark.both
def test_lists_the_kind_that_was_asked_for() -> None:
    assert {one.kind for one in list_namespaces("uts")} == {"uts"}
    assert {one.kind for one in list_namespaces()} >= set(nsfs.KINDS)


@pytest.mark.root
def test_lists_parent_and_owner_by_inode() -> None:
    with Namespace.create("user") as user, Namespace.create("pid", user=user) as pid:
        [found] = listed("pid", pid.inode)
        assert (found.parent, found.owner) == (inode_of("pid"), user.inode)


# ---- cost ------------------------------------------------------------------------------------------------


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "attr, json, logging, asyncio, subprocess, argparse"
    code = f"import sys, containerkit.namespace; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
