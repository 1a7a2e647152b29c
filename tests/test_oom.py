"""Why did it die: outcome ``oom`` when the kernel killed for the run's own limit, and at no other time."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

import containerkit as ck
from containerkit import Limits, Outcome
from containerkit.cgroup import Cgroup, Oom, Victim, account
from containerkit.cgroup import oom as oom_module

pytestmark = pytest.mark.root

SMALL = Limits(memory_max="32M", memory_swap_max=0)
EAT = "head -c 100M /dev/zero | (echo 1000 >/proc/self/oom_score_adj; exec tail -c 100M) >/dev/null"
"""tail keeps all that it reads, and is the one that the kernel chooses."""
EATER = ["tail", "/dev/zero"]
"""One program that does so: the first line never ends."""
ENOUGH = "head -c 8M /dev/zero | tail -c 8M >/dev/null"


@pytest.fixture
def unread_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who may not read the kernel log."""
    monkeypatch.setattr(oom_module, "_records", lambda: ())


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with Cgroup.create(limits=SMALL) as made:
        yield made


def is_v2() -> bool:
    with Cgroup.current() as own:
        return own.directory("memory").version == 2


def one_at_a_time() -> dict[str, Any]:
    """On v2 a run dies whole unless it is asked not to; on v1 it cannot."""
    return {"memory_oom_group": False} if is_v2() else {}


@pytest.fixture
def kernel_log() -> None:
    """A log that names the next ones that are killed: the kernel names ten in five seconds (oom_kill_process())."""
    if not any(True for _ in oom_module._records()):
        pytest.skip("the kernel log cannot be read")
    time.sleep(5.1)


# ---- the outcome -----------------------------------------------------------------------------------------------------


def test_a_program_that_the_kernel_kills_for_its_limit_is_out_of_memory() -> None:
    done = ck.run(["sh", "-c", EAT], limits=SMALL)
    assert done.outcome is Outcome.OOM
    assert not done.ok
    assert done.oom is not None
    assert done.oom.limit == 32 << 20
    assert done.oom.kills >= 1


def test_the_peak_is_told_and_does_not_exceed_the_limit() -> None:
    done = ck.run(["sh", "-c", EAT], limits=SMALL)
    assert done.oom is not None
    assert done.oom.peak is not None
    assert 30 << 20 <= done.oom.peak <= 32 << 20
    assert done.usage.memory_peak == done.oom.peak


@pytest.mark.usefixtures("kernel_log")
def test_the_victim_is_named_from_the_kernel_log() -> None:
    done = ck.run(["sh", "-c", f"{EAT}; true"], limits=SMALL)
    assert done.oom is not None
    assert [victim.command for victim in done.oom.victims] == ["tail"]
    assert all(victim.pid for victim in done.oom.victims)


@pytest.mark.usefixtures("unread_log")
def test_without_the_log_the_program_itself_is_the_victim_when_it_was_killed() -> None:
    done = ck.run(EATER, limits=SMALL)
    assert done.outcome is Outcome.OOM
    assert done.oom is not None
    assert [victim.command for victim in done.oom.victims] == ["tail"]


@pytest.mark.usefixtures("unread_log")
def test_without_the_log_no_victim_is_guessed_when_the_program_was_not_killed() -> None:
    limits = Limits(memory_max="32M", memory_swap_max=0, **one_at_a_time())
    done = ck.run(["sh", "-c", f"{EAT}; exit 3"], limits=limits)
    assert done.returncode == 3
    assert done.outcome is Outcome.OOM
    assert done.oom is not None
    assert done.oom.victims == ()


def test_a_program_that_goes_on_without_its_killed_child_has_exited() -> None:
    limits = Limits(memory_max="32M", memory_swap_max=0, **one_at_a_time())
    done = ck.run(["sh", "-c", f"{EAT}; exit 0"], limits=limits)
    assert done.outcome is Outcome.EXITED
    assert done.ok
    assert done.oom is not None


def test_on_v2_a_run_dies_whole() -> None:
    if not is_v2():
        pytest.skip("memory.oom.group is of v2")
    done = ck.run(["sh", "-c", f"{EAT}; echo survived"], limits=SMALL)
    assert done.stdout == ""
    assert done.returncode == -9
    assert done.outcome is Outcome.OOM


def test_the_asynchronous_twin_says_the_same() -> None:
    done = asyncio.run(ck.aio.run(["sh", "-c", EAT], limits=SMALL))
    assert done.outcome is Outcome.OOM
    assert done.oom is not None


def test_the_error_of_check_tells_the_limit() -> None:
    with pytest.raises(ck.ProcessFailed, match="out of memory: limit 32 MiB"):
        ck.run(["sh", "-c", EAT], limits=SMALL, check=True)


def test_the_result_can_be_stored() -> None:
    done = ck.run(["sh", "-c", EAT], limits=SMALL)
    again = pickle.loads(pickle.dumps(done))  # noqa: S301  our own
    assert again.oom == done.oom
    assert again.usage == done.usage


def test_a_start_that_its_own_limit_kills_says_so() -> None:
    with pytest.raises(ck.SpawnError, match="out of memory: limit 64 KiB"):
        ck.run(["true"], limits=Limits(memory_max="64K", memory_swap_max=0))


# ---- no false alarm --------------------------------------------------------------------------------------------------


def test_a_program_within_its_limit_is_not_out_of_memory() -> None:
    done = ck.run(["sh", "-c", ENOUGH], limits=SMALL)
    assert done.outcome is Outcome.EXITED
    assert done.oom is None


def test_a_program_that_somebody_kills_under_a_memory_limit_was_signaled() -> None:
    done = ck.run(["sh", "-c", "kill -KILL $$"], limits=SMALL)
    assert done.outcome is Outcome.SIGNALED
    assert done.oom is None


def test_a_limit_that_was_met_without_a_kill_is_no_reason(tmp_path: Path) -> None:
    """The page cache of a file fills the group, is taken back, and then somebody kills the program."""
    file = tmp_path / "sparse"
    with file.open("wb") as opened:
        opened.truncate(64 << 20)
    done = ck.run(
        ["sh", "-c", "cat /mnt/sparse >/dev/null; kill -KILL $$"], limits=SMALL, mounts=[ck.Bind(file, "/mnt/sparse")]
    )
    assert done.outcome is Outcome.SIGNALED
    assert done.oom is None
    assert done.usage.memory_peak > 30 << 20


def test_what_we_end_ourselves_keeps_its_outcome() -> None:
    limits = Limits(memory_max="32M", memory_swap_max=0, output_max=1000, **one_at_a_time())
    done = ck.run(["sh", "-c", f"{EAT}; yes"], limits=limits)
    assert done.outcome is Outcome.OUTPUT_LIMIT
    assert done.oom is not None


def test_a_kill_for_the_limit_of_the_group_above_is_not_this_groups(group: Cgroup) -> None:
    with group.child(limits=Limits(memory_max="256M")) as child:
        run_inside(child)
        assert child.oom() is None


@pytest.mark.usefixtures("unread_log")
def test_nor_is_it_where_the_log_cannot_be_read(group: Cgroup) -> None:
    with group.child(limits=Limits(memory_max="256M")) as child:
        run_inside(child)
        assert child.oom() is None


def run_inside(group: Cgroup) -> None:
    """Something that eats memory, in the group from its start on; it is killed."""
    with subprocess.Popen([sys.executable, "-c", "input(); x = bytearray(100 << 20)"], stdin=subprocess.PIPE) as child:
        group.adopt(child.pid)
        child.communicate(b"\n")
    assert child.returncode == -9


def test_a_group_of_ones_own_can_be_asked(group: Cgroup) -> None:
    assert group.oom() is None
    run_inside(group)
    found = group.oom()
    assert found is not None
    assert (found.group, found.limit, found.kills) == (group.name, 32 << 20, 1)


# ---- a sandbox with several runs -------------------------------------------------------------------------------------


def test_a_run_in_a_sandbox_dies_of_the_limit_of_the_sandbox_which_goes_on() -> None:
    with ck.Sandbox(limits=SMALL) as box:
        first = box.run(EATER, timeout=30 * PATIENCE)
        second = box.run(["true"])
    assert first.outcome is Outcome.OOM
    assert first.oom is not None
    assert first.oom.limit == 32 << 20
    assert second.outcome is Outcome.EXITED
    assert second.oom is None


def test_a_run_with_a_limit_of_its_own_dies_of_that() -> None:
    with ck.Sandbox(limits=Limits(memory_max="256M")) as box:
        done = box.run(EATER, limits=SMALL, timeout=30 * PATIENCE)
        assert box.run(["true"]).ok
    assert done.outcome is Outcome.OOM
    assert done.oom is not None
    assert done.oom.limit == 32 << 20


@pytest.mark.usefixtures("kernel_log")
def test_a_run_that_is_killed_beside_one_that_runs_out_of_memory_is_told_apart() -> None:
    with ck.Sandbox(limits=SMALL) as box:
        found = []
        box.run(["mkfifo", "/tmp/go"], check=True)
        command = ["sh", "-c", "read line </tmp/go; kill -KILL $$"]  # it asks for no memory while it waits
        waiting = threading.Thread(target=lambda: found.append(box.run(command)))
        waiting.start()
        eater = box.run(EATER, timeout=30 * PATIENCE)
        box.run(["sh", "-c", "echo >/tmp/go"], check=True)
        waiting.join()
    assert eater.outcome is Outcome.OOM
    assert [done.outcome for done in found] == [Outcome.SIGNALED]


def test_a_group_that_somebody_removed_as_soon_as_it_was_empty_costs_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def removed_first(process: ck.Process, usage: ck.Usage, *, killed: bool) -> account.Account:
        assert process._bounds is not None
        for one in process._bounds.group.dirs:
            os.rmdir(one.path)
        return before(process, usage, killed=killed)

    before = account.account
    monkeypatch.setattr(account, "account", removed_first)
    done = ck.run(["echo", "kept"], limits=SMALL)
    assert done.stdout == "kept\n"
    assert done.oom is None


# ---- usage -----------------------------------------------------------------------------------------------------------


def test_the_memory_peak_is_that_of_all_processes_together() -> None:
    """Two that have 12 MiB each, at one time: no single one has 20."""
    eat = "head -c 12M /dev/zero | (tail -c 12M; read line) >/dev/null"
    command = f"mkfifo /tmp/a; ({eat}) </tmp/a & ({eat}) </tmp/a & exec 3>/tmp/a; sleep 0.5; exec 3>&-; wait"
    done = ck.run(["sh", "-c", command], limits=Limits(memory_max="128M"))
    assert done.ok, done
    assert done.usage.memory_peak > done.usage.max_rss


def test_without_a_group_the_peak_is_the_largest_process() -> None:
    usage = ck.run(["true"]).usage
    assert usage.memory_peak == usage.max_rss > 0
    assert usage.io_read_bytes is None


def test_refused_forks_are_counted_where_a_group_counts() -> None:
    limits = Limits(pids_max=None, raw={"pids.max": 8})
    done = ck.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait"], limits=limits)
    assert done.forks_refused
    assert done.usage.pids_peak in (8, None)


def test_nothing_is_refused_below_the_limit() -> None:
    assert ck.run(["true"], limits=Limits(pids_max=None, raw={"pids.max": 8})).forks_refused == 0


# ---- the kernel log: pure --------------------------------------------------------------------------------------------

LINE = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={limited},"
    "task_memcg={of},task={name},pid=4321,uid=0"
)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(oom_module, "_records", lambda: lines)
    return lines


def test_a_kill_in_a_group_below_for_the_limit_of_this_one_is_ours(log: list[str]) -> None:
    log.append(LINE.format(limited="/a/ck-1", of="/a/ck-1/inner", name="python"))
    [told] = oom_module.kernel_log("ck-1")
    assert told.mine
    assert told.victim.command == "python"


def test_a_kill_for_the_limit_of_a_group_above_is_not(log: list[str]) -> None:
    log.append(LINE.format(limited="/a", of="/a/ck-1", name="python"))
    assert [told.mine for told in oom_module.kernel_log("ck-1")] == [False]


def test_a_kill_in_another_group_is_not_even_looked_at(log: list[str]) -> None:
    log.append(LINE.format(limited="/a/ck-12", of="/a/ck-12", name="python"))
    assert list(oom_module.kernel_log("ck-1")) == []


@pytest.mark.parametrize("name", ["a,pid=1,uid=0", "x,task=y,pid=7", "oom_memcg=/ck"])
def test_a_name_that_a_program_chose_does_not_confuse(log: list[str], name: str) -> None:
    log.append(LINE.format(limited="/ck-1", of="/ck-1", name=name))
    [told] = oom_module.kernel_log("ck-1")
    assert told.mine
    if told.victim.pid is not None:
        assert told.victim.pid == 4321


def test_what_a_program_writes_into_the_kernel_log_is_not_believed() -> None:
    if not os.access("/dev/kmsg", os.W_OK):
        pytest.skip("the kernel log cannot be written")
    line = LINE.format(limited="/ck-forged", of="/ck-forged", name="forged")
    fd = os.open("/dev/kmsg", os.O_WRONLY)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
    assert list(oom_module.kernel_log("ck-forged")) == []


def test_an_account_reads_as_a_sentence() -> None:
    found = Oom("ck-1", 32 << 20, 32 << 20, 1, (Victim(17, "tail"),))
    assert str(found) == "out of memory: limit 32 MiB, peak 32 MiB, killed tail (pid 17)"
    assert str(found._replace(victims=(), kills=3, peak=None)) == "out of memory: limit 32 MiB, 3 killed"
