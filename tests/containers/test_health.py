"""Health checks: the monitor runs them by itself, counts as docker does, and leaves nothing of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starts import wait_until

from containerkit import spawn
from containerkit.containers.container import Container
from containerkit.containers.control import Control
from containerkit.containers.group import group as group_of
from containerkit.containers.spec import Health
from containerkit.containers.state import Record, read_record
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.both

Make = Callable[..., Container]

needs_root = pytest.mark.skipif("os.geteuid() != 0", reason="only root may look into a monitor")
needs_groups = pytest.mark.skipif("os.geteuid() != 0", reason="this user has no control groups here")


@pytest.fixture
def make(store: Store, image: Image) -> Make:
    """A running container; the first argument is its health check."""

    def make(test: str | list[str], script: str = "exec sleep 600", **options: Any) -> Container:
        times = {"interval": 0.05, "timeout": 20.0, "retries": 2, "start_period": 0.0}
        health = Health(test, **{name: options.pop(name, default) for name, default in times.items()})
        container = store.containers.create(image, ["sh", "-c", script], health=health, **options)
        container.start()
        return container

    return make


def record(container: Container) -> Record:
    found = read_record(container.directory.fileno())
    assert found is not None
    return found


def said(container: Container) -> str:
    return "".join(line.text + "\n" for line in container.logs())


def changes(container: Container) -> list[str]:
    """What was told of its health."""
    events = container._store.events(until=time.time())
    return [
        event.attributes["health"] for event in events if (event.id, event.action) == (container.id, "health_status")
    ]


def children(pid: int) -> dict[int, str]:
    """A process's children: the state of each."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid:
            found[int(path.parent.name)] = state
    return found


# ---- what counts -----------------------------------------------------------------------------------------------------


def test_it_is_starting_and_then_healthy(make: Make) -> None:
    container = make("test -e /well")
    assert container.status.health == "starting"
    assert changes(container) == []
    container.run(["touch", "/well"], check=True)
    wait_until(lambda: container.status.health == "healthy")
    assert record(container).health_streak == 0
    assert changes(container)[-1:] == ["healthy"]


def test_without_a_check_it_has_no_health(store: Store, image: Image) -> None:
    container = store.containers.create(image, ["sleep", "600"])
    container.start()
    assert container.status.health is None
    assert container.health_log() == []


def test_it_is_unhealthy_after_so_many_failures_in_a_row(make: Make) -> None:
    container = make("echo try; exit 3", retries=3)
    wait_until(lambda: container.status.health == "unhealthy")
    assert [(one.exit_code, one.output) for one in container.health_log()][:3] == [(3, "try\n")] * 3
    assert record(container).health_streak >= 3
    assert changes(container) == ["unhealthy"]


def test_a_failure_between_two_successes_is_not_in_a_row(make: Make) -> None:
    container = make("echo x >> /count; test $(( $(grep -c x /count) % 2 )) = 1", retries=2)
    wait_until(lambda: container.status.health == "healthy")
    wait_until(lambda: [one.exit_code for one in container.health_log()].count(1) >= 2)
    assert container.status.health == "healthy"
    assert changes(container) == ["healthy"]


def test_it_may_get_well_again(make: Make) -> None:
    container = make("test -e /well", retries=1)
    wait_until(lambda: container.status.health == "unhealthy")
    container.run(["touch", "/well"], check=True)
    wait_until(lambda: container.status.health == "healthy")
    container.run(["rm", "/well"], check=True)
    wait_until(lambda: container.status.health == "unhealthy")
    assert changes(container) == ["unhealthy", "healthy", "unhealthy"]


def test_in_its_start_period_a_failure_does_not_count_until_a_success(make: Make) -> None:
    container = make("test -e /well", retries=1, start_period=600.0)
    wait_until(lambda: len(container.health_log()) >= 3)
    assert container.status.health == "starting"
    assert record(container).health_streak == 0
    container.run(["touch", "/well"], check=True)
    wait_until(lambda: container.status.health == "healthy")
    container.run(["rm", "/well"], check=True)
    wait_until(lambda: container.status.health == "unhealthy")


def test_after_its_start_period_it_does(make: Make) -> None:
    container = make("false", retries=1, start_period=0.4)
    wait_until(lambda: container.status.health == "unhealthy")
    assert record(container).started_ns + 0.4e9 <= container.health_log()[-1].start_ns + 2e6


def test_what_takes_too_long_is_killed_and_has_failed(make: Make) -> None:
    container = make("echo begun; sleep 600", timeout=0.2)
    wait_until(lambda: container.status.health == "unhealthy")
    first = container.health_log()[0]
    assert (first.exit_code, first.output) == (None, "begun\n")
    assert "timeout" in str(first.error)
    assert 0.2 <= (first.end_ns - first.start_ns) / 1e9 < 5


def test_a_test_that_is_not_there_fails_and_says_so(make: Make) -> None:
    container = make(["/nonesuch"])
    wait_until(lambda: container.status.health == "unhealthy")
    assert "No such file" in str(container.health_log()[0].error)


def test_from_one_to_the_next_the_interval_passes(make: Make) -> None:
    container = make("sleep 0.1", interval=0.3)
    wait_until(lambda: len(container.health_log()) >= 3)
    found = container.health_log()
    assert found[0].start_ns - record(container).started_ns >= 0.29e9
    assert all(later.start_ns - one.end_ns >= 0.29e9 for one, later in pairwise(found))


# ---- the test's process ----------------------------------------------------------------------------------------------


def test_it_runs_as_the_containers_program_does(make: Make) -> None:
    user = "bob" if os.geteuid() == 0 else None  # an ordinary user's containers have one id
    walls = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/self/cgroup"
    show = f"id -u; pwd; echo $WORD; id; env; {walls}"
    container = make(show, f"{show}; exec sleep 600", user=user, workdir="/work", env={"WORD": "here"})
    wait_until(container.health_log)
    assert container.health_log()[0].output == said(container)
    assert container.health_log()[0].output.split()[:3] == ["1000" if user else "0", "/work", "here"]


def test_it_is_in_the_containers_namespaces(make: Make) -> None:
    show = "for kind in user mnt pid net ipc uts cgroup time; do stat -Lc %i /proc/self/ns/$kind; done"
    container = make(show, f"{show}; exec sleep 600")
    wait_until(container.health_log)
    assert container.health_log()[0].output == said(container)
    assert all(line.isdecimal() for line in said(container).split())
    assert len(set(said(container).split())) == 8


def test_a_program_that_is_pid_1_itself_is_tested_too(make: Make) -> None:
    container = make("test $$ != 1 && ps", init=False)
    wait_until(lambda: container.status.health == "healthy")
    begin = time.monotonic()
    container.kill()
    assert time.monotonic() - begin < 5


def test_its_output_is_kept_from_the_beginning_and_never_holds_it_up(make: Make) -> None:
    container = make("seq 1 100000 >&2; echo end")
    wait_until(lambda: container.status.health == "healthy")
    text = "".join(f"{number}\n" for number in range(1, 2000))
    assert container.health_log()[0].output == text[:4096]


def test_five_results_are_kept(make: Make) -> None:
    container = make("echo x >> /count; grep -c x /count")
    wait_until(
        lambda: (container.health_log() or [None])[-1] is not None and int(container.health_log()[-1].output) >= 8
    )
    numbers = [int(one.output) for one in container.health_log()]
    assert len(numbers) == 5
    assert numbers == sorted(numbers)


def test_what_it_forks_is_killed_with_it_when_it_hangs(make: Make) -> None:
    container = make("sleep 601 & (sleep 602 & sleep 603) & sleep 604", timeout=0.3)
    wait_until(lambda: container.run(["ps"]).stdout.count("sleep 60") == 5)
    wait_until(lambda: container.status.health == "unhealthy")
    with Control(container.directory.fileno()) as control:
        control.paused(True)
    wait_until(lambda: container.run(["ps"]).stdout.count("sleep 60") == 1)
    container.stop(timeout=0)


def test_one_that_leaves_a_process_behind_has_ended_all_the_same(make: Make) -> None:
    container = make("sleep 601 & echo started", interval=0.1)
    wait_until(lambda: container.status.health == "healthy")
    assert container.health_log()[0].output == "started\n"


def test_nothing_is_left_of_many(make: Make) -> None:
    container = make("true; echo x >> /count", interval=0.002)

    def count() -> int:
        return int(container.run(["grep", "-c", "x", "/count"]).stdout or 0)

    wait_until(lambda: container.status.health == "healthy")
    monitor = record(container).monitor_pid
    wait_until(lambda: count() >= 60)
    with Control(container.directory.fileno()) as control:
        control.paused(True)
    wait_until(lambda: len(children(monitor)) == 1)  # the container's PID 1
    if os.geteuid() == 0:
        before = len(os.listdir(f"/proc/{monitor}/fd"))
        with Control(container.directory.fileno()) as control:
            control.paused(False)
            seen = count()
            wait_until(lambda: count() >= seen + 30)
            control.paused(True)
        wait_until(lambda: len(children(monitor)) == 1)
        wait_until(lambda: len(os.listdir(f"/proc/{monitor}/fd")) <= before)


# ---- the container's life goes on ------------------------------------------------------------------------------------


def test_one_that_hangs_holds_nothing_up(make: Make) -> None:
    container = make("echo begun > /begun; sleep 600", "while :; do echo tick; sleep 0.05; done", retries=1)
    wait_until(lambda: container.run(["test", "-e", "/begun"]).returncode == 0)
    before = said(container)
    wait_until(lambda: len(said(container)) > len(before))
    begin = time.monotonic()
    container.stop(timeout=0)
    assert time.monotonic() - begin < 5
    assert container.status.exit_code == 137
    assert changes(container) == []  # that it ended with the container is no failure


def test_its_end_may_meet_a_test_at_any_moment(make: Make) -> None:
    """PID 1 of a container cannot end before its monitor has reaped the test, however far that one has come."""
    container = make("true", interval=0.001)
    for number in range(25):
        time.sleep(number * 0.0007)
        begin = time.monotonic()
        container.kill()
        assert time.monotonic() - begin < 5
        container.start()


def test_after_a_restart_it_is_starting_again(make: Make) -> None:
    container = make("test -e /well", "touch /well; sleep 0.5; rm /well; exit 1", restart="always")
    wait_until(lambda: container.status.health == "healthy")
    wait_until(lambda: record(container).restarts >= 1)
    wait_until(lambda: container.status.health == "starting")
    wait_until(lambda: container.status.health == "healthy")
    assert set(changes(container)) == {"healthy"}


def test_a_new_start_has_a_new_log(make: Make) -> None:
    container = make("false")
    wait_until(lambda: len(container.health_log()) >= 3)
    container.restart(timeout=0)
    wait_until(lambda: record(container).health_streak == 1)
    assert len(container.health_log()) < 3


def test_it_ends_with_its_monitor(make: Make) -> None:
    container = make("sleep 600")
    monitor = record(container).monitor_pid
    wait_until(lambda: len(children(monitor)) == 2)
    pids = [os.pidfd_open(pid) for pid in children(monitor)]
    try:
        os.kill(monitor, signal.SIGKILL)
        wait_until(lambda: all(spawn.poll([pid], 0) for pid in pids))
    finally:
        for pid in pids:
            os.close(pid)
    assert container.status.status == "dead"


@needs_groups
def test_a_paused_one_is_not_tested(make: Make) -> None:
    container = make("true", retries=1, timeout=0.1)
    wait_until(lambda: container.status.health == "healthy")
    container.pause()
    before = container.health_log()
    time.sleep(0.5)
    assert container.health_log() in (before, [*before, *container.health_log()[-1:]][-5:])
    assert container.status.health == "healthy"
    container.unpause()
    wait_until(lambda: container.health_log()[-1].start_ns > before[-1].end_ns + 400_000_000)
    assert container.status.health == "healthy"
    assert changes(container) == ["healthy"]


@needs_groups
def test_a_start_of_it_that_hangs_holds_nothing_up(make: Make) -> None:
    """Nobody has told the monitor that the group is frozen: the test does not even come to its exec."""
    container = make("true", timeout=0.1, retries=1)
    monitor = record(container).monitor_pid
    group = group_of(container)
    assert group is not None
    with group:
        group.freeze()
        try:
            wait_until(lambda: len(children(monitor)) >= 2)
            for _ in range(50):
                with Control(container.directory.fileno()) as control:
                    control.policy(0, 0)
                time.sleep(0.01)
        finally:
            group.thaw()
    wait_until(lambda: any(one.exit_code == 0 for one in container.health_log()))
    container.stop(timeout=0)


@needs_root
def test_it_inherits_no_descriptor(make: Make) -> None:
    container = make("ls -l /proc/self/fd; echo; ls /proc/self/fd")
    wait_until(container.health_log)
    assert container.health_log()[0].output.split("\n\n")[1].split() == ["0", "1", "2", "3"]  # 3 is the directory's
