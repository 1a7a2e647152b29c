"""Control groups as handles: made, entered, bounded, frozen, killed, removed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import AsUser
from ordinary_user import account
from patience import PATIENCE

from containerkit import Cgroup, CgroupUnavailable, ClosedHandle, Exists, InvalidValue, Limits, NotFound, Process, run
from containerkit.cgroup import Layout

pytestmark = pytest.mark.root

V1_MEMORY = next(
    (one for one in Layout.current().hierarchies if one.version == 1 and "memory" in one.controllers), None
)


def exists(group_path: str) -> bool:
    return os.path.isdir(group_path)


def paths(group: Cgroup) -> list[str]:
    return [one.path for one in group.dirs]


@contextmanager
def sleeper(group: Cgroup | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            if group is not None:
                group.adopt(process.pid)
            yield process
        finally:
            process.kill()


def below(group: Cgroup) -> Cgroup:
    """A child that leaves its parent free to have processes of its own: in v2 then without controllers."""
    return group.child("inner", controllers=["cgroup"] if Layout.current().version == "v2" else None)


def until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with Cgroup.create() as made:
        yield made


# ---- making and removing ---------------------------------------------------------------------------------------------


def test_a_group_in_no_hierarchy_is_refused() -> None:
    with pytest.raises(InvalidValue, match="asks for no hierarchy"):
        Cgroup.create(controllers=())


def test_a_group_lies_below_the_callers_own_in_every_hierarchy(group: Cgroup) -> None:
    bases = {one.base for one in Layout.current().hierarchies}
    assert group.dirs
    assert {os.path.dirname(path) for path in paths(group)} <= bases


def test_the_context_manager_removes_it() -> None:
    with Cgroup.create() as group:
        made = paths(group)
        assert all(map(exists, made))
    assert not any(map(exists, made))


def test_close_lets_it_stay_and_open_finds_it_again() -> None:
    group = Cgroup.create(controllers=["memory"])
    path = paths(group)[0]
    group.close()
    assert exists(path)
    with Cgroup.open(path) as again:
        assert again.name == group.name
        again.remove()
    assert not exists(path)


def test_a_closed_group_says_so(group: Cgroup) -> None:
    group.remove()
    group.remove()
    for use in (group.fileno, group.processes, group.freeze, group.kill, lambda: group.update(Limits())):
        with pytest.raises(ClosedHandle):
            use()


def test_it_has_the_name_that_it_was_given(group: Cgroup) -> None:
    with group.child("inner") as child:
        assert {os.path.basename(path) for path in paths(child)} == {"inner"}
        with pytest.raises(Exists):
            group.child("inner")
        assert all(map(exists, paths(child)))


@pytest.mark.parametrize("name", ["a/b", "..", ".", ".hidden", "a\nb", "a\0b", "x" * 256])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue):
        Cgroup.create(name)


def test_a_controller_that_does_not_exist_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(CgroupUnavailable, match="built without") as caught:
        Cgroup.create(controllers=["memory", "humour"])
    assert caught.value.reason == "controller"
    assert pickle.loads(pickle.dumps(caught.value)).reason == "controller"  # noqa: S301


def test_only_the_hierarchies_that_were_asked_for_are_made() -> None:
    with Cgroup.create(controllers=["memory"]) as group:
        assert "memory" in group.controllers
        assert len(group.dirs) == 1


def test_a_group_is_removed_with_its_children_and_theirs(group: Cgroup) -> None:
    child = group.child("a")
    grandchild = child.child("b")
    made = [*paths(child), *paths(grandchild)]
    with sleeper(grandchild) as process:
        group.remove()
        assert process.wait() == -signal.SIGKILL
    assert not any(map(exists, made))
    child.close()
    grandchild.close()


def test_a_group_is_not_pickled(group: Cgroup) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(group)


def test_a_fork_of_the_program_does_not_remove_the_parents_group(group: Cgroup) -> None:
    pid = os.fork()
    if pid == 0:
        group.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(pid, 0)
    assert all(map(exists, paths(group)))


def test_a_directory_that_is_no_cgroup_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no cgroup file system"):
        Cgroup.open(tmp_path)


def test_the_group_of_a_process_that_ended_is_not_found() -> None:
    with sleeper() as process:
        pass
    with pytest.raises(NotFound):
        Cgroup.open(process.pid)


# ---- who is in it ----------------------------------------------------------------------------------------------------


def test_current_is_where_this_process_is() -> None:
    with Cgroup.current() as group:
        assert os.getpid() in group.processes()
        assert os.getpid() in group.threads()


def test_an_adopted_process_is_in_every_hierarchy(group: Cgroup) -> None:
    with sleeper(group) as process:
        assert group.processes() == [process.pid]
        assert group.threads() == [process.pid]
        with Cgroup.open(process.pid) as found:
            assert set(paths(group)) <= set(paths(found))


def test_a_process_is_adopted_by_its_handle(group: Cgroup) -> None:
    with Process(["sleep", "1000"]) as process:
        group.adopt(process)
        assert group.processes() == [process.pid]


def test_what_has_ended_is_not_adopted(group: Cgroup) -> None:
    with sleeper() as process:
        pass
    with pytest.raises(OSError, match="No such"):
        group.adopt(process.pid)


def test_a_refused_adoption_leaves_the_process_where_it_was(group: Cgroup) -> None:
    full = group.directory("pids")
    if full.version == 2:
        pytest.skip("one hierarchy: it is there or not")
    inside = group.child("inside", controllers=["memory", "pids"])
    with inside, sleeper() as process:
        before = Path(f"/proc/{process.pid}/cgroup").read_text()
        os.rmdir(inside.directory("pids").path)
        with pytest.raises(OSError, match=r"cgroup\.procs"):
            inside.adopt(process.pid)
        assert Path(f"/proc/{process.pid}/cgroup").read_text() == before


def test_all_processes_move_into_another_group(group: Cgroup) -> None:
    with group.child("from") as one, group.child("to") as other, sleeper(one) as first, sleeper(one) as second:
        one.move(other)
        assert one.processes() == []
        assert other.processes() == sorted([first.pid, second.pid])


def test_a_process_starts_inside(group: Cgroup) -> None:
    with Process(["sh", "-c", "cat /proc/self/cgroup"], cgroup=group, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate()
    assert said.count(f"/{group.name}") == len(group.dirs)


def test_a_process_does_not_start_in_a_closed_group(group: Cgroup) -> None:
    group.remove()
    with pytest.raises(ClosedHandle):
        Process(["true"], cgroup=group)


# ---- freezing and killing --------------------------------------------------------------------------------------------


COUNTING = "i=0; while :; do i=$((i+1)); echo $i; done"


@pytest.mark.parametrize("inner", [False, True], ids=["itself", "its child"])
def test_a_frozen_group_stands_still_until_it_is_thawed(group: Cgroup, inner: bool) -> None:
    with below(group) as child:
        entered = child if inner else group
        with Process(["sh", "-c", COUNTING], cgroup=entered, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            group.freeze()
            os.set_blocking(process.stdout.fileno(), False)
            while process.stdout.read(1 << 20):
                pass
            time.sleep(0.05)
            assert not process.stdout.read(1)
            group.thaw()
            until(lambda: process.stdout is not None and process.stdout.read(1))


def test_kill_ends_everything_in_it_and_below(group: Cgroup) -> None:
    with below(group) as child, sleeper(group) as outer, sleeper(child) as inner:
        group.kill()
        assert outer.wait(10 * PATIENCE) == -signal.SIGKILL
        assert inner.wait(10 * PATIENCE) == -signal.SIGKILL
        assert all(map(exists, paths(child)))


def test_a_frozen_group_can_be_killed_and_removed(group: Cgroup) -> None:
    with sleeper(group) as process:
        group.freeze()
        group.remove()
        assert process.wait(10 * PATIENCE) == -signal.SIGKILL


def test_the_caller_does_not_kill_itself() -> None:
    with Cgroup.current() as group, pytest.raises(InvalidValue, match="this very process"):
        group.kill()


BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def controllers_for(way: str) -> list[str]:
    return {"v2": ["cgroup", "memory"], "freezer": ["freezer", "memory"], "pids": ["pids"], "memory": ["memory"]}[way]


@pytest.mark.parametrize("way", ["v2", "freezer", "pids"])
def test_a_fork_bomb_is_killed_completely(way: str) -> None:
    if way != "v2" and V1_MEMORY is None:
        pytest.skip("v2 has one way")
    # The fence is of our own test: it keeps the machine usable.
    with Cgroup.create(limits=Limits(pids_max=100)) as fence, fence.child(controllers=controllers_for(way)) as group:
        places = {one.key: one for one in (*fence.dirs, *group.dirs)}
        with Process([sys.executable, "-c", BOMB], cgroup=[*places.values()]) as bomb:
            until(lambda: int(fence.directory("pids").read("pids.current")) >= 50)
            group.remove(30 * PATIENCE)
            assert bomb.wait(10 * PATIENCE) == -signal.SIGKILL
        until(lambda: int(fence.directory("pids").read("pids.current")) == 0)


def test_signals_to_what_was_listed_once_do_not_end_a_fork_bomb() -> None:
    """The naive twin: what kill() must be better than."""
    with (
        Cgroup.create(limits=Limits(pids_max=100)) as group,
        Process([sys.executable, "-c", BOMB], cgroup=group) as bomb,
    ):
        until(lambda: int(group.directory("pids").read("pids.current")) >= 50)
        for pid in group.processes():
            if pid != bomb.pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        assert group.processes()
        group.kill()


# ---- limits ----------------------------------------------------------------------------------------------------------


FORKS = """
import os, time
made = 0
try:
    while made < 50:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
except BlockingIOError:
    print(made, flush=True)
time.sleep(1000)
"""


def forks(group: Cgroup) -> int:
    """How many children one process gets in it."""
    with Process([sys.executable, "-S", "-c", FORKS], cgroup=group, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        made = int(process.stdout.readline())
        group.kill()
    return made


def test_pids_are_counted_exactly(group: Cgroup) -> None:
    group.update(Limits(pids_max=7))
    assert forks(group) == 6


def test_limits_change_while_a_process_runs(group: Cgroup) -> None:
    with sleeper(group):
        group.update(Limits(memory_max="64M", cpu_max=0.5, cpu_weight=200))
        before = written(group)
        group.update(Limits(memory_max="128M", cpu_max=1.5, cpu_burst=0.01))
        assert (before["memory"], before["cpu"]) == (64 << 20, 0.5)
        assert (written(group)["memory"], written(group)["cpu"]) == (128 << 20, 1.5)
        assert written(group)["weight"] == 1.0


def test_what_an_update_does_not_name_is_lifted(group: Cgroup) -> None:
    group.update(Limits(memory_max="64M", cpu_max=0.5, cpu_burst=0.01, cpu_weight=50))
    group.update(Limits(memory_max="64M"))
    assert written(group) == {"memory": 64 << 20, "cpu": None, "weight": 1.0}


def test_the_bound_of_sockets_comes_and_goes_with_that_of_memory(group: Cgroup) -> None:
    memory = group.directory("memory")
    if not memory.has("memory.kmem.tcp.limit_in_bytes"):
        pytest.skip("only v1 counts sockets apart")
    unbounded = memory.read("memory.kmem.tcp.limit_in_bytes")
    group.update(Limits(memory_max="64M"))
    assert int(memory.read("memory.kmem.tcp.limit_in_bytes")) == 64 << 20
    group.update(Limits())
    assert memory.read("memory.kmem.tcp.limit_in_bytes") == unbounded


@pytest.mark.parametrize("sizes", [("64M", "128M"), ("128M", "64M")])
def test_memory_with_swap_grows_and_shrinks(group: Cgroup, sizes: tuple[str, str]) -> None:
    for size in sizes:
        group.update(Limits(memory_max=size, memory_swap_max=0))
        assert written(group)["memory"] == int(size[:-1]) << 20


def written(group: Cgroup) -> dict[str, float | None]:
    """What the kernel says, in the terms of Limits; a weight as a multiple of everybody's."""
    memory, cpu = group.directory("memory"), group.directory("cpu")
    if memory.version == 1:
        limit, quota = memory.read("memory.limit_in_bytes"), cpu.read("cpu.cfs_quota_us")
        period, weight = cpu.read("cpu.cfs_period_us"), int(cpu.read("cpu.shares")) / 1024
    else:
        limit, (quota, period) = memory.read("memory.max"), cpu.read("cpu.max").split()
        weight = int(cpu.read("cpu.weight")) / 100
    return {
        "memory": int(limit),
        "cpu": None if quota in ("max", "-1") else int(quota) / int(period),
        "weight": weight,
    }


def test_a_value_that_the_kernel_refuses_names_the_limit_and_leaves_nothing() -> None:
    before = set(os.listdir(os.path.dirname(base())))
    with pytest.raises(OSError, match="cpuset_cpus: '4000'"):
        Cgroup.create(limits=Limits(cpuset_cpus="4000"))
    assert {name for name in set(os.listdir(os.path.dirname(base()))) - before if str(os.getpid()) in name} == set()


def base() -> str:
    found = Layout.current().find("cpuset")
    assert found is not None
    return found.base + "/x"


def test_a_raw_file_is_written_as_it_is(group: Cgroup) -> None:
    file = "memory.swappiness" if group.directory("memory").version == 1 else "memory.high"
    group.set_raw(file, "17" if file == "memory.swappiness" else 1 << 30)
    assert group.directory("memory").read(file) in ("17", str(1 << 30))
    with pytest.raises(InvalidValue):
        group.set_raw("memory/../x", 1)
    with pytest.raises(CgroupUnavailable):
        group.set_raw("humour.max", 1)


def test_a_child_is_bounded_by_its_parent(group: Cgroup) -> None:
    group.update(Limits(pids_max=4))
    with group.child("inner", limits=Limits(pids_max=100)) as child:
        assert forks(child) == 3


# ---- delegation ------------------------------------------------------------------------------------------------------


DIVIDE = """
import os, sys
from containerkit import Cgroup
with Cgroup.open(sys.argv[1]) as group, group.child("mine") as child:
    print("made", os.path.basename(child.dirs[0].path))
    try:
        group.set_raw("pids.max", 1000)
    except PermissionError:
        print("not widened")
"""


def test_a_delegated_group_can_be_divided_by_its_user_but_not_widened(as_user: AsUser) -> None:
    user = account()
    with Cgroup.create(controllers=["pids"], delegate=(user.pw_uid, user.pw_gid), limits=Limits(pids_max=10)) as group:
        one = group.directory("pids")
        assert as_user(DIVIDE, one.path).stdout.splitlines() == ["made mine", "not widened"]
        assert one.read("pids.max") == "10"


def test_an_ordinary_user_without_delegation_is_told_what_to_do(as_user: AsUser) -> None:
    code = """
from containerkit import Cgroup, CgroupUnavailable
try:
    Cgroup.create()
except CgroupUnavailable as error:
    print(error.reason, error)
"""
    said = as_user(code).stdout
    assert said.startswith("not delegated")
    assert "systemd-run --user" in said


# ---- many ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_groups_are_made_used_and_removed_in_parallel() -> None:
    def once(number: int) -> str:
        with Cgroup.create(controllers=["cgroup", "memory", "pids"], limits=Limits(memory_max="64M")) as group:
            with Process(["true"], cgroup=group) as process:
                assert process.wait(60 * PATIENCE) == 0
            return group.name

    with ThreadPoolExecutor(16) as pool:
        names = set(pool.map(once, range(1000)))
    assert len(names) == 1000
    left = [path for path, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(path) in names]
    assert left == []


def test_many_runs_with_limits_at_once_leave_no_group() -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: run(["true"], limits=Limits(memory_max="64M")), range(20)))
    assert all(one.ok for one in done)
