"""Figures of a group: what the files of v1 and v2 mean, snapshots of real groups, streams, series and pictures."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from containerkit import ClosedHandle, InvalidValue, NotFound
from containerkit.cgroup import Cgroup, CgroupStats, StatsSeries
from containerkit.cgroup.stats import IoStats, Stall, pressure

V2 = {
    "memory.current": "1048576\n",
    "memory.peak": "2097152\n",
    "memory.swap.current": "4096\n",
    "memory.stat": (
        "anon 4096\nfile 8192\nkernel 12288\nkernel_stack 16384\npagetables 20480\nsock 24576\nshmem 28672\n"
        "file_mapped 32768\nfile_dirty 36864\nfile_writeback 40960\ninactive_file 45056\nslab 49152\npgfault 7\n"
        "pgmajfault 3\n"
    ),
    "cpu.stat": (
        "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 10\nnr_throttled 4\n"
        "throttled_usec 500000\n"
    ),
    "io.stat": (
        "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:0 \n253:1 rbytes=10 wbytes=20 rios=30 wios=40\n"
    ),
    "pids.current": "3\n",
    "pids.peak": "9\n",
    "memory.pressure": (
        "some avg10=1.50 avg60=0.25 avg300=0.05 total=2500000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=1000000\n"
    ),
}
V1 = {
    "memory.usage_in_bytes": "1048576\n",
    "memory.max_usage_in_bytes": "2097152\n",
    "memory.kmem.usage_in_bytes": "12288\n",
    "memory.stat": (
        "cache 1\nrss 2\ntotal_cache 8192\ntotal_rss 4096\ntotal_shmem 28672\ntotal_mapped_file 32768\n"
        "total_dirty 36864\ntotal_writeback 40960\ntotal_swap 4096\ntotal_inactive_file 45056\ntotal_pgfault 7\n"
        "total_pgmajfault 3\n"
    ),
    "cpuacct.usage": "3000000000\n",
    "cpuacct.usage_user": "1000000000\n",
    "cpuacct.usage_sys": "500000000\n",
    "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 500000000\n",
    "blkio.throttle.io_service_bytes_recursive": (
        "8:16 Read 1\n8:16 Write 2\n8:16 Sync 3\n8:16 Async 0\n8:16 Discard 5\n8:16 Total 8\nTotal 8\n"
    ),
    "blkio.throttle.io_serviced_recursive": "8:16 Read 3\n8:16 Write 4\n8:16 Discard 6\n8:16 Total 13\nTotal 13\n",
    "pids.current": "3\n",
    "pids.peak": "9\n",
}


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with Cgroup.create() as made:
        yield made


def inside(group: Cgroup, code: str) -> subprocess.Popen[bytes]:
    """A Python program in the group: it starts once it is there."""
    program = f"import sys; sys.stdin.read(1)\n{code}"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    group.adopt(child.pid)
    assert child.stdin is not None
    child.stdin.write(b"x")
    child.stdin.flush()
    return child


def finish(child: subprocess.Popen[bytes]) -> None:
    child.communicate()
    assert child.returncode == 0


# ---- what the files mean ---------------------------------------------------------------------------------------------


def test_both_versions_tell_the_same_figures_from_their_own_files() -> None:
    v2, v1 = CgroupStats(1.0, {}, V2), CgroupStats(1.0, V1, {})
    only_v2 = {"kernel_stack": 16384, "page_tables": 20480, "slab": 49152, "socket": 24576}
    assert v1.memory._replace(**only_v2) == v2.memory
    assert v1.cpu == v2.cpu
    assert v1.pids == v2.pids
    assert v1.io == (v2.io or ())[:1]


def test_user_and_system_time_of_v1_add_up_to_the_exact_total() -> None:
    cpu = CgroupStats(0.0, V1, {}).cpu
    assert (cpu.usage, cpu.user, cpu.system) == (3.0, 2.0, 1.0)


def test_a_device_of_which_nothing_is_known_yet_is_left_out() -> None:
    devices = CgroupStats(0.0, {}, V2).io
    assert devices == (IoStats("8:16", 1, 2, 3, 4, 5, 6), IoStats("253:1", 10, 20, 30, 40))


def test_the_total_of_all_devices_is_their_sum() -> None:
    assert CgroupStats(0.0, {}, V2).io_total == IoStats("total", 11, 22, 33, 44, 5, 6)


def test_a_figure_that_the_kernel_lacks_is_none() -> None:
    stats = CgroupStats(0.0, {}, {"cpu.stat": "usage_usec 5\nuser_usec 5\nsystem_usec 0\n"})
    assert stats.cpu.usage == pytest.approx(5e-6)
    assert stats.cpu.periods is None
    assert (stats.memory.current, stats.io, stats.pids.peak, stats.pressure.io.some) == (None, None, None, None)
    assert stats.io_total is None


def test_pressure_counts_seconds() -> None:
    found = pressure(V2["memory.pressure"])
    assert found.some == Stall(1.5, 0.25, 0.05, 2.5)
    assert found.full == Stall(0.5, 0.0, 0.0, 1.0)


def test_the_hybrid_layout_has_limits_from_v1_and_pressure_from_v2() -> None:
    stats = CgroupStats(0.0, V1, {"cpu.stat": "usage_usec 1\nuser_usec 1\nsystem_usec 0\n", "cpu.pressure": ""} | {
        "memory.pressure": V2["memory.pressure"]
    })  # fmt: skip
    assert stats.cpu.usage == 3.0
    assert stats.cpu.throttled_periods == 4
    assert stats.pressure.memory.some is not None


def test_rates_are_per_second_and_counters_never_run_backwards() -> None:
    before, after = CgroupStats(10.0, {}, V2), CgroupStats(12.0, {}, {
        **V2, "memory.current": "524288\n", "io.stat": "8:16 rbytes=101 wbytes=2 rios=3 wios=4\n",
        "cpu.stat": "usage_usec 4000000\nuser_usec 1900000\nsystem_usec 2100000\nnr_periods 20\nnr_throttled 9\n"
                    "throttled_usec 500000\n",
    })  # fmt: skip
    rates = after.since(before)
    assert rates.seconds == 2.0
    assert rates.cpu == 0.5
    assert rates.user == 0.0
    assert rates.throttled == 0.5
    assert rates.memory == -262144
    assert rates.read_bytes == 45.0


def test_a_snapshot_does_not_change_and_can_be_stored() -> None:
    stats = CgroupStats(1.0, {}, V2)
    with pytest.raises(AttributeError):
        stats.time = 2.0
    again = pickle.loads(pickle.dumps(stats))  # noqa: S301  our own
    assert again == stats
    assert again.memory == stats.memory


def test_a_snapshot_as_a_flat_row_names_every_figure() -> None:
    row = CgroupStats(1.0, {}, V2).flat()
    assert row["memory.current"] == 1048576
    assert row["io.8:16.read_bytes"] == 1
    assert row["pressure.memory.full.total"] == 1.0


# ---- real groups -----------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_memory_of_a_program_is_counted_and_its_peak_stays(group: Cgroup) -> None:
    finish(inside(group, "x = bytearray(32 << 20)"))
    memory = group.stats().memory
    assert memory.peak is not None
    assert memory.peak >= 32 << 20
    assert memory.current is not None
    assert memory.current < 16 << 20


@pytest.mark.root
def test_memory_is_told_by_kind(group: Cgroup) -> None:
    child = inside(group, "x = bytearray(32 << 20); print(flush=True); sys.stdin.read()")
    assert child.stdout is not None
    child.stdout.readline()
    memory = group.stats().memory
    finish(child)
    assert memory.anon is not None
    assert 32 << 20 <= memory.anon < 64 << 20
    assert memory.working_set is not None
    assert memory.page_faults


@pytest.mark.root
def test_processor_time_counts_a_child_that_outlived_its_parent(group: Cgroup) -> None:
    code = """
import ctypes, os, time
assert ctypes.CDLL(None).prctl(36, 1) == 0  # PR_SET_CHILD_SUBREAPER: this one gets to bury it
if os.fork() == 0:
    if os.fork() == 0:
        while time.process_time() < 0.2: pass
        os._exit(0)
    os._exit(0)
os.wait(), os.wait()
"""
    finish(inside(group, code))
    assert (group.stats().cpu.usage or 0) >= 0.2


@pytest.mark.root
def test_processes_are_counted_now_and_at_most(group: Cgroup) -> None:
    code = """
import os
read, write = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.close(write)
        os._exit(len(os.read(read, 1)))
print(flush=True)
sys.stdin.read()
os.close(write)
for _ in range(3): os.wait()
"""
    child = inside(group, code)
    assert child.stdout is not None
    child.stdout.readline()
    assert group.stats().pids.current == 4
    finish(child)
    pids = group.stats().pids
    assert pids.current == 0
    assert pids.peak in (4, None)  # since Linux 6.1


@pytest.mark.root
def test_the_figures_of_a_group_are_not_those_of_its_neighbour(group: Cgroup) -> None:
    with Cgroup.create() as other:
        finish(inside(other, "x = bytearray(32 << 20)"))
        assert (group.stats().memory.peak or 0) < 1 << 20
        assert (other.stats().memory.peak or 0) >= 32 << 20


@pytest.mark.root
def test_a_read_after_the_removal_says_so() -> None:
    group = Cgroup.create()
    group.stats()
    with Cgroup.open(group.dirs[0].path) as same:
        same.stats()
        group.remove()
        with pytest.raises(NotFound, match="has been removed"):
            same.stats()


@pytest.mark.root
def test_a_group_that_was_removed_before_anybody_asked_says_so_too() -> None:
    group = Cgroup.create()
    with Cgroup.open(group.dirs[0].path) as same:
        group.remove()
        for ask in (same.stats, same.events, same.oom):
            with pytest.raises(NotFound, match="has been removed"):
                ask()


@pytest.mark.root
def test_a_closed_group_has_no_statistics() -> None:
    group = Cgroup.create()
    with Cgroup.open(group.dirs[0].path) as same:
        pass
    with pytest.raises(ClosedHandle):
        same.stats()
    group.remove()
    with pytest.raises(ClosedHandle):
        group.stats()


@pytest.mark.root
def test_reading_and_closing_in_two_threads_never_reads_a_foreign_file(group: Cgroup) -> None:
    group.stats()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while True:
                group.stats()
        except ClosedHandle:
            pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    group._close_reader()
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(32)]
    for thread in threads:
        thread.join()
    for fd in taken:
        os.close(fd)
    assert failures == []


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_stream_computes_rates_and_ends_with_the_group() -> None:
    group = Cgroup.create()
    child = inside(group, "while True: pass")
    found = []
    for sample in group.stats_stream(0.05):
        found.append(sample.rates.cpu or 0)
        if len(found) == 4:
            child.kill()
            child.communicate()
            group.remove()
    assert len(found) == 4
    assert max(found) > 0.05


@pytest.mark.root
def test_a_stream_is_asynchronous_too(group: Cgroup) -> None:
    async def take() -> list[float]:
        found = []
        async for sample in group.stats_stream(0.02):
            found.append(sample.rates.seconds)
            if len(found) == 3:
                break
        return found

    assert len(asyncio.run(take())) == 3


@pytest.mark.root
def test_a_late_consumer_misses_samples_instead_of_getting_them_all_at_once(group: Cgroup) -> None:
    stream = group.stats_stream(0.02)
    next(stream)
    time.sleep(0.1)
    assert next(stream).rates.seconds >= 0.1
    assert next(stream).rates.seconds > 0.005


@pytest.mark.root
@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_must_be_positive(group: Cgroup, interval: float) -> None:
    with pytest.raises(InvalidValue, match="interval"):
        group.stats_stream(interval)
    with pytest.raises(InvalidValue, match="interval"):
        group.record(interval)


# ---- series ----------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_recording_sums_up_what_a_block_did(group: Cgroup) -> None:
    with group.record(0.02) as series:
        finish(inside(group, "x = bytearray(32 << 20)\nimport time; time.sleep(0.2)"))
    summary = series.summary()
    assert summary["memory"].maximum >= 32 << 20
    assert summary["memory"].minimum < 16 << 20
    assert summary["pids"].maximum >= 1
    assert len(series.rows()) == len(series) - 1
    assert "rate.cpu" in series.rows()[0]


@pytest.mark.root
def test_a_recording_of_a_group_that_is_removed_keeps_what_it_has() -> None:
    group = Cgroup.create()
    with group.record(0.01) as series:
        time.sleep(0.05)
        group.remove()
    assert len(series) >= 2


def made_series() -> StatsSeries:
    samples = []
    for index in range(5):
        cpu = f"usage_usec {index * 500000}\nuser_usec {index * 500000}\nsystem_usec 0\n"
        files = {**V2, "memory.current": f"{index << 20}\n", "cpu.stat": cpu}
        samples.append(CgroupStats(float(index), {}, files))
    return StatsSeries(samples)


def drawn(series: StatsSeries) -> ElementTree.Element:
    return ElementTree.fromstring(series.to_svg())  # noqa: S314


def test_the_summary_weighs_by_time() -> None:
    series = made_series()
    assert series.summary()["cpu"].mean == 0.5
    series.samples.append(CgroupStats(8.0, {}, series.samples[-1]._v2))
    assert series.summary()["cpu"].mean == 0.25


def test_a_series_draws_a_chart_for_each_resource() -> None:
    tree = drawn(made_series())
    titles = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text") if text.get("font-weight") == "600"]
    assert len(titles) == 5
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}polyline"))) >= 8


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_short_series_can_be_drawn_and_summed_up(count: int) -> None:
    series = StatsSeries(made_series().samples[:count])
    drawn(series)
    assert ("memory" in series.summary()) == (count > 0)
