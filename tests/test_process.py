"""Process: what it does as Popen does it, and that it ends a whole tree."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import select
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from starts import ISOLATED, STARTS, is_gone, sleeping, status, wait_until

from containerkit import PIPE, Limits, Outcome, Process, run
from containerkit.errors import ClosedHandle, TimeoutExpired

pytestmark = pytest.mark.both


@pytest.fixture(params=STARTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """For each way to start a program."""
    return STARTS[request.param]


# ---- how it ended ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_return_code_is_the_exit_status(options: dict[str, Any], code: int) -> None:
    with Process(["sh", "-c", f"exit {code}"], **options) as process:
        assert process.wait(10) == code
        assert process.returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGKILL, signal.SIGRTMAX])
@pytest.mark.parametrize("start", ["bare", "init"])  # a program that is PID 1 itself ignores its own signals
def test_the_return_code_is_minus_the_signal_that_killed_it(start: str, number: int) -> None:
    with Process(["sh", "-c", f"kill -{number} $$"], rlimits={"core": 0}, **STARTS[start]) as process:
        assert process.wait(10) == -number


def test_the_return_code_is_none_until_it_was_asked_for(options: dict[str, Any]) -> None:
    with Process(["true"], **options) as process:
        assert process.returncode is None
        wait_until(lambda: select.select([process], [], [], 0)[0])
        assert process.returncode is None
        assert process.poll() == 0
        assert process.returncode == 0


def test_poll_is_none_while_it_runs(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        assert process.poll() is None
        process.kill()
        wait_until(lambda: process.poll() is not None)
        assert process.poll() == -signal.SIGKILL


def test_wait_gives_up_after_its_timeout_and_the_program_runs_on(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        begin = time.monotonic()
        with pytest.raises(TimeoutExpired) as caught:
            process.wait(0.05)
        assert 0.05 <= time.monotonic() - begin < 2 * PATIENCE
        assert isinstance(caught.value, subprocess.TimeoutExpired)
        assert (caught.value.cmd, caught.value.timeout) == (["sleep", "60"], 0.05)
        assert process.poll() is None


def test_a_timeout_of_zero_or_less_does_not_wait(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        for timeout in (0, -1):
            with pytest.raises(TimeoutExpired):
                process.wait(timeout)


def test_every_thread_that_waits_gets_the_return_code(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "read line; exit 5"], stdin=PIPE, **options) as process, ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(process.wait, 10) for _ in range(4)]
        assert process.stdin is not None
        process.stdin.close()
        assert [one.result() for one in waiting] == [5, 5, 5, 5]


def test_threads_start_processes_at_the_same_time(options: dict[str, Any]) -> None:
    def one(number: int) -> int:
        with Process(["sh", "-c", f"exit {number}"], **options) as process:
            return process.wait(20)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, range(24))) == list(range(24))


# ---- signals -----------------------------------------------------------------------------------------------

TRAPS = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done"


def test_send_signal_reaches_the_program(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", TRAPS], stdout=PIPE, **options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == 7


@pytest.mark.parametrize("start", ["bare", "init"])
def test_terminate_is_sigterm(start: str) -> None:
    with sleeping(**STARTS[start]) as process:
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM


def test_kill_is_sigkill(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        process.kill()
        assert process.wait(10) == -signal.SIGKILL


def test_signals_to_a_program_that_has_ended_do_nothing(options: dict[str, Any]) -> None:
    with Process(["true"], **options) as process:
        wait_until(lambda: select.select([process], [], [], 0)[0])
        process.terminate()  # it has ended, and nobody has asked yet
        assert process.wait(10) == 0
        process.terminate()
        process.kill()
        process.send_signal(signal.SIGUSR1)


def test_a_stopped_program_can_be_continued_and_killed(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: status(process.pid)["State"].startswith("T"))
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: status(process.pid)["State"].startswith("S"))
        process.send_signal(signal.SIGSTOP)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL


# ---- the whole tree ----------------------------------------------------------------------------------------

# Each of them holds the pipe that is its output, so the pipe ends when the last one does. The first is an
# orphan in a session of its own, the second ignores what can be ignored.
TREE = """
setsid sh -c '(echo orphan; exec sleep 60) &' &
(trap '' HUP TERM INT QUIT; echo stubborn; exec sleep 60) &
echo child; exec {last}
"""


def read_lines(process: Process | subprocess.Popen[bytes], count: int) -> set[bytes]:
    assert process.stdout is not None
    return {process.stdout.readline().strip() for _ in range(count)}


def ends(process: Process | subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether everything that could write to its output has ended by then."""
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], seconds)[0]) and process.stdout.read() == b""


@pytest.mark.parametrize("start", ["init", "no-init"])
def test_kill_ends_the_whole_tree(start: str) -> None:
    with Process(["sh", "-c", TREE.format(last="sleep 60")], stdout=PIPE, **STARTS[start]) as process:
        assert read_lines(process, 3) == {b"orphan", b"stubborn", b"child"}
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert ends(process, 0)


@pytest.mark.parametrize("start", ["init", "no-init"])
def test_the_end_of_the_program_ends_what_it_left_behind(start: str) -> None:
    script = TREE.format(last="sh -c 'read line; exit 3'")
    with Process(["sh", "-c", script], stdin=PIPE, stdout=PIPE, **STARTS[start]) as process:
        assert read_lines(process, 3) == {b"orphan", b"stubborn", b"child"}
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 3
        assert ends(process, 0)


@pytest.mark.parametrize("start", ["init", "no-init"])
def test_the_context_manager_ends_the_whole_tree(start: str) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as output:
        with Process(["sh", "-c", TREE.format(last="sleep 60")], stdout=writing, **STARTS[start]):
            os.close(writing)
            assert {output.readline() for _ in range(3)} == {b"orphan\n", b"stubborn\n", b"child\n"}
        assert output.read() == b""


def test_the_naive_twin_leaves_the_tree_behind() -> None:
    """So the three tests above can fail."""
    script = TREE.format(last="sleep 60").replace("exec sleep 60", "exec sleep 0.5")
    with subprocess.Popen(["sh", "-c", script], stdout=PIPE, start_new_session=True) as process:
        assert read_lines(process, 3) == {b"orphan", b"stubborn", b"child"}
        process.kill()
        process.wait()
        assert not ends(process, 0)
        assert ends(process, 10)


def test_a_program_cannot_start_more_processes_than_its_limit() -> None:
    script = "i=0; while [ $i -lt 64 ]; do sleep 60 & echo $i; i=$((i+1)); done"
    done = run(["sh", "-c", script], limits=Limits(pids_max=16), timeout=10)
    assert done.outcome is Outcome.EXITED
    assert "fork" in done.stderr  # and with its end, all of them ended: the leak oracle looks
    assert 10 <= len(done.stdout.split()) < 16


def test_a_fork_bomb_is_ended_by_the_timeout() -> None:
    # The first one stays, so that the bomb cannot end by itself.
    bomb = "b() { b | b & }; b; echo lit; sleep 60"
    begin = time.monotonic()
    done = run(["sh", "-c", bomb], limits=Limits(pids_max=24), timeout=0.3 * PATIENCE, grace=0)
    assert done.outcome is Outcome.TIMEOUT
    assert done.stdout == "lit\n"
    assert time.monotonic() - begin < 5 * PATIENCE


# ---- the handle --------------------------------------------------------------------------------------------


def test_the_context_manager_kills_what_still_runs(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        pid = process.pid
        assert not is_gone(pid)
    assert is_gone(pid)
    assert process.returncode == -signal.SIGKILL


def test_the_context_manager_keeps_the_status_of_what_has_ended(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "exit 9"], **options) as process:
        process.wait(10)
    assert process.returncode == 9


def test_close_may_be_called_twice(options: dict[str, Any]) -> None:
    process = Process(["sleep", "60"], stdin=PIPE, stdout=PIPE, **options)
    process.close()
    process.close()
    assert process.returncode == -signal.SIGKILL


def test_close_does_not_wait_for_a_program_that_reads_nothing(options: dict[str, Any]) -> None:
    process = Process(["sleep", "60"], stdin=PIPE, text=True, **options)
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    with pytest.raises(BlockingIOError):
        process.stdin.write("x" * (1 << 20))
    os.set_blocking(process.stdin.fileno(), True)
    # The pipe is full and the rest is in the buffer: closing the file first would write it, and block.
    closing = threading.Thread(target=process.close)
    closing.start()
    closing.join(5)
    hung = closing.is_alive()
    if hung:
        os.kill(process.pid, signal.SIGKILL)
    closing.join(5)
    assert not hung


def test_after_close_it_still_answers_what_is_known(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        pass
    assert process.poll() == process.wait() == process.wait(0) == -signal.SIGKILL
    process.kill()
    process.terminate()
    assert process.args == ("sleep", "60")


def test_after_close_there_is_no_descriptor_to_use(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        assert process.fileno() >= 0
    with pytest.raises(ClosedHandle, match="closed"):
        process.fileno()
    with pytest.raises(ClosedHandle, match="closed"):
        process.terminal  # noqa: B018


def test_a_forgotten_process_is_killed_with_a_warning(options: dict[str, Any]) -> None:
    held = [Process(["sleep", "60"], **options)]
    pid = held[0].pid
    with pytest.warns(ResourceWarning, match=r"<Process 'sleep' running> was never waited for"):
        held.clear()
    assert is_gone(pid)


def test_a_forgotten_process_that_was_waited_for_is_no_reason_to_warn(options: dict[str, Any]) -> None:
    Process(["true"], **options).wait(10)
    gc.collect()  # a warning here is an error; the descriptors are closed, or the leak oracle finds them


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_process_cannot_be_copied(options: dict[str, Any], copier: Any) -> None:
    with sleeping(**options) as process, pytest.raises(TypeError, match="Process"):
        copier(process)


def test_its_repr_tells_the_state(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "exit 3"], **options) as process:
        assert repr(process) == "<Process 'sh' running>"
        process.wait(10)
        assert repr(process) == "<Process 'sh' returncode=3>"
    assert repr(process) == "<Process 'sh' returncode=3>"


def test_its_repr_escapes_what_a_terminal_would_obey() -> None:
    with Process(["sh", "-c", "exit"], **ISOLATED) as process:
        process.args = ("\x1b[2J\n",)
        assert "\x1b" not in repr(process)
        assert "\n" not in repr(process)


def test_the_pid_is_that_of_the_program(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        # vfork returns while execve is still filling in the arguments.
        wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x0060\x00")


@pytest.mark.parametrize("start", ["bare", "no-init"])
def test_the_pid_is_known_even_when_the_program_ends_at_once(start: str) -> None:
    for _ in range(20):
        with Process(["true"], **STARTS[start]) as process:
            assert process.pid > 0


def test_its_descriptor_can_be_read_when_it_has_ended(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        assert select.select([process], [], [], 0)[0] == []
        process.kill()
        assert select.select([process], [], [], 10)[0] == [process]


def test_the_timeline_ends_with_the_end_of_the_program(options: dict[str, Any]) -> None:
    with Process(["sleep", "0.05"], **options) as process:
        before = process.timeline[-1].end
        process.wait(10)
        assert process.timeline[-1].end - before > 40_000_000
