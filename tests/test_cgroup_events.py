"""Events of a group: told when they happen, to who waits, iterates or wants to be called."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from containerkit import ClosedHandle, InvalidValue, NotFound, Unsupported
from containerkit.cgroup import Cgroup, Event, EventKind, Events, MemoryPressure, PressureTrigger

pytestmark = pytest.mark.root

SECONDS = 10.0 * PATIENCE
EAT = "x = bytearray(64 << 20)"


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with Cgroup.create() as made:
        yield made


def is_v2(group: Cgroup, controller: str) -> bool:
    return group.directory(controller).version == 2


def limit_memory(group: Cgroup, size: int) -> None:
    one = group.directory("memory")
    one.write("memory.max" if one.version == 2 else "memory.limit_in_bytes", size)
    if one.version == 2 and one.has("memory.swap.max"):
        one.write("memory.swap.max", 0)


def run_inside(group: Cgroup, code: str) -> int:
    """Run a Python program in the group, from its start, to its end. Its return code."""
    program = f"import sys; sys.stdin.read(1)\n{code}"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        group.adopt(child.pid)
        child.communicate(b"x")
    return child.returncode


def test_the_first_process_and_the_end_of_the_last_are_told(group: Cgroup) -> None:
    with group.events(EventKind.POPULATED, EventKind.EMPTY) as events:
        assert events.wait(0) is None
        run_inside(group, "")
        first, second = events.wait(SECONDS), events.wait(SECONDS)
    assert first is not None
    assert second is not None
    assert (first.kind, second.kind) == (EventKind.POPULATED, EventKind.EMPTY)


def test_only_what_was_asked_for_is_told(group: Cgroup) -> None:
    with group.events(EventKind.EMPTY) as events:
        # News within 10 ms of the last is told by the kernel at the end of these, when it may have been seen already.
        run_inside(group, "import time; time.sleep(0.05)")
        event = events.wait(SECONDS)
        assert event is not None
        assert event.kind is EventKind.EMPTY
        assert events.wait(0.05) is None


def test_a_process_that_came_and_ended_between_two_looks_is_told(group: Cgroup) -> None:
    with group.events(EventKind.POPULATED, EventKind.EMPTY) as events:
        for _ in range(3):
            run_inside(group, "")
            time.sleep(0.05)
            first, second = events.wait(SECONDS), events.wait(SECONDS)
            assert [event.kind for event in (first, second) if event] == [EventKind.POPULATED, EventKind.EMPTY]
            assert events.wait(0.02) is None


def test_where_only_the_list_of_processes_tells_it_is_looked_at() -> None:
    with Cgroup.create(controllers=["memory"]) as group:
        if group.unified is not None:
            pytest.skip("v2 tells it")
        with group.events(EventKind.POPULATED, EventKind.EMPTY) as events:
            with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
                group.adopt(child.pid)
                first = events.wait(SECONDS)
                child.communicate(b"\n")
            second = events.wait(SECONDS)
    assert [event.kind for event in (first, second) if event] == [EventKind.POPULATED, EventKind.EMPTY]


def test_a_wait_ends_after_its_timeout(group: Cgroup) -> None:
    with group.events(EventKind.EMPTY) as events:
        begin = time.monotonic()
        assert events.wait(0.05) is None
        assert time.monotonic() - begin >= 0.05


def test_a_waiting_thread_is_woken_by_the_event(group: Cgroup) -> None:
    with group.events(EventKind.EMPTY) as events:
        waiting = threading.Thread(target=run_inside, args=(group, ""))
        waiting.start()
        event = events.wait(SECONDS)
        waiting.join()
    assert event is not None


def test_a_kill_for_memory_is_told_with_what_led_to_it(group: Cgroup) -> None:
    limit_memory(group, 24 << 20)
    with group.events(EventKind.OOM, EventKind.OOM_KILL) as events:
        assert run_inside(group, EAT) == -9
        found = [events.wait(SECONDS), events.wait(SECONDS)]
    assert {event.kind for event in found if event} == {EventKind.OOM, EventKind.OOM_KILL}
    assert [event.total for event in found if event and event.kind is EventKind.OOM_KILL] == [1]


def test_a_program_that_stays_within_its_memory_is_no_event(group: Cgroup) -> None:
    limit_memory(group, 256 << 20)
    with group.events(EventKind.OOM, EventKind.OOM_KILL) as events:
        assert run_inside(group, EAT) == 0
        assert events.wait(0.1) is None


def test_memory_that_meets_its_limit_without_a_kill_is_told(
    group: Cgroup, tmp_path_factory: pytest.TempPathFactory
) -> None:
    limit_memory(group, 24 << 20)
    path = tmp_path_factory.mktemp("cache") / "file"
    with group.events(EventKind.MEMORY_MAX) as events:
        code = f"with open({str(path)!r}, 'wb') as file:\n    for _ in range(64): file.write(bytes(1 << 20))"
        assert run_inside(group, code) == 0
        path.unlink()
        event = events.wait(SECONDS)
    assert event is not None
    assert event.times > 0


def test_a_refused_fork_is_told(group: Cgroup) -> None:
    group.set_raw("pids.max", 1)
    code = "import os\ntry: os.fork()\nexcept BlockingIOError: pass\nelse: raise SystemExit(7)"
    with group.events(EventKind.PIDS_MAX) as events:
        assert run_inside(group, code) == 0
        event = events.wait(SECONDS)
    assert event is not None
    assert (event.kind, event.times, event.total) == (EventKind.PIDS_MAX, 1, 1)


def test_frozen_and_thawed_are_told(group: Cgroup) -> None:
    if group.unified is None:
        pytest.skip("v1 does not tell of it")
    with group.events(EventKind.FROZEN, EventKind.THAWED) as events:
        group.unified.write("cgroup.freeze", 1)
        first = events.wait(SECONDS)
        group.unified.write("cgroup.freeze", 0)
        second = events.wait(SECONDS)
    assert [event.kind for event in (first, second) if event] == [EventKind.FROZEN, EventKind.THAWED]


def test_memory_high_is_told_on_v2_and_refused_on_v1(group: Cgroup) -> None:
    if not is_v2(group, "memory"):
        with pytest.raises(Unsupported, match="memory_high"):
            group.events(EventKind.MEMORY_HIGH)
        return
    group.set_raw("memory.high", 16 << 20)
    with group.events(EventKind.MEMORY_HIGH) as events:
        run_inside(group, "x = bytearray(20 << 20)")
        assert events.wait(SECONDS) is not None


def test_without_an_argument_everything_that_can_be_told_is(group: Cgroup) -> None:
    with group.events() as events:
        assert events.kinds >= {EventKind.POPULATED, EventKind.OOM, EventKind.OOM_KILL, EventKind.PIDS_MAX}
        assert EventKind.PRESSURE not in events.kinds


def test_events_are_those_of_the_group_and_not_of_its_neighbour(group: Cgroup) -> None:
    with Cgroup.create() as other, group.events() as ours, other.events() as theirs:
        run_inside(other, "")
        assert theirs.wait(SECONDS) is not None
        assert ours.wait(0.05) is None


# ---- pressure --------------------------------------------------------------------------------------------------------


def needs_pressure(group: Cgroup) -> None:
    if group.unified is None or not os.path.exists("/proc/pressure/cpu"):
        pytest.skip("this kernel does not measure pressure")


def has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) >> number & 1)


@pytest.fixture
def busy(group: Cgroup) -> Iterator[None]:
    """Two programs that want one processor."""
    needs_pressure(group)
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    for child in children:
        group.adopt(child.pid)
    yield
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_a_pressure_trigger_fires(group: Cgroup) -> None:
    trigger = PressureTrigger("cpu", stall=0.1)
    with group.events(trigger) as events:
        event = events.wait(SECONDS)
    assert event is not None
    assert (event.kind, event.trigger) == (EventKind.PRESSURE, trigger)


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_a_pressure_trigger_fires_in_an_event_loop(group: Cgroup) -> None:
    async def first() -> Event | None:
        async with asyncio.timeout(SECONDS):
            async for event in events:
                return event
        return None

    with group.events(PressureTrigger("cpu", stall=0.1), EventKind.EMPTY) as events:
        event = asyncio.run(first())
    assert event is not None
    assert event.kind is EventKind.PRESSURE


def test_a_pressure_trigger_without_pressure_is_silent(group: Cgroup) -> None:
    needs_pressure(group)
    with group.events(PressureTrigger("memory", stall=0.1)) as events:
        assert events.wait(0.05) is None


def test_pressure_needs_a_threshold(group: Cgroup) -> None:
    with pytest.raises(InvalidValue, match="PressureTrigger"):
        group.events(EventKind.PRESSURE)


@pytest.mark.parametrize(
    ("resource", "stall", "window"), [("disk", 0.1, 2), ("cpu", 0, 2), ("cpu", 3, 2), ("cpu", 0.1, 0.1), ("io", 1, 11)]
)
def test_a_trigger_that_no_kernel_takes_is_refused_at_once(resource: str, stall: float, window: float) -> None:
    with pytest.raises(InvalidValue):
        PressureTrigger(resource, stall, window)  # type: ignore[arg-type]


def test_a_window_that_this_user_may_not_have_is_explained(group: Cgroup) -> None:
    needs_pressure(group)
    if has_capability(24):
        pytest.skip("this user has CAP_SYS_RESOURCE")
    with pytest.raises(OSError, match="CAP_SYS_RESOURCE"):
        group.events(PressureTrigger("cpu", stall=0.1, window=0.7))


def test_v1s_own_pressure_is_told_on_v1_alone(group: Cgroup) -> None:
    if is_v2(group, "memory"):
        with pytest.raises(Unsupported, match="PressureTrigger"):
            group.events(MemoryPressure("low"))
        return
    limit_memory(group, 24 << 20)
    with group.events(MemoryPressure("low")) as events:
        run_inside(group, EAT)
        event = events.wait(SECONDS)
    assert event is not None
    assert event.trigger == MemoryPressure("low")


# ---- event loops, callbacks, the end ---------------------------------------------------------------------------------


def test_the_descriptor_is_readable_when_there_is_news_and_not_before(group: Cgroup) -> None:
    with group.events(EventKind.POPULATED, EventKind.EMPTY) as events:
        assert select.select([events], [], [], 0)[0] == []
        run_inside(group, "")
        assert select.select([events], [], [], SECONDS)[0] == [events]
        while events.wait(0) is not None:
            pass
        assert select.select([events], [], [], 0)[0] == []


def test_events_are_iterated_over_asynchronously(group: Cgroup) -> None:
    async def take() -> list[EventKind]:
        found = []
        running = asyncio.get_running_loop().run_in_executor(None, run_inside, group, "")
        async with asyncio.timeout(SECONDS):
            async for event in events:
                found.append(event.kind)
                if event.kind is EventKind.EMPTY:
                    break
        await running
        return found

    with group.events(EventKind.POPULATED, EventKind.EMPTY) as events:
        assert asyncio.run(take()) == [EventKind.POPULATED, EventKind.EMPTY]


def test_an_iteration_can_be_cancelled_and_goes_on_later(group: Cgroup) -> None:
    async def main() -> EventKind:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(events)
        await asyncio.to_thread(run_inside, group, "")
        return (await anext(events)).kind

    with group.events(EventKind.EMPTY) as events:
        assert asyncio.run(main()) is EventKind.EMPTY


def test_a_callback_is_called_for_each_event(group: Cgroup) -> None:
    told: list[EventKind] = []
    last = threading.Event()

    def callback(event: Event) -> None:
        told.append(event.kind)
        if event.kind is EventKind.EMPTY:
            last.set()

    with group.events(EventKind.POPULATED, EventKind.EMPTY).watch(callback):
        run_inside(group, "")
        assert last.wait(SECONDS)
    assert told == [EventKind.POPULATED, EventKind.EMPTY]


def test_a_callback_that_raises_does_not_end_the_watch(group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    told = threading.Semaphore(0)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments.exc_value))

    def callback(event: Event) -> None:
        told.release()
        raise ValueError("of the callback")

    with group.events(EventKind.EMPTY).watch(callback):
        for _ in range(2):
            run_inside(group, "")
            assert told.acquire(timeout=SECONDS)
    assert [str(error) for error in raised] == ["of the callback"] * 2


def test_a_callback_may_end_its_own_watch(group: Cgroup) -> None:
    told = threading.Event()

    def callback(event: Event) -> None:
        watch.close()
        told.set()

    watch = group.events(EventKind.EMPTY).watch(callback)
    run_inside(group, "")
    assert told.wait(SECONDS)
    watch.close()


def drain(events: Events) -> None:
    while events.wait(SECONDS):
        pass


def test_the_removal_of_the_group_ends_every_way_of_waiting() -> None:
    group = Cgroup.create()
    with Cgroup.open(group.dirs[0].path) as same, same.events() as waited, same.events() as iterated:
        watch = same.events().watch(lambda event: None)
        group.remove()
        with pytest.raises(NotFound, match="removed"):
            drain(waited)
        assert {event.kind for event in iterated} <= {EventKind.EMPTY}
        watch.close()


def test_a_group_that_is_removed_meanwhile_ends_the_wait() -> None:
    group = Cgroup.create()
    with Cgroup.open(group.dirs[0].path) as same, same.events() as events:
        removal = threading.Timer(0.05, group.remove)
        removal.start()
        with pytest.raises(NotFound):
            drain(events)
        removal.join()


def test_closed_events_tell_nothing_more(group: Cgroup) -> None:
    events = group.events()
    events.close()
    events.close()
    with pytest.raises(ClosedHandle):
        events.wait(0)
    assert list(events) == []


def test_events_of_a_closed_group_are_refused(group: Cgroup) -> None:
    group.remove()
    with pytest.raises(ClosedHandle):
        group.events()


def test_a_group_that_is_only_looked_at_ends_the_wait_when_it_is_removed() -> None:
    group = Cgroup.create(controllers=["memory"])
    path = group.directory("memory").path
    with Cgroup.open(path) as same, same.events(EventKind.EMPTY) as events:
        group.remove()
        with pytest.raises(NotFound, match="removed"):
            drain(events)
