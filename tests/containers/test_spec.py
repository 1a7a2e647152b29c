"""What a container is made of: checked when it is made, and the same after it was in a database."""

from __future__ import annotations

import json
import signal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import containerkit as ck
from containerkit.containers import value_json
from containerkit.containers.names import check_name, random_id, random_name
from containerkit.containers.spec import ContainerSpec, Health, Restart, signal_name, signal_number
from containerkit.images.config import ImageConfig
from containerkit.security.landlock import Landlock
from containerkit.security.seccomp import Arg, Seccomp


def same(spec: ContainerSpec) -> ContainerSpec:
    text = value_json.dump(spec)
    again: ContainerSpec = value_json.load(text)
    assert again == spec
    assert hash(again) == hash(spec)
    assert value_json.dump(again) == text
    return again


def test_restart_policies_are_docker_s_words() -> None:
    assert Restart.parse("on-failure:5") == Restart("on-failure", 5)
    assert str(Restart.parse("on-failure:5")) == "on-failure:5"
    assert Restart.parse("unless-stopped") == Restart("unless-stopped")
    for bad in ("sometimes", "always:3", "on-failure:x", "on-failure:-1"):
        with pytest.raises(ck.InvalidValue):
            Restart.parse(bad)


def test_signals_have_numbers_and_names() -> None:
    for text in ("TERM", "SIGTERM", "sigterm", "15", 15, signal.SIGTERM):
        assert signal_number(text) == 15
    assert signal_number("SIGRTMIN+3") == signal.SIGRTMIN + 3
    assert signal_name(signal_number("RTMIN+3")) == "SIGRTMIN+3"
    assert signal_name(9) == "SIGKILL"
    for bad in ("", "0", 0, 65, -1, "TERM+1", "RTMIN+x", "RTMIN+99", "SIG", True):
        with pytest.raises(ck.InvalidValue):
            signal_number(bad)


def config(**inner: Any) -> ImageConfig:
    content = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": inner}
    return ImageConfig.make(content)


@pytest.mark.parametrize(
    ("check", "health"),
    [
        (None, None),
        ({"Test": ["NONE"]}, None),
        ({"Test": []}, None),
        ({"Test": "true"}, None),
        ({"Test": ["CMD"]}, None),
        ({"Test": ["CMD", 1]}, None),
        ({"Test": ["CMD", "a", "b"]}, Health(("a", "b"))),
        ({"Test": ["CMD-SHELL", "a b"]}, Health(("/bin/sh", "-c", "a b"))),
        (
            {"Test": ["CMD", "a"], "Interval": 2 * 10**9, "Timeout": 10**6, "StartPeriod": 10**10, "Retries": 5},
            Health(("a",), interval=2.0, timeout=0.001, start_period=10.0, retries=5),
        ),
        ({"Test": ["CMD", "a"], "Interval": 0, "Timeout": -1, "Retries": "x"}, Health(("a",))),
        ({"Test": ["CMD", "a"], "Interval": 10**30, "Timeout": True, "Retries": 10**30}, Health(("a",))),
    ],
)
def test_an_image_s_health_check_is_read_as_docker_reads_it(check: Any, health: Health | None) -> None:
    assert Health.of_image(config(Healthcheck=check)) == health


def test_an_image_s_shell_runs_its_health_check() -> None:
    one = config(Healthcheck={"Test": ["CMD-SHELL", "x"]}, Shell=["/bin/bash", "-ec"])
    assert Health.of_image(one) == Health(("/bin/bash", "-ec", "x"))


@pytest.mark.parametrize(
    "fields",
    [
        {"args": ()},
        {"args": ("",)},
        {"args": ("a\0",)},
        {"cwd": "relative"},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"hostname": ""},
        {"hostname": "x" * 65},
        {"network": "bridge"},
        {"dns": "example.com"},
        {"extra_hosts": {"a b": "1.2.3.4"}},
        {"extra_hosts": {"a": "1.2.3"}},
        {"stop_timeout": -1},
        {"log_files": 0},
        {"log_max_size": 1},
        {"labels": {"a": 1}},
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ck.InvalidValue):
        ContainerSpec(**{"args": ("true",), **fields})


def test_a_full_specification_is_the_same_after_json() -> None:
    spec = ContainerSpec(
        args=("a", "b", "\udcff"),
        entrypoint=("a",),
        env={"A": "1", "B": None, "$": "x"},
        user="bob",
        cwd="/x",
        hostname="h",
        domainname="d",
        limits=ck.Limits(
            memory_max="64M",
            cpu_max=0.5,
            io_max={"8:0": {"rbps": "10M/s"}},
            devices=["c 1:3 rwm"],
            raw={"memory.swap.high": "1G"},
            hugetlb_max={"2MB": "64M"},
            rdma_max={"mlx4_0": {"hca_handle": 2}},
            cpuset_cpus="0",
        ),
        security=ck.Security(
            capabilities=ck.Capabilities("NET_RAW"),
            seccomp=Seccomp.strict().deny("socket", where=Arg(0, "in", (1, 2))),
            landlock=Landlock({"/": "read execute", "/srv": "write"}, connect_tcp=[80]),
            sysctls={"net.ipv4.ip_forward": 1},
        ),
        network="host",
        restart="on-failure:3",
        stop_signal="QUIT",
        stop_timeout=1.5,
        health=Health("curl localhost", interval=5),
        labels={"$": "y", "plain": "z"},
        tty=True,
        stdin_open=True,
        init=False,
        read_only=True,
        extra_hosts={"db": "10.0.0.1"},
        dns=["::1"],
        mounts=[ck.Bind("/srv", "/data", read_only=False), ck.Tmpfs("/t", size="1M"), ck.File("/f", b"\0\xff")],
        log_max_size="1M",
        log_files=5,
    )
    same(spec)


@pytest.mark.parametrize("preset", ["strict", "service", "compat"])
def test_a_preset_is_kept_by_its_name(preset: str) -> None:
    security = getattr(ck.Security, preset)()
    text = value_json.dump(ContainerSpec(args=("true",), security=security))
    assert len(text) < 120
    assert same(ContainerSpec(args=("true",), security=security)).security is security
    changed = attrs.evolve(security, low_ports=not security.low_ports)
    assert same(ContainerSpec(args=("true",), security=changed)).security == changed


@given(st.dictionaries(st.text(), st.text()), st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1))
def test_any_text_is_the_same_after_json(labels: dict[str, str], words: list[str]) -> None:
    same(ContainerSpec(args=("true", *words), labels=labels))


def test_only_values_that_are_known_are_made_from_json() -> None:
    for text in (
        "",
        "{}",
        '{"$":"os.system"}',
        '{"$":"Store","path":"/"}',
        '{"$":"ContainerSpec","args":["x"],"future":1}',
        '{"$":"Security","preset":"unconfined_as_the_caller"}',
        '{"$":"Capabilities"}',
    ):
        with pytest.raises(ck.StoreError, match="upgrade"):
            value_json.load(text)
    with pytest.raises(TypeError, match="cannot be kept"):
        value_json.dump(ck.Namespaces())


def test_json_has_only_what_is_not_as_by_default() -> None:
    assert json.loads(value_json.dump(ContainerSpec(args=("true",)))) == {"$": "ContainerSpec", "args": ["true"]}


def test_random_names_fit_the_rule() -> None:
    names = {random_name() for _ in range(1000)}
    assert len(names) > 800
    for name in (*names, random_name(1), random_name(5)):
        assert check_name(name) == name
    assert len(random_id()) == 64
