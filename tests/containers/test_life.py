"""Containers live and end: by themselves, by us, by an accident of any of those who take part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starts import wait_until

import containerkit as ck
from containerkit import spawn
from containerkit.cgroup.apply import read_back
from containerkit.containers.container import Container
from containerkit.containers.control import Control
from containerkit.containers.group import group as group_of
from containerkit.containers.group import usage
from containerkit.containers.state import is_alive, read_record
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.both

Make = Callable[..., Container]

needs_root = pytest.mark.skipif("os.geteuid() != 0", reason="PID 1 of a user's container is not his to kill")
needs_groups = pytest.mark.skipif("os.geteuid() != 0", reason="this user has no control groups here")


@pytest.fixture
def make(store: Store, image: Image) -> Make:
    def make(script: str, **options: object) -> Container:
        return store.containers.create(image, ["sh", "-c", script], **options)  # type: ignore[arg-type]

    return make


def said(container: Container) -> str:
    return "".join(line.text + "\n" for line in container.logs())


# ---- by itself -------------------------------------------------------------------------------------------------------


def test_it_runs_to_its_end_and_says_how(make: Make) -> None:
    container = make("echo out; echo err >&2; exit 3")
    assert container.status.status == "created"
    assert container.status.exit_code is None
    before = time.time()
    container.start()
    assert container.wait(20) == 3
    found = container.status
    assert (found.status, found.exit_code, found.pid, found.restarts) == ("exited", 3, 0, 0)
    assert found.started is not None
    assert found.finished is not None
    assert before - 0.1 <= found.started <= found.finished <= time.time() + 0.1
    lines = [(line.stream, line.data) for line in container.logs()]
    assert sorted(lines) == [("stderr", b"err\n"), ("stdout", b"out\n")]


def test_what_a_signal_ends_has_128_and_its_number(make: Make) -> None:
    container = make("kill -9 $$")
    container.start()
    assert container.wait(20) == 137


def test_what_it_used_is_known_afterwards(make: Make) -> None:
    container = make("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    container.start()
    container.wait(20)
    used = usage(container)
    assert used is not None
    assert used.cpu_seconds > 0
    assert used.wall_seconds > 0


def test_it_starts_again_with_its_files_and_its_log_goes_on(make: Make) -> None:
    container = make("echo $(cat /count 2>/dev/null)x > /count; cat /count")
    for _ in range(3):
        container.start()
        container.wait(20)
    assert said(container) == "x\nxx\nxxx\n"


def test_its_program_has_what_it_was_created_with(make: Make) -> None:
    script = "id -u; hostname; pwd; echo $WORD; echo $$"
    user = "bob" if os.geteuid() == 0 else None  # an ordinary user's containers have one id
    container = make(script, user=user, hostname="box", workdir="/work", env={"WORD": "here"})
    container.start()
    assert container.wait(20) == 0
    uid, *rest, pid = said(container).split()
    assert rest == ["box", "/work", "here"]
    assert int(pid) > 1
    assert uid == ("1000" if user else "0")


def test_without_init_its_program_is_pid_1(make: Make) -> None:
    container = make("echo $$; exit 4", init=False)
    container.start()
    assert container.wait(20) == 4
    assert said(container) == "1\n"


def test_by_default_its_name_is_its_short_id(make: Make) -> None:
    container = make("hostname")
    container.start()
    container.wait(20)
    assert said(container).strip() == container.short_id


def test_a_program_that_is_not_there_is_an_error_and_leaves_nothing(store: Store, image: Image) -> None:
    container = store.containers.create(image, ["nonesuch"], restart="always")
    with pytest.raises(ck.ProgramNotFound, match="nonesuch"):
        container.start()
    assert container.status.status == "created"
    assert "nonesuch" in str(container.status.error)
    assert not is_alive(container.directory.fileno())
    assert group_of(container) is None
    with pytest.raises(ck.WrongState, match="never started"):
        container.wait(5)


@needs_groups
def test_a_start_that_cannot_be_begun_leaves_no_group(make: Make, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    container = make("true", mounts=[ck.Bind(source, "/mnt")])
    source.rmdir()
    with pytest.raises(ck.ContainerkitError):
        container.start()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/ck-{container.id[:24]}"))


def test_read_only_means_its_own_files(make: Make) -> None:
    container = make("touch /file || echo no", read_only=True)
    container.start()
    container.wait(20)
    assert "no\n" in said(container)


def test_who_starts_what_runs_changes_nothing(make: Make) -> None:
    container = make("sleep 60")
    container.start()
    pid = container.status.pid
    container.start()
    assert container.status.pid == pid


def test_starts_at_once_start_it_once(store: Store, make: Make) -> None:
    container = make("echo once; sleep 60")
    threads = [threading.Thread(target=store.containers.get(container.id).start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: container.status.status == "running")
    wait_until(lambda: said(container))
    assert said(container) == "once\n"


# ---- by us -----------------------------------------------------------------------------------------------------------


def test_stop_asks_first(make: Make) -> None:
    container = make("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done")
    container.start()
    wait_until(lambda: said(container))
    container.stop()
    assert container.status[:3] == ("exited", 0, 7)
    assert said(container) == "up\nbye\n"
    container.stop()  # what has ended is stopped


def test_stop_kills_what_does_not_listen(make: Make) -> None:
    container = make("trap '' TERM; echo up; while :; do sleep 0.05; done")
    container.start()
    wait_until(lambda: said(container))
    begin = time.monotonic()
    container.stop(timeout=0.3)
    assert time.monotonic() - begin >= 0.3
    assert container.status.exit_code == 137


def test_its_own_stop_signal(make: Make) -> None:
    container = make("trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done", stop_signal="USR1")
    container.start()
    wait_until(lambda: said(container))
    container.stop()
    assert container.status.exit_code == 9


def test_kill_sends_any_signal(make: Make) -> None:
    container = make("trap 'echo got' USR2; echo up; while :; do sleep 0.05; done")
    container.start()
    wait_until(lambda: said(container))
    container.kill("USR2")
    wait_until(lambda: "got" in said(container))
    assert container.status.status == "running"
    container.kill()
    assert container.status.exit_code == 137
    with pytest.raises(ck.WrongState):
        container.kill()


def test_restart_is_another_run(make: Make) -> None:
    container = make("echo up; exec sleep 60")
    container.start()
    wait_until(lambda: said(container))
    first = container.status
    container.restart()
    second = container.status
    assert second.status == "running"
    assert second.pid != first.pid
    wait_until(lambda: said(container) == "up\nup\n")


def test_wait_gives_up_in_time(make: Make) -> None:
    container = make("sleep 60")
    container.start()
    with pytest.raises(ck.TimeoutExpired):
        container.wait(0.05)
    assert container.status.status == "running"


@needs_groups
def test_a_paused_one_stands_still_and_can_be_stopped(make: Make) -> None:
    container = make("while :; do echo tick; sleep 0.01; done")
    container.start()
    wait_until(lambda: said(container))
    container.pause()
    assert container.status.status == "paused"
    with pytest.raises(ck.WrongState, match="paused"):
        container.pause()
    before = said(container)
    time.sleep(0.1)
    assert said(container) == before
    container.unpause()
    wait_until(lambda: len(said(container)) > len(before))
    container.pause()
    container.stop(timeout=0.5)
    assert container.status.status == "exited"
    with pytest.raises(ck.WrongState):
        container.unpause()


@needs_groups
def test_limits_are_kept_and_changed_while_it_runs(make: Make) -> None:
    container = make("sleep 60", limits=ck.Limits(memory_max="64M", pids_max=20))
    container.start()
    group = group_of(container)
    assert group is not None
    with group:
        assert read_back(group.dirs, container.spec.limits)["memory_max"].find(str(64 << 20)) >= 0
        container.update(limits=ck.Limits(memory_max="96M", pids_max=20))
        assert read_back(group.dirs, container.spec.limits)["memory_max"].find(str(96 << 20)) >= 0
    assert container.spec.limits.memory_max == 96 << 20


@needs_groups
def test_the_end_by_its_memory_limit_is_told(make: Make) -> None:
    container = make("head -c 200000000 /dev/zero | tail -n 1 > /dev/null; exit 5", limits=ck.Limits(memory_max="24M"))
    container.start()
    container.wait(30)
    assert container.status.oom_killed


# ---- again and again -------------------------------------------------------------------------------------------------


def test_on_failure_starts_it_so_often(make: Make) -> None:
    container = make("echo try; exit 1", restart="on-failure:2")
    container.start()
    assert container.wait(30) == 1
    assert said(container) == "try\n" * 3
    assert container.status.restarts == 2


def test_on_failure_leaves_alone_what_went_well(make: Make) -> None:
    container = make("exit 0", restart="on-failure")
    container.start()
    assert container.wait(30) == 0
    assert container.status.restarts == 0


def test_always_goes_on_until_it_is_stopped(make: Make) -> None:
    container = make("echo again; exit 0", restart="always")
    container.start()
    wait_until(lambda: container.status.restarts >= 2)
    container.stop()
    found = container.status
    assert found.status == "exited"
    time.sleep(0.3)
    assert container.status.restarts == found.restarts


def test_between_two_runs_it_waits_longer_each_time(make: Make) -> None:
    container = make("exit 1", restart="on-failure:3")
    begin = time.monotonic()
    container.start()
    container.wait(30)
    assert time.monotonic() - begin > 0.1 + 0.2 + 0.4


def test_a_policy_can_be_changed_while_it_runs(make: Make) -> None:
    container = make("sleep 0.2; exit 1", restart="always")
    container.start()
    container.update(restart="no")
    assert container.wait(30) == 1
    assert container.status.restarts == 0


# ---- its input and its terminal --------------------------------------------------------------------------------------


def test_its_input_comes_through_its_monitor(make: Make) -> None:
    container = make("cat; echo end", stdin_open=True)
    container.start()
    text = b"".join(b"%d\n" % number for number in range(20000))
    with Control(container.directory.fileno()) as control:
        control.stdin(text)
        control.stdin_eof()
    assert container.wait(30) == 0
    assert b"".join(line.data for line in container.logs()) == text + b"end\n"


def test_without_stdin_open_its_input_is_empty(make: Make) -> None:
    container = make("cat; echo end")
    container.start()
    assert container.wait(20) == 0
    assert said(container) == "end\n"


def test_it_has_a_terminal_of_the_size_it_is_given(make: Make) -> None:
    container = make("tty; read line; stty size; echo got $line", tty=True, stdin_open=True)
    container.start()
    wait_until(lambda: "/dev/pts/" in said(container))
    with Control(container.directory.fileno()) as control:
        control.resize(33, 77)
        control.stdin(b"word\r")
    assert container.wait(20) == 0
    text = said(container)
    assert "33 77" in text
    assert "got word" in text


def test_without_a_terminal_there_is_nothing_to_resize(make: Make) -> None:
    container = make("sleep 60")
    container.start()
    with Control(container.directory.fileno()) as control, pytest.raises(ck.WrongState, match="no terminal"):
        control.resize(10, 10)


# ---- much output -----------------------------------------------------------------------------------------------------


def test_the_log_is_bounded_and_ends_with_the_latest(make: Make) -> None:
    container = make("seq 1 200000; echo last", log_max_size=65536, log_files=3)
    container.start()
    assert container.wait(60) == 0
    files = Path(container._store.path, "containers", container.id, "log")
    sizes = [path.stat().st_size for path in files.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= 65536 + 65552
    lines = [line.text for line in container.logs()]
    assert lines[-1] == "last"
    assert lines[1:-1] == [str(number) for number in range(200002 - len(lines) + 1, 200001)]


def test_everything_is_there_that_was_not_rotated_away(make: Make) -> None:
    container = make("seq 1 100000", log_max_size="64M")
    container.start()
    assert container.wait(60) == 0
    assert [line.text for line in container.logs()] == [str(number) for number in range(1, 100001)]


# ---- accidents -------------------------------------------------------------------------------------------------------


def test_it_outlives_the_program_that_started_it(make: Make) -> None:
    container = make("sleep 60")
    code = "import sys; from containerkit import Store; Store(sys.argv[1]).containers.get(sys.argv[2]).start()"
    subprocess.run([sys.executable, "-c", code, container._store.path, container.id], check=True, timeout=30)
    assert container.status.status == "running"
    container.kill()


def test_when_its_monitor_is_killed_it_ends_and_is_dead(make: Make) -> None:
    container = make("sleep 60")
    container.start()
    record = read_record(container.directory.fileno())
    assert record is not None
    pid = os.pidfd_open(record.first_pid)
    try:
        os.kill(record.monitor_pid, signal.SIGKILL)
        assert container.wait(20) == 137
        found = container.status
        assert (found.status, found.exit_code, found.pid) == ("dead", 137, 0)
        wait_until(lambda: spawn.poll([pid], 0))
    finally:
        os.close(pid)
    container.start()  # and can go on
    assert container.status.status == "running"


@needs_root
def test_when_its_pid_1_is_killed_that_is_its_end(make: Make) -> None:
    container = make("sleep 60")
    container.start()
    os.kill(container.status.pid, signal.SIGKILL)
    assert container.wait(20) == 137
    assert container.status.status == "exited"


def test_who_gives_up_a_start_leaves_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    container = make("sleep 60")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("containerkit.containers.monitor._hear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        container.start()
    assert not is_alive(container.directory.fileno())
    assert group_of(container) is None
    monkeypatch.undo()
    container.start()
    assert container.status.status == "running"


def test_what_is_removed_by_force_has_ended(make: Make) -> None:
    container = make("sleep 60")
    container.start()
    with pytest.raises(ck.WrongState):
        container.remove()
    pid = os.pidfd_open(container.status.pid)
    try:
        container.remove(force=True)
        assert spawn.poll([pid], 5)
    finally:
        os.close(pid)
    with pytest.raises(ck.ContainerNotFound):
        container.start()


@needs_root
def test_the_monitor_is_small(make: Make) -> None:
    container = make("sleep 60")
    container.start()
    record = read_record(container.directory.fileno())
    assert record is not None
    rollup = Path(f"/proc/{record.monitor_pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert private < 300
