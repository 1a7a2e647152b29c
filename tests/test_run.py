"""run(): one call, one sandbox, one result."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from patience import PATIENCE
from starts import host

import containerkit as ck
from containerkit import Bind, Limits, Outcome

pytestmark = pytest.mark.both

KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")

# This interpreter, seen inside at the same place.
_PREFIX = Path(sys.base_prefix)
_IN_USR = _PREFIX.is_relative_to("/usr") and not _PREFIX.is_relative_to("/usr/local")
PYTHON_MOUNTS = () if _IN_USR else (Bind(_PREFIX, str(_PREFIX)),)
PYTHON = os.path.realpath(sys.executable)


def sh(script: str, **options: Any) -> ck.Completed[Any]:
    return ck.run(["sh", "-c", script], **options)


def python(code: str, *args: str, **options: Any) -> ck.Completed[Any]:
    mounts = (*PYTHON_MOUNTS, *options.pop("mounts", ()))
    return ck.run([PYTHON, "-I", "-S", "-c", code, *args], mounts=mounts, **options)


def fields(text: str) -> dict[str, str]:
    """The fields of a /proc/PID/status file."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


# ---- what the result says ----------------------------------------------------------------------------------


def test_three_lines_run_a_program() -> None:
    done = ck.run(["echo", "hello"])
    assert done.stdout == "hello\n"
    assert (done.returncode, done.outcome, done.stderr, done.ok) == (0, Outcome.EXITED, "", True)
    assert done.args == ("echo", "hello")


def test_every_exit_status_comes_back() -> None:
    codes = range(256)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda code: sh(f"exit {code}"), codes))
    assert [done.returncode for done in ended] == list(codes)
    assert {done.outcome for done in ended} == {Outcome.EXITED}
    assert [done.ok for done in ended] == [True] + [False] * 255


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "HUP", "INT", "USR1", "ABRT"])
def test_a_signal_comes_back_as_a_negative_number(name: str) -> None:
    done = sh(f"kill -{name} $$; sleep 9")
    assert (done.outcome, done.returncode) == (Outcome.SIGNALED, -getattr(signal, f"SIG{name}"))
    assert not done.ok


def test_a_shell_that_reports_a_signal_as_a_status_is_not_taken_for_one() -> None:
    done = sh("exit 137")
    assert (done.outcome, done.returncode) == (Outcome.EXITED, 137)


def test_both_outputs_come_back_apart() -> None:
    done = sh("echo out; echo err >&2; echo out")
    assert (done.stdout, done.stderr) == ("out\nout\n", "err\n")


def test_output_is_bytes_when_asked_for() -> None:
    done = ck.run(["printf", "\\377a\\000b\\r\\n"], text=False)
    assert done.stdout == b"\xffa\0b\r\n"
    assert done.stderr == b""


def test_text_that_is_not_utf8_is_replaced_and_never_an_error() -> None:
    assert ck.run(["printf", "\\377\\303\\244\\303"]).stdout == "\ufffd\u00e4\ufffd"


def test_a_character_split_between_two_reads_is_one_character() -> None:
    assert sh("printf '\\303'; sleep 0.05; printf '\\244'").stdout == "\u00e4"


def test_check_raises_with_the_end_of_what_it_complained_about() -> None:
    with pytest.raises(ck.ProcessFailed, match="return code 7") as caught:
        sh("seq 1000 >&2; echo the reason >&2; exit 7", check=True)
    assert "the reason" in str(caught.value)
    assert "\n1\n2\n" not in str(caught.value)
    assert caught.value.returncode == caught.value.completed.returncode == 7
    assert caught.value.stderr.startswith("1\n2\n")


def test_check_is_silent_for_success() -> None:
    assert ck.run(["true"], check=True).ok


def test_check_raises_after_a_timeout_too() -> None:
    with pytest.raises(ck.ProcessFailed, match="timeout"):
        ck.run(["sleep", "60"], check=True, timeout=0.05)


def test_what_cannot_be_started_is_an_error_and_not_a_result() -> None:
    with pytest.raises(ck.ProgramNotFound, match="no-such-program"):
        ck.run(["no-such-program"])


# ---- what the program sees ---------------------------------------------------------------------------------


def inodes(then: str = "true", **options: Any) -> dict[str, str]:
    script = f"for kind in {' '.join(KINDS)}; do readlink /proc/self/ns/$kind; done; {then}"
    lines = sh(script, **options).stdout.split()
    return dict(zip(KINDS, lines, strict=True))


def ours() -> dict[str, str]:
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


def test_all_eight_namespaces_are_new() -> None:
    inside, outside = inodes(), ours()
    assert {kind for kind in KINDS if inside[kind] == outside[kind]} == set()


def test_the_hosts_network_is_the_only_namespace_that_it_shares() -> None:
    inside, outside = inodes(network="host"), ours()
    assert {kind for kind in KINDS if inside[kind] == outside[kind]} == {"net"}


def test_two_runs_share_no_namespace() -> None:
    with ThreadPoolExecutor(2) as pool:  # at the same time: a number is used again when its namespace has ended
        one, two = pool.map(lambda _: inodes("sleep 0.1"), range(2))
    assert {kind for kind in KINDS if one[kind] == two[kind]} == set()


def test_it_has_no_capability_and_can_get_none() -> None:
    status = fields(sh("cat /proc/self/status").stdout)
    sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert {name: int(status[name], 16) for name in sets} == dict.fromkeys(sets, 0)
    assert status["NoNewPrivs"] == "1"


def test_its_securebits_are_locked() -> None:
    # linux/securebits.h: NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE set and locked, KEEP_CAPS locked.
    done = python("import ctypes; print(ctypes.CDLL(None).prctl(27, 0, 0, 0, 0))")
    assert (done.stdout, done.stderr) == (f"{0b1110_1111}\n", "")


def test_it_is_id_0_inside_and_nobody_of_note_outside(caller: str) -> None:
    status = fields(sh("cat /proc/self/status").stdout)
    assert status["Uid"].split() == status["Gid"].split() == ["0"] * 4
    inside, outside, count = map(int, sh("cat /proc/self/uid_map").stdout.split())
    assert inside == 0
    if caller == "root":
        assert outside > 1 << 24
        assert count == 65536
    else:
        assert (outside, count) == (os.getuid(), 1)


def test_it_has_no_group_of_the_callers(caller: str) -> None:
    groups = set(fields(sh("cat /proc/self/status").stdout)["Groups"].split())
    # A map made without privilege forbids setgroups(2): groups that are not mapped stay, and are shown as 65534.
    assert groups <= (set() if caller == "root" else {"0", "65534"})


@pytest.mark.parametrize(
    ("security", "uid", "gains"),
    [
        (ck.Security.strict(), "1000", False),
        (ck.Security(capabilities=ck.Capabilities(), no_new_privs=False), "0", False),
        (ck.Security(capabilities=None, no_new_privs=True), "1000", False),
        (ck.Security(capabilities=None, no_new_privs=False), "0", True),
    ],
    ids=["strict", "no-capabilities", "no_new_privs", "control"],
)
def test_a_setuid_program_in_the_root_gains_nothing(
    tmp_path: Path, caller: str, security: ck.Security, uid: str, gains: bool
) -> None:
    if caller == "user":
        pytest.skip("a user's sandbox has one id: nobody to become")
    tmp_path.chmod(0o755)
    shutil.copy("/usr/bin/cat", tmp_path)
    (tmp_path / "cat").chmod(0o4755)
    mount = Bind(tmp_path, "/tools", nosuid=False, idmap=True)
    done = ck.run(["/tools/cat", "/proc/self/status"], user=1000, mounts=[mount], security=security, check=True)
    status = fields(done.stdout)
    assert (status["Uid"].split()[1], int(status["CapEff"], 16) > 0) == (uid, gains)


def test_nothing_of_the_callers_environment_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret")
    environment = dict(line.split("=", 1) for line in ck.run(["env"], env={"MINE": "1", "LANG": None}).stdout.split())
    assert environment.keys() - {"PWD", "SHLVL", "_"} == {"PATH", "HOME", "MINE"}
    for name in ("self", "1"):
        assert "CANARY" not in sh(f"cat /proc/{name}/environ 2>/dev/null", env={}).stdout


def test_the_name_of_the_machine_is_its_own() -> None:
    assert sh("hostname").stdout == "sandbox\n"
    assert sh("hostname", hostname="given").stdout == "given\n"
    assert socket.gethostname() not in ("sandbox", "given")


def test_it_starts_in_a_private_home_that_it_may_write() -> None:
    done = sh("pwd; echo x > file; cat file; ls -A / | tr '\\n' ' '")
    home, read, names = done.stdout.splitlines()
    assert (home, read) == ("/root", "x")
    assert not {"home", "var", "run", "srv", "mnt", "boot"} & set(names.split())


def test_it_sees_no_process_but_its_own() -> None:
    names = sh("cd /proc; cat [0-9]*/comm").stdout.split()
    assert names[0].endswith("ck-init")
    assert set(names[1:]) <= {"sh", "cat"}


def test_a_program_in_a_root_of_ones_own_cannot_change_it(busybox_root: Path) -> None:
    before = sorted(os.listdir(busybox_root))
    done = ck.run(["sh", "-c", "echo x > /new; cat /new; rm /bin/cat; ls /bin/cat"], rootfs=busybox_root)
    assert done.stdout == "x\n"
    assert "No such file" in done.stderr
    assert sorted(os.listdir(busybox_root)) == before
    assert (busybox_root / "bin/cat").is_symlink()


# ---- the network -------------------------------------------------------------------------------------------

_LOOPBACK = """
import socket
server = socket.create_server((\"127.0.0.1\", 0))
client = socket.create_connection(server.getsockname(), 2)
other, _ = server.accept()
client.sendall(b"through"); print(other.recv(9).decode())
six = socket.create_server(("::1", 0), family=socket.AF_INET6)
socket.create_connection(six.getsockname()[:2], 2); print("six")
"""
_OUT = """
import socket
for address in ("192.0.2.1", "169.254.169.254", "8.8.8.8"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        try: client.connect((address, 53)); print("a route to", address)
        except OSError as error: print(error.errno)
"""


def interfaces(**options: Any) -> set[str]:
    lines = sh("cat /proc/net/dev", **options).stdout.splitlines()
    return {line.split(":")[0].strip() for line in lines if ":" in line}


def test_without_a_network_loopback_is_up_and_alone() -> None:
    assert interfaces() == {"lo"}
    done = python(_LOOPBACK)
    assert (done.stdout, done.stderr) == ("through\nsix\n", "")


def test_without_a_network_no_address_can_be_reached() -> None:
    import errno

    done = python(_OUT)
    assert (done.stdout.split(), done.stderr) == ([str(errno.ENETUNREACH)] * 3, "")


def test_the_hosts_network_has_the_hosts_interfaces() -> None:
    assert interfaces(network="host") == {name for _, name in socket.if_nameindex()}


def test_the_hosts_network_reaches_what_the_host_reaches() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert python(code, network="host").ok
        assert not python(code).ok


def test_another_network_is_refused_by_name() -> None:
    with pytest.raises(ck.InvalidValue, match="network='bridge' must be"):
        ck.run(["true"], network="bridge")  # type: ignore[call-overload]


# ---- input -------------------------------------------------------------------------------------------------


def test_input_larger_than_a_pipe_goes_in_while_output_comes_out() -> None:
    data = os.urandom(1 << 20)
    assert ck.run(["cat"], input=data, text=False).stdout == data


def test_input_may_be_text() -> None:
    assert ck.run(["cat"], input="\u00e4\n").stdout == "\u00e4\n"


def test_empty_input_is_an_end_at_once() -> None:
    assert ck.run(["cat"], input="").stdout == ""


def test_without_input_standard_input_is_empty() -> None:
    assert sh("cat; readlink /proc/self/fd/0").stdout == "/dev/null\n"


@pytest.mark.parametrize("script", ["exit 3", "sleep 0.1; exit 3", "head -c 100000 > /dev/null; exit 3"])
def test_a_program_that_does_not_read_its_input_ends_all_the_same(script: str) -> None:
    done = sh(script, input=bytes(1 << 20))
    assert (done.returncode, done.outcome) == (3, Outcome.EXITED)


def test_a_program_that_never_reads_its_input_can_time_out() -> None:
    done = ck.run(["sleep", "60"], input=bytes(1 << 20), timeout=0.1, grace=0.1)
    assert done.outcome is Outcome.TIMEOUT


def test_standard_input_may_be_a_file_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from a file")
    with (tmp_path / "file").open() as file:
        assert ck.run(["cat"], stdin=file).stdout == "from a file"
    read, write = os.pipe()
    try:
        os.write(write, b"from a pipe")
        os.close(write)
        assert ck.run(["cat"], stdin=read).stdout == "from a pipe"
    finally:
        os.close(read)


def test_a_directory_as_standard_input_is_refused(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ck.InvalidValue, match="directory"):
            ck.run(["true"], stdin=directory)
    finally:
        os.close(directory)


def test_without_capturing_the_output_is_the_callers(capfd: pytest.CaptureFixture[str]) -> None:
    done = sh("echo out; echo err >&2", capture_output=False)
    assert (done.stdout, done.stderr, done.ok) == (None, None, True)
    assert capfd.readouterr() == ("out\n", "err\n")


# ---- the end -----------------------------------------------------------------------------------------------


def test_a_timeout_asks_first_and_keeps_what_was_said() -> None:
    script = "trap 'echo tidied up; exit 3' TERM; echo started; while :; do sleep 0.02; done"
    done = sh(script, timeout=0.3 * PATIENCE, grace=5 * PATIENCE)
    assert (done.outcome, done.returncode, done.stdout) == (Outcome.TIMEOUT, 3, "started\ntidied up\n")
    assert 0.3 <= done.usage.wall_seconds < 2 * PATIENCE


def test_a_program_that_does_not_listen_is_killed_after_the_grace() -> None:
    done = sh("trap '' TERM; echo started; while :; do sleep 0.02; done", timeout=0.2 * PATIENCE, grace=0.2)
    assert (done.outcome, done.returncode, done.stdout) == (Outcome.TIMEOUT, -signal.SIGKILL, "started\n")
    assert 0.4 <= done.usage.wall_seconds < 2 * PATIENCE


def test_a_program_that_ends_at_sigterm_is_a_timeout_too() -> None:
    done = ck.run(["sleep", "60"], timeout=0.05)
    assert (done.outcome, done.returncode) == (Outcome.TIMEOUT, -signal.SIGTERM)


def test_a_timeout_ends_what_closed_its_output() -> None:
    done = sh("exec >&- 2>&-; exec sleep 60", timeout=0.1)
    assert done.outcome is Outcome.TIMEOUT


def test_a_quick_program_does_not_wait_for_its_timeout() -> None:
    begin = time.monotonic()
    assert ck.run(["true"], timeout=30).outcome is Outcome.EXITED
    assert time.monotonic() - begin < 5 * PATIENCE


def test_a_program_that_closes_its_output_is_waited_for() -> None:
    done = sh("exec >&- 2>&-; sleep 0.2; exit 5")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.usage.wall_seconds >= 0.2


def test_what_it_left_in_the_background_does_not_delay_the_return() -> None:
    begin = time.monotonic()
    done = sh("sleep 60 & (sleep 60 &); setsid sleep 60 & echo said; exit 4")
    assert (done.returncode, done.outcome, done.stdout) == (4, Outcome.EXITED, "said\n")
    assert time.monotonic() - begin < 5 * PATIENCE


def test_a_fork_loop_that_outlives_the_program_ends_with_it() -> None:
    done = sh("(while :; do (sleep 0.01); done) & sleep 0.1; exit 0")
    assert done.ok


# ---- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "while :; do :; done",
        "while :; do true & wait; done",
        "(while :; do :; done) & sleep 60",
        "(while :; do :; done &) ; exec >&- 2>&-; exec sleep 60",
    ],
    ids=["one", "many-short-children", "child", "orphan"],
)
def test_processor_time_of_the_whole_tree_is_limited(script: str) -> None:
    done = sh(script, limits=Limits(cpu_seconds=0.2), timeout=20)
    assert (done.outcome, done.returncode) == (Outcome.CPU_LIMIT, -signal.SIGKILL)
    assert 0.18 <= done.usage.cpu_seconds < 0.8


def test_a_program_below_its_limit_of_processor_time_is_left_alone() -> None:
    done = ck.run(["sleep", "0.3"], limits=Limits(cpu_seconds=0.2 * PATIENCE))
    assert done.ok
    assert done.usage.cpu_seconds < 0.2 * PATIENCE


def test_no_more_processes_than_allowed(caller: str) -> None:
    script = "i=0; while [ $i -lt 30 ]; do sleep 60 & i=$((i+1)); done; ls -d /proc/[0-9]* | wc -l"
    free = sh(f"{script}; exit 0")
    limited = sh(f"{script} 2>/dev/null; exit 0", limits=Limits(pids_max=12))
    assert int(free.stdout) > 30  # the control
    assert not limited.stdout.strip() or int(limited.stdout) <= 12
    assert "ork" in limited.stderr  # "Cannot fork", "can't fork"


def test_two_sandboxes_do_not_share_their_limit_of_processes() -> None:
    hold = "for i in 1 2 3 4 5 6; do sleep 0.3 & done; wait; echo all"
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda _: sh(hold, limits=Limits(pids_max=10)), range(4)))
    assert [done.stdout for done in ended] == ["all\n"] * 4


def test_output_beyond_the_limit_keeps_head_and_tail() -> None:
    done = sh("seq 100000; echo done >&2", limits=Limits(output_max=100_000))
    whole = "".join(f"{n}\n" for n in range(1, 100_001))
    assert done.outcome is Outcome.OUTPUT_LIMIT
    assert done.returncode == 0
    assert not done.ok
    assert done.stdout_cut == len(whole) - 100_000
    head, gap, tail = re.split(r"(\n\[\.\.\. \d+ bytes cut \.\.\.\]\n)", done.stdout)
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + len(tail) == 100_000
    assert str(done.stdout_cut) in gap
    assert (done.stderr, done.stderr_cut) == ("done\n", 0)


def test_a_flood_is_stopped() -> None:
    done = sh("yes", limits=Limits(output_max="64K"), timeout=20)
    assert (done.outcome, done.returncode) == (Outcome.OUTPUT_LIMIT, -signal.SIGKILL)
    assert len(done.stdout) < 66_000
    assert done.usage.wall_seconds < 5


def test_a_flood_of_complaints_is_stopped_too() -> None:
    done = sh("yes >&2", limits=Limits(output_max="64K"), timeout=20)
    assert (done.outcome, done.stdout) == (Outcome.OUTPUT_LIMIT, "")
    assert done.stderr_cut > 0


def test_without_a_limit_all_output_is_kept() -> None:
    done = sh("seq 100000", limits=Limits(output_max=None))
    assert done.ok
    assert len(done.stdout) == 588_895


def test_limits_of_descriptors_and_files_hold() -> None:
    done = sh("ulimit -n; ulimit -f; ulimit -c", limits=Limits(nofile=77, file_size_max="1M"))
    assert done.stdout.split()[0] == "77"
    assert done.stdout.split()[1] in ("2048", "1024")  # blocks of 512 or 1024 bytes
    assert done.stdout.split()[2] == "0"
    assert sh("head -c 2000000 /dev/zero > /tmp/f; ls -l /tmp", limits=Limits(file_size_max="1M")).stdout.count(
        "1048576"
    )


# ---- usage -------------------------------------------------------------------------------------------------

# A child that is waited for, an orphan that still sleeps when the program ends, and the program itself.
_BURN = """
import os, time
def burn(seconds):
    while time.process_time() < seconds: pass
read, write = os.pipe()
if os.fork() == 0:
    burn(0.15)
    os._exit(0)
os.wait()
if os.fork() == 0:
    if os.fork() == 0:
        burn(0.15)
        os.write(write, b"burnt")
        time.sleep(60)
    os._exit(0)
os.wait()
burn(0.1)
assert os.read(read, 5) == b"burnt"
"""


def test_usage_counts_children_and_orphans_that_were_killed() -> None:
    done = python(_BURN, check=True)
    assert 0.4 <= done.usage.cpu_seconds < 0.4 + 0.4 * PATIENCE
    assert done.usage.cpu_seconds == pytest.approx(done.usage.user_seconds + done.usage.system_seconds)
    assert done.usage.wall_seconds >= 0.3


def test_the_peak_of_memory_is_that_of_the_largest_process() -> None:
    done = python("data = bytearray(64 << 20); data[::4096] = bytes(len(data[::4096]))", check=True)
    assert 64 << 20 <= done.usage.memory_peak < 120 << 20
    assert done.usage.minor_faults > (64 << 20) // 4096 // 600
    small = ck.run(["true"])
    assert 0 < small.usage.memory_peak < 16 << 20


def test_a_program_that_sleeps_uses_wall_time_only() -> None:
    usage = ck.run(["sleep", "0.2"]).usage
    assert 0.2 <= usage.wall_seconds < 2 * PATIENCE
    assert usage.cpu_seconds < 0.1 * PATIENCE
    assert usage.voluntary_switches > 0


# ---- from many threads, and interrupted --------------------------------------------------------------------


def hundred(count: int, threads: int) -> None:
    """Each start gets its own answer."""

    def one(number: int) -> tuple[int, str]:
        done = sh(f"echo {number}; exit {number % 200}")
        return done.returncode, done.stdout

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(one, range(count)))
    assert answers == [(number % 200, f"{number}\n") for number in range(count)]


def test_a_hundred_runs_in_eight_threads() -> None:
    hundred(100, 8)


@pytest.mark.slow
def test_eight_hundred_runs_in_eight_threads() -> None:
    hundred(800, 8)


def test_a_run_outlives_the_thread_of_another_that_ended() -> None:
    """PR_SET_PDEATHSIG would kill with the thread that started; so does whoever ties a child to a thread."""
    results: list[ck.Completed[str]] = []
    process: list[ck.Process] = []

    def start() -> None:
        process.append(ck.Process(["sleep", "0.3"]))
        results.append(ck.run(["true"]))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with process[0] as still:
        assert still.wait(5) == 0
    assert results[0].ok


class Interrupted(BaseException):
    """As KeyboardInterrupt: not an Exception."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_INTERRUPTED = """
class Interrupted(BaseException):
    pass

def handler(number, frame):
    raise Interrupted

def children():
    tasks = os.listdir("/proc/self/task")
    return "".join(open(f"/proc/self/task/{task}/children").read() for task in tasks).split()

signal.signal(signal.SIGALRM, handler)
ck.run(["true"])
for step in range(100):
    try:
        # Again later: Python drops what a handler raises within a finalizer.
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + step * 0.00006, 0.5)
        ck.run(["sleep", "60"])
    except Interrupted:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert not children(), (step, children())
print("nothing")
"""


def test_an_interrupt_at_any_moment_of_a_start_leaves_no_process() -> None:
    """A descriptor that has no name yet may be left; a process, alive or dead, may not."""
    with host(_INTERRUPTED) as process:
        said, complaints = process.communicate(timeout=40 * PATIENCE)
    assert said == "nothing\n", complaints


def test_an_interrupt_of_a_running_program_leaves_nothing() -> None:
    with pytest.raises(Interrupted), interrupted_after(0.1):
        ck.run(["sleep", "60"])


def test_a_signal_whose_handler_returns_does_not_disturb_a_run() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(10):
            assert ck.run(["echo", "x"], input="y").stdout == "x\n"
        done = ck.run(["sleep", "60"], timeout=0.1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done.outcome is Outcome.TIMEOUT
    assert len(seen) > 20


def test_ignored_and_blocked_signals_of_the_caller_are_not_inherited() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        status = fields(sh("cat /proc/self/status").stdout)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        signal.signal(signal.SIGUSR1, before)
    assert {name: int(status[name], 16) for name in ("SigIgn", "SigBlk")} == {"SigIgn": 0, "SigBlk": 0}
