"""Whose process it is: the host that dies, forks, reaps everything, ends its threads, or is interrupted."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE
from starts import STARTS, Directory, host, host_said, is_gone, sleeping, wait_until

from containerkit import PIPE, Process
from containerkit.errors import TimeoutExpired

BOTH = pytest.mark.both

# ---- a host that ignores or reaps its children -------------------------------------------------------------

# What it prints: the statuses of programs that end in each of the ways, started in each of the ways.
STATUSES = """
def statuses():
    for options in STARTS.values():
        for script, expected in (("exit 0", 0), ("exit 42", 42), ("sleep 0.02; exit 7", 7)):
            with Process(["sh", "-c", script], **options) as process:
                code = process.wait(20)
                print("exact" if code == expected else f"{code} for {script}")
        with Process(["sleep", "60"], **options) as process:
            process.kill()
            print("exact" if process.wait(20) == -9 else process.returncode)
"""
EXACT = ["exact"] * 4 * len(STARTS)


@BOTH
def test_the_status_is_exact_although_the_host_ignores_sigchld() -> None:
    code = f"""{STATUSES}
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
statuses()
"""
    assert host_said(code) == EXACT


@BOTH
def test_the_status_is_exact_although_a_thread_reaps_every_child() -> None:
    code = f"""{STATUSES}
def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.0005)
threading.Thread(target=reap, daemon=True).start()
for _ in range(3):
    statuses()
"""
    assert host_said(code) == EXACT * 3


@BOTH
def test_the_status_is_exact_although_a_handler_reaps_every_child() -> None:
    """As gunicorn and other servers do."""
    code = f"""{STATUSES}
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
statuses()
"""
    assert host_said(code) == EXACT


def test_popen_loses_the_status_in_such_a_host() -> None:
    """So the three tests above can fail."""
    lines = host_said("""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with subprocess.Popen(["sh", "-c", "exit 42"]) as process:
            print(process.wait())
    """)
    assert lines == ["0"]


@BOTH
def test_the_hosts_own_children_are_left_for_the_host() -> None:
    lines = host_said("""
        child = subprocess.Popen(["sh", "-c", "exit 11"])
        wait_until(lambda: is_gone(child.pid))
        for options in STARTS.values():
            with Process(["true"], **options) as process:
                process.wait(20)
        print(child.wait())
    """)
    assert lines == ["11"]


# ---- a host that forks -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "act",
    ["process.close()", "del process; gc.collect()", "process.__exit__(None, None, None)", "sys.exit(0)"],
)
def test_what_a_forked_copy_of_the_host_does_with_a_process_does_not_end_it(act: str) -> None:
    lines = host_said(f"""
        for options in STARTS.values():
            process = Process(["cat"], stdin=PIPE, stdout=PIPE, **options)
            child = os.fork()
            if not child:
                {act}
                os._exit(0)
            end = os.waitpid(child, 0)[1]
            print(end, process.poll(), *process.communicate(b"alive", timeout={20 * PATIENCE}), flush=True)
            process.close()
    """)
    assert lines == ["0 None b'alive' None"] * len(STARTS)


@BOTH
def test_a_forked_copy_of_the_host_can_start_processes_of_its_own() -> None:
    lines = host_said("""
        with Process(["true"], **ISOLATED) as process:
            process.wait(20)
        child = os.fork()
        if not child:
            with Process(["sh", "-c", "exit 6"], **ISOLATED) as process:
                os._exit(process.wait(20))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert lines == ["6"]


@BOTH
def test_the_process_of_a_forked_copy_dies_with_that_copy() -> None:
    """PID 1 watches who started it, not who imported the library first."""
    lines = host_said("""
        with sleeping(**ISOLATED):
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                process = Process(["sleep", "60"], **ISOLATED)
                os.write(writing, str(process.pid).encode())
                signal.pause()
            pid = int(os.read(reading, 20))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            wait_until(lambda: is_gone(pid), 1)
            print("gone")
    """)
    assert lines == ["gone"]


# ---- a host that dies --------------------------------------------------------------------------------------

STARTS_A_TREE = """
process = Process(
    ["sh", "-c", "setsid sh -c 'trap \\"\\" HUP TERM; sleep 60 & echo; wait' & wait"], stdout=PIPE, **ISOLATED
)
process.stdout.readline()
"""
TELLS_AND_WAITS = """
print(process.pid, ck.process._pid_of(process.fileno()), flush=True)
signal.pause()
"""


@BOTH
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_foreground_program_dies_with_its_host(state: str) -> None:
    with host(STARTS_A_TREE + TELLS_AND_WAITS) as owner:
        assert owner.stdout is not None
        program, first = map(int, owner.stdout.readline().split())
        assert not is_gone(program)
        if state == "stopped":
            os.kill(program, signal.SIGSTOP)
        owner.kill()
        wait_until(lambda: is_gone(program) and is_gone(first), 1)


@BOTH
def test_a_foreground_program_dies_with_its_host_although_a_forked_copy_holds_its_socket() -> None:
    fork = """
if not os.fork():
    signal.pause()
"""
    with host(STARTS_A_TREE + fork + TELLS_AND_WAITS) as owner:
        assert owner.stdout is not None
        program, first = map(int, owner.stdout.readline().split())
        try:
            owner.kill()
            wait_until(lambda: is_gone(program) and is_gone(first), 1)
        finally:
            os.killpg(owner.pid, signal.SIGKILL)


@BOTH
def test_a_host_that_exits_without_a_word_leaves_nothing() -> None:
    with host(STARTS_A_TREE + "print(process.pid, flush=True); os._exit(0)") as owner:
        assert owner.stdout is not None
        program = int(owner.stdout.readline())
        owner.wait(10)
        wait_until(lambda: is_gone(program), 1)


@BOTH
def test_a_child_of_popen_outlives_its_host() -> None:
    """So the tests above can fail."""
    code = """
process = subprocess.Popen(["sleep", "60"])
print(process.pid, flush=True)
signal.pause()
"""
    with host(code) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.kill()
        owner.wait(10)
        time.sleep(0.1)
        assert not is_gone(child)
        os.kill(child, signal.SIGKILL)


@BOTH
def test_a_host_that_dies_at_any_moment_of_a_start_leaves_nothing() -> None:
    code = """
print(flush=True)
while True:
    Process(["sleep", "60"], **ISOLATED).close()
"""
    for delay in range(12):
        with host(code) as owner:
            assert owner.stdout is not None
            owner.stdout.readline()
            time.sleep(delay * 0.0007)
            owner.kill()
            # The helper, the first process and the program hold this pipe from their first moment.
            assert select.select([owner.stdout], [], [], 2)[0]
            assert owner.stdout.read() == ""


# ---- a thread that ends ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("start", STARTS)
def test_a_program_survives_the_thread_that_started_it(start: str) -> None:
    started: list[Process] = []
    thread = threading.Thread(target=lambda: started.append(Process(["sleep", "60"], **STARTS[start])))
    thread.start()
    thread.join()
    with started[0] as process:
        time.sleep(0.05)
        assert process.poll() is None


def test_a_program_that_watches_its_parent_by_pdeathsig_does_not() -> None:
    """So the test above can fail."""
    prctl = ctypes.CDLL(None).prctl
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        watch = lambda: prctl(1, signal.SIGKILL)  # noqa: E731
        started.append(subprocess.Popen(["sleep", "60"], preexec_fn=watch))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert started[0].wait(5) == -signal.SIGKILL


# ---- an interrupt ------------------------------------------------------------------------------------------


@BOTH
def test_an_interrupt_during_wait_is_raised_and_the_program_runs_on() -> None:
    lines = host_said("""
        for options in STARTS.values():
            with sleeping(**options) as process:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
                try:
                    process.wait(20)
                except KeyboardInterrupt:
                    print("interrupted", process.poll())
                pid = process.pid
            print(is_gone(pid))
    """)
    assert lines == ["interrupted None", "True"] * len(STARTS)


@BOTH
def test_an_interrupt_during_run_ends_everything() -> None:
    lines = host_said("""
        before = len(os.listdir("/proc/self/fd"))
        ck.run(["true"])
        kept = len(os.listdir("/proc/self/fd"))
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            ck.run(["sh", "-c", "sleep 60 & sleep 60"])
        except KeyboardInterrupt as error:
            # The traceback holds the frames; nothing in them may hold a descriptor or a process.
            print(len(os.listdir("/proc/self/fd")) - kept)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child")
    """)
    assert lines == ["0", "no child"]


@BOTH
def test_an_interrupt_at_any_moment_of_a_start_leaves_no_process() -> None:
    """Python runs signal handlers between two bytecodes, so an int that was not stored yet may stay open: that
    is a descriptor, and no process, mount or pipe end that anybody waits for depends on it."""
    lines = host_said("""
        class Stop(Exception):
            pass
        def stop(*_):
            raise Stop
        signal.signal(signal.SIGALRM, stop)
        sys.unraisablehook = lambda _: None  # Python swallows what is raised in a __del__
        stopped = 0
        for number in range(150):
            process = None
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00004 * (number + 1))
                process = Process(["sleep", "60"], stdout=PIPE, **ISOLATED)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                stopped += 1
            if process is not None:
                process.close()
        print("often enough" if stopped > 20 else stopped)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                pid = os.waitpid(-1, os.WNOHANG)[0]
            except ChildProcessError:
                print("no child")
                break
            if pid:
                print("a child that nobody reaped")
            time.sleep(0.01)
        else:
            print("a child that runs")
    """)
    assert lines == ["often enough", "no child"]


@BOTH
def test_starts_and_waits_go_on_through_a_storm_of_signals() -> None:
    lines = host_said("""
        count = 0
        def handle(*_):
            global count
            count += 1
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        for _ in range(5):
            for options in STARTS.values():
                with Process(["sh", "-c", "echo out; exit 3"], stdout=PIPE, **options) as process:
                    assert process.communicate(timeout=20) == (b"out\\n", None)
                    assert process.returncode == 3
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(count > 20)
    """)
    assert lines == ["True"]


# ---- a start that hangs ------------------------------------------------------------------------------------


@pytest.fixture
def frozen() -> Iterator[Directory]:
    """A cgroup in which every process stops as soon as it is in it."""
    path = Path(f"/sys/fs/cgroup/unified/ck-{os.getpid()}-frozen")
    if not path.parent.is_dir():
        path = Path("/sys/fs/cgroup") / path.name
    path.mkdir()
    try:
        (path / "cgroup.freeze").write_text("1")
        with Directory(path) as cgroup:
            yield cgroup
    finally:
        wait_until(lambda: not (path / "cgroup.procs").read_text())
        path.rmdir()


@pytest.mark.root
@pytest.mark.parametrize("start", STARTS)
def test_a_start_that_hangs_is_given_up(frozen: Directory, start: str) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutExpired) as caught:
        Process(["true"], cgroup=frozen, start_timeout=0.1, stdout=PIPE, **STARTS[start])
    assert 0.09 <= time.monotonic() - begin < 2 * PATIENCE
    assert "did not finish in time" in caught.value.__notes__[0]
    assert 0.09 <= caught.value.timeout < 2


@pytest.mark.root
@pytest.mark.parametrize("start", STARTS)
def test_a_start_that_hangs_can_be_interrupted(frozen: Directory, start: str) -> None:
    lines = host_said(
        f"""
        options = STARTS[{start!r}]
        Process(["true"], **options).close()
        before = len(os.listdir("/proc/self/fd"))
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with Directory(sys.argv[1]) as cgroup:
            try:
                Process(["true"], cgroup=cgroup, **options)
            except KeyboardInterrupt:
                print("interrupted")
        print(len(os.listdir("/proc/self/fd")) - before)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child")
    """,
        str(frozen.path),
    )
    assert lines == ["interrupted", "0", "no child"]


@pytest.mark.rootless
def test_a_start_that_may_add_no_process_says_so() -> None:
    lines = host_said("""
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            Process(["true"])
        except ck.SpawnError as error:
            print(errno.errorcode[error.errno], "RLIMIT_NPROC" in str(error))
    """)
    assert lines == ["EAGAIN True"]


@BOTH
def test_close_waits_until_everything_has_ended() -> None:
    with sleeping(**STARTS["init"]) as process:
        pid = process.pid
        process.send_signal(signal.SIGSTOP)
    assert is_gone(pid)
