"""What a running container uses, and which processes it has."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import pytest
from made_containers import busybox_image

import containerkit as ck
from containerkit._container_errors import WrongState
from containerkit.containers.container import Container
from containerkit.containers.stats import ContainerStats
from containerkit.containers.top import TITLES
from containerkit.errors import CgroupUnavailable, InvalidValue, Unsupported
from containerkit.store import Store

pytestmark = pytest.mark.both

Make = Callable[..., Container]


@pytest.fixture
def running(store: Store) -> Make:
    image = busybox_image(store)

    def start(script: str, **options: object) -> Container:
        container = store.containers.create(image, ["sh", "-c", script], **options)  # type: ignore[arg-type]
        try:
            container.start()
        except CgroupUnavailable:
            _skip()
        return container

    return start


def counted(container: Container) -> ContainerStats:
    try:
        return container.stats()  # type: ignore[no-any-return]
    except Unsupported:
        _skip()


def _skip() -> NoReturn:
    assert os.geteuid() != 0
    pytest.skip("this user may have no control groups here")


def test_it_tells_what_is_used_and_what_may_be(running: Make) -> None:
    container = running("sleep 60 & sleep 61", limits=ck.Limits(memory_max="64M"))
    found = counted(container)
    assert found.memory_limit == 64 << 20
    assert found.memory_usage is not None
    assert 0 < found.memory_usage < 64 << 20
    assert found.memory_percent == 100 * found.memory_usage / (64 << 20)
    assert found.rates is None
    assert found.cgroup.memory.current is not None
    if os.geteuid() == 0:
        assert found.pids is not None
        assert 2 <= found.pids <= 4


def test_cpu_is_told_in_percent_of_one_processor(running: Make) -> None:
    container = running("while :; do :; done")
    counted(container)
    with container.stats_stream(0.3) as stream:
        found = next(stream)
    assert found.cpu_percent is not None
    assert 5 < found.cpu_percent < 120  # of a machine that others use too
    assert container.stats().cpu_percent > 5


def test_a_stream_ends_with_the_container(running: Make) -> None:
    container = running("sleep 60")
    counted(container)
    seen = []
    for found in container.stats_stream(0.01):
        seen.append(found)
        if len(seen) == 3:
            container.kill()
    assert len(seen) == 3
    assert seen[0].rates is not None
    with pytest.raises(WrongState, match="exited"):
        container.stats()
    with pytest.raises(WrongState, match="exited"):
        container.stats_stream()


def test_asyncio_has_the_same_stream(running: Make) -> None:
    container = running("sleep 60")
    counted(container)

    async def run() -> int:
        count = 0
        async for _ in container.stats_stream(0.01):
            count += 1
            if count == 2:
                await asyncio.to_thread(container.kill)
        return count

    assert asyncio.run(run()) == 2


def test_an_interval_of_no_time_is_refused(running: Make) -> None:
    container = running("sleep 60")
    counted(container)
    with pytest.raises(InvalidValue, match="interval"):
        container.stats_stream(0)


# ---- top -------------------------------------------------------------------------------------------------------------


def test_top_tells_each_process_with_both_ids(running: Make) -> None:
    container = running("sleep 71 & exec sleep 72")
    deadline = time.monotonic() + 20
    while {"sleep 71", "sleep 72"} - {one.command for one in container.top().processes}:
        assert time.monotonic() < deadline
    found = container.top()
    by_command = {one.command: one for one in found.processes}
    assert len(found.processes) == 3
    init, program = found.processes[0], by_command["sleep 72"]
    assert (init.pid, init.host_pid) == (1, container.status.pid)
    assert (program.pid, program.host_parent, program.uid) == (2, init.host_pid, 0)
    with open(f"/proc/{program.host_pid}/cmdline") as file:
        assert file.read() == "sleep\x0072\0"
    assert found.titles == TITLES
    with suppress(ProcessLookupError):
        os.kill(by_command["sleep 71"].host_pid, 0)


def test_top_of_one_that_does_not_run_is_refused(store: Store) -> None:
    container = store.containers.create(busybox_image(store), ["true"])
    with pytest.raises(WrongState, match="does not run"):
        container.top()
