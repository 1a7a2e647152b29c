"""The same limits through docker and podman and through us: the same contents in the same files of a v1 group."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest

from containerkit import Limits
from containerkit.cgroup import Cgroup, Layout

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(180)]

FILES = {
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes"),
    "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"),
    "cpuset": ("cpuset.cpus", "cpuset.mems"),
    "pids": ("pids.max",),
    "blkio": (
        "blkio.throttle.read_bps_device",
        "blkio.throttle.write_bps_device",
        "blkio.throttle.read_iops_device",
        "blkio.throttle.write_iops_device",
    ),
    "devices": ("devices.list",),
}
"""The files that mean the same to all three. cpu.shares is compared at ratios: 100 of v2 are 1024."""

Contents = dict[str, list[str]]


@pytest.fixture(scope="module", params=["docker", "podman"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Peer]:
    if Layout.current().version not in ("v1", "hybrid"):
        pytest.skip("the files compared are those of cgroup v1")
    directory = tmp_path_factory.mktemp(request.param)
    with getattr(peers, request.param)(directory) as made:
        yield made


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A block device that nobody uses."""
    file = tmp_path_factory.mktemp("device") / "disk"
    with file.open("wb") as disk:
        disk.truncate(1 << 20)
    attach = ["losetup", "--find", "--show", str(file)]
    found = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    yield found
    subprocess.run(["losetup", "--detach", found], check=True)


def of_process(pid: int) -> Contents:
    """The contents of FILES in the groups of a process."""
    found: Contents = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in FILES.keys() & set(controllers.split(",")):
            for file in FILES[controller]:
                text = Path(f"/sys/fs/cgroup/{controllers}{path}/{file}").read_text()
                found[file] = sorted(text.splitlines())
    return found


def of_group(group: Cgroup) -> Contents:
    return {
        file: sorted(group.directory(controller).read(file).splitlines())
        for controller, files in FILES.items()
        for file in files
    }


def ours(limits: Limits) -> Contents:
    with Cgroup.create(limits=limits, controllers=["memory", "cpu", "cpuset", "pids", "io", "devices"]) as group:
        return of_group(group)


def test_the_same_limits_are_the_same_contents(peer: peers.Peer, device: str) -> None:
    options = [
        "--memory=64m", "--memory-swap=96m", "--memory-reservation=32m", "--cpus=0.5", "--cpu-shares=2048",
        "--cpuset-cpus=0", "--cpuset-mems=0", "--pids-limit=20", f"--device-read-bps={device}:1mb",
        f"--device-write-bps={device}:2mb", f"--device-read-iops={device}:100", f"--device-write-iops={device}:50",
    ]  # fmt: skip
    with peer.container(*options) as pid:
        theirs = of_process(pid)
    limits = Limits(
        memory_max="64M", memory_swap_max="32M", memory_low="32M", cpu_max=0.5, cpu_weight=200, cpuset_cpus="0",
        cpuset_mems="0", pids_max=20, io_max={device: {"rbps": "1M", "wbps": "2M", "riops": 100, "wiops": 50}},
        devices=theirs["devices.list"],
    )  # fmt: skip
    assert ours(limits) == theirs


def test_no_limits_are_the_same_contents(peer: peers.Peer) -> None:
    """Their device list is always there; their default of pids depends on the engine."""
    with peer.container("--pids-limit=-1") as pid:
        theirs = of_process(pid)
    assert ours(Limits(pids_max=None, devices=theirs["devices.list"])) == theirs


def test_a_limit_that_differs_is_seen(peer: peers.Peer) -> None:
    with peer.container("--memory=64m", "--memory-swap=64m", "--cpus=0.5", "--pids-limit=20") as pid:
        theirs = of_process(pid)
    limits = Limits(memory_max="63M", memory_swap_max="1M", cpu_max=0.25, pids_max=21, devices=["/dev/null"])
    mine = ours(limits)
    assert {file for file in theirs if theirs[file] != mine[file]} == {
        "memory.limit_in_bytes", "cpu.cfs_quota_us", "pids.max", "devices.list"
    }  # fmt: skip
