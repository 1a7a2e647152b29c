"""What a system call or a file tells about this machine."""

from __future__ import annotations

import os
import subprocess

import linux
import pytest

from containerkit.kernel import probe
from containerkit.kernel.fd import Fd


@pytest.mark.both
def test_root_has_capabilities_and_an_ordinary_user_none(caller: str) -> None:
    assert probe.has_capability("sys_admin") is (caller == "root")


def test_a_switch_that_is_missing_has_no_value() -> None:
    assert probe.sysctl("kernel/no_such_switch") is None
    assert probe.sysctl("kernel/ostype") == "Linux"


@pytest.mark.both
def test_memory_files_can_be_executed_here() -> None:
    assert probe.memfd_exec()


def test_a_status_is_known_only_of_what_has_ended() -> None:
    with subprocess.Popen(["sleep", "30"]) as process, Fd(os.pidfd_open(process.pid)) as pidfd:
        assert not probe.pidfd_exit_status(pidfd.fileno())
        process.kill()
        process.wait()
        assert probe.pidfd_exit_status(pidfd.fileno()) == (linux.VERSION >= (6, 15))


@pytest.mark.root
def test_root_can_use_each_controller_that_it_finds() -> None:
    found = probe.cgroups()
    assert found.layout in ("v1", "v2", "hybrid")
    assert set(found.usable) == set(found.controllers)


@pytest.mark.rootless
def test_an_ordinary_user_without_a_cgroup_can_use_none() -> None:
    assert probe.cgroups().usable == ()


@pytest.mark.parametrize(
    ("mount", "root", "path", "directory"),
    [
        ("/sys/fs/cgroup", "/", "/", "/sys/fs/cgroup"),
        ("/sys/fs/cgroup", "/", "/user.slice/a", "/sys/fs/cgroup/user.slice/a"),
        ("/sys/fs/cgroup", "/docker/1", "/docker/1", "/sys/fs/cgroup"),
        ("/sys/fs/cgroup", "/docker/1", "/docker/1/b", "/sys/fs/cgroup/b"),
    ],
)
def test_finds_the_directory_of_a_cgroup_below_what_is_mounted(
    mount: str, root: str, path: str, directory: str
) -> None:
    assert probe._below(mount, root, path) == directory
