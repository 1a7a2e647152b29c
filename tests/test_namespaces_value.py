"""The Namespaces value: each kind alone is new, host or joined, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from containerkit import (
    PIPE,
    Dev,
    InvalidValue,
    Namespace,
    Namespaces,
    Proc,
    Process,
    Sandbox,
    SpawnError,
    run,
)
from containerkit.plan import CLONE_FLAGS

KINDS = tuple(CLONE_FLAGS)


def namespaces_of(**options: Any) -> dict[str, str]:
    """The namespaces that a program finds itself in."""
    script = "cd /proc/self/ns; for kind in user mnt pid net ipc uts cgroup time; do readlink $kind; done"
    with Process(["/bin/sh", "-c", script], stdout=PIPE, text=True, **options) as process:
        said = process.communicate(timeout=20)[0]
        assert process.returncode == 0
    return dict(line.split(":", 1) for line in said.split())


def ours() -> dict[str, str]:
    return dict(os.readlink(f"/proc/self/ns/{kind}").split(":", 1) for kind in KINDS)


def alone(caller: str, kind: str) -> dict[str, str]:
    """The arguments that make one new namespace, which an ordinary user may do in a user namespace only."""
    return {kind: "new"} if caller == "root" else {"user": "new", kind: "new"}


@pytest.mark.both
def test_none_is_the_default() -> None:
    assert namespaces_of() == ours()
    assert Namespaces().clone_flags() == 0


@pytest.mark.both
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_can_be_new_while_the_others_stay(caller: str, kind: str) -> None:
    new = alone(caller, kind)
    found, host = namespaces_of(namespaces=Namespaces(**new)), ours()
    assert {name for name in KINDS if found[name] != host[name]} == set(new)


@pytest.mark.both
def test_all_are_new_at_once(busybox_root: Path) -> None:
    found = namespaces_of(root=busybox_root, mounts=[Proc()], namespaces=Namespaces.all())
    host = ours()
    assert all(found[kind] != host[kind] for kind in KINDS)
    kept = namespaces_of(root=busybox_root, mounts=[Proc()], namespaces=Namespaces.all(net="host"))
    assert {kind for kind in KINDS if kept[kind] == host[kind]} == {"net"}


@pytest.mark.both
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mnt"])
def test_a_namespace_that_exists_is_joined(caller: str, kind: str) -> None:
    with Namespace.create(kind) as namespace:
        given: dict[str, Any] = {kind: namespace}
        owner = None
        if caller == "user" and kind != "user":
            owner = given["user"] = namespace.owner()
        try:
            found = namespaces_of(namespaces=Namespaces(**given))
        finally:
            if owner is not None:
                owner.close()
    assert found[kind] == f"[{namespace.inode}]"
    assert {name for name in KINDS if found[name] != ours()[name]} == set(given)


@pytest.mark.root
def test_the_mount_namespace_of_a_sandbox_is_joined(busybox_root: Path) -> None:
    with Sandbox(rootfs=busybox_root) as box:
        box.run(["/bin/sh", "-c", "echo kept > /tmp/file"], check=True)
        with Namespace.of(box, "mnt") as mnt, Namespace.of(box, "user") as user:
            namespaces = Namespaces(mnt=mnt, user=user)
            with Process(["/bin/cat", "/tmp/file"], namespaces=namespaces, stdout=PIPE, text=True) as process:
                assert process.communicate()[0] == "kept\n"


@pytest.mark.both
def test_two_starts_share_a_network_that_was_given(busybox_root: Path) -> None:
    with Namespace.create("net") as net:
        owner = net.owner()
        with Namespace.current("user") as current:
            given: dict[str, Any] = {"net": net, "user": "host" if owner == current else owner}
        serve = "import socket; s = socket.create_server(('127.0.0.1', 4321)); print('up', flush=True); s.accept()"
        try:
            with Process(
                [sys.executable, "-c", serve], namespaces=Namespaces(**given), stdout=PIPE, text=True
            ) as server:
                assert server.stdout is not None
                assert server.stdout.readline() == "up\n"
                call = "import socket; socket.create_connection(('127.0.0.1', 4321)).close()"
                with Process([sys.executable, "-c", call], namespaces=Namespaces(**given)) as client:
                    assert client.wait(10) == 0
                assert server.wait(10) == 0
        finally:
            if owner is not None:
                owner.close()


@pytest.mark.rootless
def test_an_ordinary_user_needs_a_user_namespace_and_is_told() -> None:
    with pytest.raises(SpawnError) as caught:
        namespaces_of(namespaces=Namespaces(uts="new"))
    assert caught.value.hint


@pytest.mark.both
def test_loopback_is_up_and_alone_in_a_new_network(caller: str, busybox_root: Path) -> None:
    done = run(["/bin/sh", "-c", "ip -o link; ping -c1 -W1 127.0.0.1 > /dev/null; ip -6 -o addr"], rootfs=busybox_root)
    lines = done.stdout.splitlines()
    assert "LOOPBACK,UP" in lines[0]
    assert all(": lo" in line for line in lines)


# ---- clocks ----------------------------------------------------------------------------------------------------------

CLOCKS = "import time; print(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())"


@pytest.mark.both
@pytest.mark.parametrize("offsets", [(1000.5, 100000.25), (-5.0, -7.25), (0.0, 0.000000001)])
def test_clocks_of_a_new_time_namespace_are_offset(caller: str, offsets: tuple[float, float]) -> None:
    namespaces = Namespaces(**alone(caller, "time"), clock_offsets=offsets)
    before = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
    with Process(["/usr/bin/env", "python3", "-c", CLOCKS], namespaces=namespaces, stdout=PIPE, text=True,
                 env={"PATH": os.environ["PATH"]}) as process:  # fmt: skip
        monotonic, boottime, wall = map(float, process.communicate()[0].split())
    took = time.monotonic() - before[0]
    assert offsets[0] <= monotonic - before[0] <= offsets[0] + took
    assert offsets[1] <= boottime - before[1] <= offsets[1] + took + 0.01
    assert -0.01 <= wall - before[2] <= took + 0.01  # the wall clock has no offset (time_namespaces(7))


@pytest.mark.both
def test_the_timeline_is_in_order_when_the_clock_jumps(caller: str, busybox_root: Path) -> None:
    for offsets in ((100000.0, 100000.0), (-5.0, -5.0)):
        namespaces = Namespaces(**alone(caller, "time"), clock_offsets=offsets)
        begin = time.monotonic_ns()
        with Process(["/bin/true"], namespaces=namespaces) as process:
            process.wait()
            events = list(process.timeline)
        took = time.monotonic_ns() - begin
        assert events
        assert all(event.duration >= 0 for event in events)
        assert all(0 <= event.start <= took for event in events), events


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["old", "", None, 3, True, "HOST"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_takes_host_new_or_a_handle(kind: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=f"namespace {kind}="):
        Namespaces(**{kind: value})


def test_there_are_eight_kinds() -> None:
    assert [kind for kind, _ in Namespaces().items()] == list(KINDS)
    with pytest.raises(TypeError):
        Namespaces(network="new")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Namespaces("new")  # type: ignore[misc]


def test_values_are_equal_by_what_they_say_and_cannot_be_changed() -> None:
    assert Namespaces.all() == Namespaces.all(net="new")
    assert Namespaces.all() != Namespaces.all(net="host")
    assert len({Namespaces.all(), Namespaces.all(), Namespaces()}) == 2
    with pytest.raises(AttributeError):
        Namespaces().user = "new"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": "/"}, "mount namespace"),
        ({"mounts": [Dev()]}, "mount namespace"),
        ({"init": True}, "pid='new'"),
        ({"hostname": "x"}, "uts='new'"),
        ({"domainname": "x"}, "uts='new'"),
        ({"cpu_seconds": 1}, "pid namespace"),
    ],
)
def test_options_that_need_a_new_namespace_name_it(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        Process(["/bin/true"], **options)


@pytest.mark.parametrize("offsets", [(float("nan"), 0.0), (float("inf"), 0.0), ("1", 2), (1,), (1, 2, 3)])
def test_clock_offsets_that_are_no_two_times_are_refused(offsets: Any) -> None:
    with pytest.raises(InvalidValue, match="clock_offsets"):
        Namespaces(time="new", clock_offsets=offsets)


def test_clock_offsets_need_a_new_time_namespace() -> None:
    with pytest.raises(InvalidValue, match="clock_offsets"):
        Namespaces(clock_offsets=(1.0, 1.0))


@pytest.mark.both
def test_clock_offsets_out_of_the_kernels_range_are_refused(caller: str) -> None:
    for offset in (-1e9, 1e11):
        namespaces = Namespaces(**alone(caller, "time"), clock_offsets=(offset, offset))
        with pytest.raises(SpawnError) as caught:
            Process(["/bin/true"], namespaces=namespaces)
        assert "clocks offset" in str(caught.value)


@pytest.mark.both
def test_a_program_that_makes_the_same_namespaces_by_hand_sees_the_same(caller: str) -> None:
    """unshare(1) as the other witness."""
    flags = ["--user", "--map-root-user"] if caller == "user" else []
    command = ["unshare", *flags, "--uts", "--ipc", "sh", "-c", "readlink /proc/self/ns/uts /proc/self/ns/ipc"]
    theirs = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert all(line.split(":")[1] != ours()[line.split(":")[0]] for line in theirs.split())
