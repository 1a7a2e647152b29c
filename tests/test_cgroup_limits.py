"""Limits of run() and Sandbox that a control group keeps: programs start inside it, and it is gone afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import AsUser
from ordinary_user import account
from patience import PATIENCE

from containerkit import Cgroup, CgroupUnavailable, Completed, IdMap, InvalidValue, Limits, Sandbox, aio, explain, run
from containerkit.cgroup import Layout

HERE = Layout.current()
MEMORY = HERE.find("memory")
V1_MEMORY = MEMORY is not None and MEMORY.version == 1

pytestmark = pytest.mark.root


# A shell that has 60 MiB in a variable; and the processors that it may use.
HUNGRY = ["sh", "-c", "x=$(head -c 60M /dev/zero | tr '\\0' x); echo ${#x}"]
ALLOWED = ["sed", "-n", "s/^Cpus_allowed_list:[[:space:]]*//p", "/proc/self/status"]


def own_groups() -> list[str]:
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"/ck-{os.getpid()}-" in path]


def groups_of(pid: int) -> dict[str, str]:
    """{controllers: path} of a process."""
    lines = (line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    return {names: path for _, names, path in lines}


def printed_all(done: Completed[str]) -> bool:
    assert done.stdout is not None
    return "all" in done.stdout


def key(controller: str) -> str:
    found = HERE.find(controller)
    assert found is not None
    return ",".join(found.controllers) if found.version == 1 else ""


# ---- the value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"memory_max": "256M"}, 256 << 20),
        ({"memory_swap_max": 0}, 0),
        ({"cpuset_cpus": "0-2, 5"}, "0-2,5"),
        ({"cpuset_cpus": [3, 1, 2]}, "1-3"),
        ({"io_max": {"8:0": {"rbps": "10M/s", "wiops": 5}}}, (("8:0", 10 << 20, None, None, 5),)),
        ({"io_latency": {"8:0": 0.01}}, (("8:0", 0.01),)),
        ({"hugetlb_max": {"2MB": "4M"}}, (("2MB", 4 << 20),)),
        (
            {"rdma_max": {"mlx4_0": {"hca_object": 2000, "hca_handle": 2}}},
            (("mlx4_0", "hca_handle=2 hca_object=2000"),),
        ),
        ({"misc_max": {"sev": 3}}, (("sev", "3"),)),
        ({"raw": {"memory.swappiness": 10}}, (("memory.swappiness", "10"),)),
    ],
)
def test_what_people_write_becomes_one_form(given: dict[str, object], kept: object) -> None:
    limits = Limits(**given)  # type: ignore[arg-type]
    [name] = given
    assert getattr(limits, name) == kept
    assert Limits(**{name: getattr(limits, name)}) == limits  # the form itself can be given again
    assert limits.grouped == (name,)


def test_half_of_the_memory_is_a_percentage() -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert Limits(memory_max="50%").memory_max == pytest.approx(whole / 2, rel=0.001)


@pytest.mark.parametrize(
    "given",
    [
        {"memory_max": 0},
        {"memory_max": "101%"},
        {"memory_max": "0%"},
        {"memory_max": -1},
        {"memory_low": "2G", "memory_max": "1G"},
        {"cpu_max": 0},
        {"cpu_max": 0.001},
        {"cpu_max": 1, "cpu_period": 2},
        {"cpu_burst": 0.01},
        {"cpu_max": 1, "cpu_burst": 0.2},
        {"cpu_weight": 0},
        {"cpu_weight": 10001},
        {"cpu_idle": True, "cpu_weight": 100},
        {"cpu_uclamp_min": 101},
        {"cpuset_cpus": ""},
        {"cpuset_cpus": []},
        {"cpuset_cpus": "3-1"},
        {"cpuset_cpus": "0,x"},
        {"io_max": {"sda": {"rbps": 1}}},
        {"io_max": {"8:0": {"bps": 1}}},
        {"io_max": {"8:0": {"rbps": 0}}},
        {"io_max": {"8:0": {"riops": 0.5}}},
        {"io_latency": {"8:0": 0}},
        {"hugetlb_max": {"2M": 1}},
        {"rdma_max": {"a b": 1}},
        {"misc_max": {"a": -1}},
        {"net_prio": {"a/b": 1}},
        {"net_cls_classid": 0},
        {"raw": {"../x": 1}},
        {"raw": {"memory": 1}},
        {"devices": "/dev/null"},
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        Limits(**given)  # type: ignore[arg-type]


def test_limits_without_a_group_need_none() -> None:
    assert Limits(pids_max=3, cpu_seconds=1, nofile=20, file_size_max=1, output_max=1).grouped == ()


# ---- run -------------------------------------------------------------------------------------------------------------


def test_a_run_starts_inside_and_leaves_no_group() -> None:
    done = run(["cat", "/proc/self/cgroup"], limits=Limits(memory_max="256M"))
    assert done.ok
    assert own_groups() == []


def test_memory_beyond_the_limit_kills_and_only_that_run() -> None:
    bounded = run(HUNGRY, limits=Limits(memory_max="32M", memory_swap_max=0), timeout=30 * PATIENCE)
    assert bounded.returncode == -9
    assert bounded.stdout == ""
    assert run(HUNGRY, timeout=30 * PATIENCE).stdout == f"{60 << 20}\n"


def test_processors_are_those_of_the_set() -> None:
    assert run(ALLOWED, limits=Limits(cpuset_cpus="0")).stdout == "0\n"


def test_devices_that_are_not_allowed_cannot_be_opened() -> None:
    script = "echo x > /dev/null && ! head -c 1 /dev/zero 2>/dev/null >&2 && echo bounded"
    assert run(["sh", "-c", script], limits=Limits(devices=["/dev/null"])).stdout == "bounded\n"


def test_what_was_asked_for_and_cannot_be_had_is_an_error_and_nothing_starts() -> None:
    with pytest.raises(CgroupUnavailable, match="humour"):
        run(["true"], limits=Limits(raw={"humour.max": 1}))
    assert own_groups() == []


@pytest.mark.skipif(not V1_MEMORY, reason="what v1 has not")
@pytest.mark.parametrize(
    ("limits", "instead"),
    [
        (Limits(memory_high="1G"), "memory_max"),
        (Limits(memory_min="1M"), "memory_low"),
        (Limits(memory_swap_max=0), "memory_max"),
        (Limits(io_latency={"8:0": 1}), "io_max"),
    ],
)
def test_what_v1_has_not_is_refused_with_what_replaces_it(limits: Limits, instead: str) -> None:
    with pytest.raises(CgroupUnavailable, match=instead) as caught:
        run(["true"], limits=limits)
    assert caught.value.reason == "limit"


def test_with_consent_a_run_goes_without_what_cannot_be_had() -> None:
    assert run(["true"], limits=Limits(raw={"humour.max": 1}, memory_max="256M", best_effort=True)).ok


def test_pids_are_counted_by_a_group_where_the_hosts_root_is_let_in() -> None:
    """RLIMIT_NPROC does not bind root."""
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo all"
    done = run(["sh", "-c", script], idmap=IdMap.identity(), limits=Limits(pids_max=6), timeout=20 * PATIENCE)
    assert not printed_all(done)
    assert own_groups() == []


def test_a_start_that_fails_leaves_no_group() -> None:
    with pytest.raises(OSError, match="execute"):
        run(["/does/not/exist"], limits=Limits(memory_max="64M"))
    assert own_groups() == []


def test_the_plan_tells_of_the_group_and_none_is_left() -> None:
    said = explain(["true"], limits=Limits(memory_max="64M"))
    assert "cgroup (v1: memory)" in said or not V1_MEMORY
    assert own_groups() == []


def test_the_asyncio_twin_is_bounded_too() -> None:
    async def main() -> None:
        assert (await aio.run(ALLOWED, limits=Limits(cpuset_cpus="0"))).stdout == "0\n"

    asyncio.run(main())
    assert own_groups() == []


def test_what_outlives_the_program_ends_with_it_and_the_group_goes() -> None:
    assert run(["sh", "-c", "setsid sleep 1000 & exit 0"], limits=Limits(memory_max="64M")).ok
    assert own_groups() == []


KILLED = """
import os, signal
from containerkit import Limits, Sandbox
box = Sandbox(limits=Limits(memory_max="64M"))
print(box._init._bounds.group.dirs[0].path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_group_of_a_program_that_was_killed_goes_with_the_first_of_the_next() -> None:
    path = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60 * PATIENCE).stdout
    assert os.path.isdir(path.strip())
    code = "from containerkit import Limits, run; run(['true'], limits=Limits(memory_max='64M'))"
    deadline = time.monotonic() + 20 * PATIENCE
    while os.path.isdir(path.strip()):  # what was in it is still ending
        assert time.monotonic() < deadline
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60 * PATIENCE)


# ---- Sandbox ---------------------------------------------------------------------------------------------------------


def test_everything_in_a_sandbox_is_in_its_group_also_what_joins() -> None:
    with Sandbox(limits=Limits(memory_max="256M")) as box:
        group = groups_of(box.pid)[key("memory")]
        assert f"/ck-{os.getpid()}-" in group
        with box.process(["sleep", "1000"]) as process:
            assert groups_of(process.pid)[key("memory")] == group
    assert own_groups() == []


def test_a_joiner_with_limits_of_its_own_is_bounded_by_the_sandbox_as_well() -> None:
    with Sandbox(limits=Limits(memory_max="32M", memory_swap_max=0)) as box:
        with box.process(["sleep", "1000"], limits=Limits(memory_max="16M", cpu_max=1)) as process:
            outer, inner = groups_of(box.pid)[key("memory")], groups_of(process.pid)[key("memory")]
            assert inner != outer
            assert os.path.dirname(inner) == (outer if V1_MEMORY else os.path.dirname(outer))
            assert f"/ck-{os.getpid()}-" in groups_of(process.pid)[key("cpu")]
        assert box.run(HUNGRY, limits=Limits(memory_max="1G"), timeout=30 * PATIENCE).returncode == -9
        assert box.run(["true"]).ok
    assert own_groups() == []


def test_a_joiner_may_have_limits_where_the_sandbox_has_none() -> None:
    with Sandbox() as box:
        assert box.run(ALLOWED, limits=Limits(cpuset_cpus="0")).stdout == "0\n"
        assert own_groups() == []


def test_pids_of_all_that_is_in_a_sandbox_count_together() -> None:
    with Sandbox(limits=Limits(pids_max=8), idmap=IdMap.identity()) as box:
        script = "for i in 1 2 3; do sleep 1000 & done; wait"
        with box.process(["sh", "-c", script], stderr=subprocess.DEVNULL):
            done = box.run(["sh", "-c", f"{script}; echo all"], timeout=10 * PATIENCE, grace=0)
            assert not printed_all(done)
            assert done.outcome != "timeout"


def test_enforced_reads_the_limits_back() -> None:
    with Sandbox(limits=Limits(memory_max="256M", cpu_max=0.5)) as box:
        walls = box.enforced()
    assert str(256 << 20) in walls["limit memory_max"]
    assert "50000" in walls["limit cpu_max"]


# ---- an ordinary user ------------------------------------------------------------------------------------------------

USER_RUN = """
from containerkit import CgroupUnavailable, Limits, Sandbox, run
data = ["sh", "-c", "ulimit -d"]
try:
    run(["true"], limits=Limits(memory_max="256M"))
except CgroupUnavailable as error:
    print(error.reason)
print(run(data, limits=Limits(memory_max="256M", best_effort=True)).stdout.strip())
with Sandbox(limits=Limits(memory_max="256M", best_effort=True)) as box:
    print(box.run(data).stdout.strip())
    print(box.enforced()["limit memory_max"])
"""


def test_without_delegation_a_limit_is_refused_or_with_consent_kept_by_rlimits(as_user: AsUser) -> None:
    most = 256 << 20
    assert as_user(USER_RUN, timeout=60 * PATIENCE).stdout.splitlines() == [
        "not delegated",
        str(most >> 10),
        str(most >> 10),
        f"RLIMIT_DATA, of each process: {most}",
    ]


@pytest.mark.skipif(not V1_MEMORY, reason="in v2 the user must come from the leaf of a delegated group")
def test_with_delegation_an_ordinary_users_run_is_bounded(as_user: AsUser) -> None:
    user = account()
    code = f"""
from containerkit import Limits, run
print(run({HUNGRY}, limits=Limits(memory_max="32M", memory_swap_max=0)).returncode)
print(run({HUNGRY}).returncode)
"""
    with Cgroup.create(controllers=["memory"], delegate=(user.pw_uid, user.pw_gid)) as group:
        enter = f"open({group.directory('memory').path!r} + '/tasks', 'w').write('0')\n"
        assert as_user(enter + code, timeout=60 * PATIENCE).stdout.splitlines() == ["-9", "0"]
