"""A container as docker says it, for programs that read docker's words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import containerkit as ck
from containerkit.containers.spec import Health
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.both

# Of docker 27, `docker container inspect`: what programs read.
FIELDS = """
Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name RestartCount Driver Platform
MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver Mounts Config NetworkSettings
"""
STATE = "Status Running Paused Restarting OOMKilled Dead Pid ExitCode Error StartedAt FinishedAt"


def test_a_new_container_as_docker_says_it(store: Store, image: Image) -> None:
    made = store.containers.create(image, ["echo", "a"], name="one", labels={"x": "y"}, env={"A": "b", "PATH": None})
    said = made.inspect()
    assert set(FIELDS.split()) <= set(said)
    assert list(said["State"]) == STATE.split()
    assert (said["Id"], said["Name"], said["Image"]) == (made.id, "/one", str(image.id))
    assert (said["Path"], said["Args"]) == ("echo", ["a"])
    assert said["State"]["Status"] == "created"
    assert said["State"]["StartedAt"] == said["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", said["Created"])
    assert said["Config"]["Cmd"] == ["echo", "a"]
    assert said["Config"]["Entrypoint"] is None
    assert said["Config"]["Env"] == ["A=b"]
    assert said["Config"]["Labels"] == {"x": "y"}
    assert said["Config"]["Hostname"] == made.short_id
    assert said["Config"]["Image"] == "docker.io/library/test:1"
    assert said["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert said["HostConfig"]["PidsLimit"] == 512
    assert json.loads(json.dumps(said)) == said
    made.remove()
    with pytest.raises(ck.ContainerNotFound):
        made.inspect()


def test_limits_mounts_and_policies_as_docker_says_them(store: Store, image: Image, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    made = store.containers.create(
        image,
        entrypoint=["sh", "-c"],
        args=["true"],
        limits=ck.Limits(memory_max="64M", memory_swap_max=0, cpu_max=0.5, cpu_weight=200),
        restart="on-failure:3",
        health=Health("true", interval=2),
        volumes=[f"{tmp_path}/data:/data:ro", "named:/named"],
        mounts=[ck.Tmpfs("/t", size="1M"), ck.File("/f", "x")],
        extra_hosts={"db": "10.0.0.1"},
        stop_signal="QUIT",
        tty=True,
        read_only=True,
    )
    said = made.inspect()
    host = said["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 << 20, 64 << 20, 500_000_000)
    assert host["CpuShares"] == 2048
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert host["Binds"] == [f"{tmp_path}/data:/data:ro", "named:/named"]
    assert host["Tmpfs"] == {"/t": "size=1048576,mode=1777"}
    assert host["ExtraHosts"] == ["db:10.0.0.1"]
    assert host["ReadonlyRootfs"]
    assert said["State"]["Health"] == {"Status": "none", "FailingStreak": 0, "Log": []}
    assert said["Config"]["Healthcheck"]["Test"] == ["CMD", "/bin/sh", "-c", "true"]
    assert said["Config"]["Healthcheck"]["Interval"] == 2 * 10**9
    assert (said["Config"]["Entrypoint"], said["Config"]["Cmd"]) == (["sh", "-c"], ["true"])
    assert (said["Config"]["Tty"], said["Config"]["StopSignal"]) == (True, "SIGQUIT")
    bind, named, tmpfs, file = said["Mounts"]
    assert bind == {
        "Type": "bind",
        "Source": f"{tmp_path}/data",
        "Destination": "/data",
        "Mode": "ro",
        "RW": False,
        "Propagation": "rprivate",
    }
    assert (named["Type"], named["Name"], named["RW"]) == ("volume", "named", True)
    assert named["Source"] == store.volumes.get("named").path
    assert (tmpfs["Type"], tmpfs["RW"], file["Type"], file["RW"]) == ("tmpfs", True, "file", False)
    assert json.loads(json.dumps(said)) == said


def test_how_a_container_is_as_docker_says_it(store: Store, image: Image) -> None:
    made = store.containers.create(image, ["sh", "-c", "exit 3"])
    made.start()
    assert made.wait() == 3
    state = made.inspect()["State"]
    assert (state["Status"], state["Running"], state["ExitCode"], state["Pid"]) == ("exited", False, 3, 0)
    assert "0001" < state["StartedAt"] <= state["FinishedAt"]
    made = store.containers.create(image, ["sleep", "60"])
    with made:
        state = made.inspect()["State"]
        assert (state["Status"], state["Running"], state["ExitCode"]) == ("running", True, 0)
        assert state["Pid"] > 0
    assert made.id not in store.containers
