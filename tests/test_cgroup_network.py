"""The class and the priority of a group's packets: v1's controllers where they are mounted, or what to use."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerkit import CgroupUnavailable, Limits
from containerkit.cgroup import Cgroup, Layout


def hierarchy_of(controller: str) -> int:
    """0 while it is mounted nowhere; None without it (/proc/cgroups)."""
    for line in Path("/proc/cgroups").read_text().splitlines():
        name, number, *_ = line.split()
        if name == controller:
            return int(number)
    pytest.skip(f"this kernel has no controller {controller}")


@pytest.mark.root
@pytest.mark.parametrize(
    "limits", [Limits(net_cls_classid=0x100001), Limits(net_prio={"lo": 5})], ids=["class", "priority"]
)
def test_where_no_controller_does_it_the_refusal_says_what_does(limits: Limits) -> None:
    if Layout.current().find("net_cls") is not None:
        pytest.skip("net_cls is mounted here")
    with pytest.raises(CgroupUnavailable, match="nftables"):
        Cgroup.create(limits=limits)


@pytest.fixture
def network_controllers(tmp_path: Path) -> Iterator[Path]:
    """A v1 hierarchy of net_cls and net_prio. The kernel keeps one for as long as a group of it is still going."""
    if hierarchy_of("net_cls") or hierarchy_of("net_prio"):
        pytest.skip("net_cls or net_prio is mounted already")
    mount = ["mount", "-t", "cgroup", "-o", "net_cls,net_prio", "none", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a hierarchy of net_cls cannot be mounted: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)
    deadline = time.monotonic() + 30
    while hierarchy_of("net_cls"):
        assert time.monotonic() < deadline, "the hierarchy of net_cls stays"
        time.sleep(0.1)
        subprocess.run(mount, check=True)
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.root
@pytest.mark.slow
def test_class_and_priority_are_what_the_controllers_then_have(network_controllers: Path) -> None:
    limits = Limits(net_cls_classid=0x100001, net_prio={"lo": 5})
    with Cgroup.create(limits=limits, controllers=["net_cls"]) as group:
        directory = group.directory("net_cls")
        assert os.path.dirname(directory.path) == str(network_controllers)
        assert directory.read("net_cls.classid") == str(0x100001)
        assert "lo 5" in directory.read("net_prio.ifpriomap").splitlines()
        group.update(Limits())
        assert directory.read("net_cls.classid") == "0"
        assert "lo 0" in directory.read("net_prio.ifpriomap").splitlines()
