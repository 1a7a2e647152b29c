"""Sandbox: one set-up, several programs in it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from patience import PATIENCE
from starts import host, is_gone, wait_until
from test_run import KINDS, PYTHON, PYTHON_MOUNTS, fields

import containerkit as ck
from containerkit import DEVNULL, PIPE, Limits, Namespaces, Outcome, Process, Sandbox, Security
from containerkit.launch import Launch

pytestmark = pytest.mark.both


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(mounts=PYTHON_MOUNTS) as made:
        yield made


def sh(box: Sandbox, script: str, **options: Any) -> ck.Completed[Any]:
    return box.run(["sh", "-c", script], **options)


SERVE = """
import socket
server = socket.create_server(("127.0.0.1", 8000))
print("up", flush=True)
while True:
    server.accept()[0].sendall(b"served")
"""
FETCH = "import socket; print(socket.create_connection(('127.0.0.1', 8000), 5).recv(9).decode())"


# ---- what stays, and what does not -------------------------------------------------------------------------


def test_files_stay_from_one_run_to_the_next(busybox_root: Path) -> None:
    with Sandbox(rootfs=busybox_root) as box:
        assert sh(box, "echo hello > /greeting; mkdir -p /made/here").ok
        assert sh(box, "cat /greeting; ls /made").stdout == "hello\nhere\n"
    assert not (busybox_root / "greeting").exists()


def test_two_sandboxes_of_one_root_share_no_change(busybox_root: Path) -> None:
    with Sandbox(rootfs=busybox_root) as one, Sandbox(rootfs=busybox_root) as two:
        sh(one, "echo one > /file")
        assert sh(two, "cat /file").returncode == 1


def test_the_namespaces_stay_but_for_processes_and_mounts(box: Sandbox) -> None:
    script = f"for kind in {' '.join(KINDS)}; do readlink /proc/self/ns/$kind; done; sleep 0.1"
    with ThreadPoolExecutor(2) as pool:  # at the same time: numbers are used again
        one, two = (done.stdout.split() for done in pool.map(lambda _: sh(box, script), range(2)))
    changed = {kind for kind, before, after in zip(KINDS, one, two, strict=True) if before != after}
    assert changed == {"pid", "mnt"}
    assert not set(one) & {os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


def test_a_run_sees_its_own_processes_and_no_others(box: Sandbox) -> None:
    with box.process(["sleep", "60"]), box.process(["sleep", "61"]):
        commands = sh(box, "cd /proc; for p in [0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done").stdout
    assert "sleep" not in commands
    assert "ck-init" in commands.splitlines()[0]


def test_a_run_can_signal_nothing_but_its_own(box: Sandbox) -> None:
    with box.process(["sleep", "60"]) as other:
        sh(box, "for p in $(seq 2 200); do kill -9 $p 2>/dev/null; done; kill -9 -1; true")
        assert other.poll() is None
        assert sh(box, "echo still here").stdout == "still here\n"
        other.kill()
        assert other.wait() == -signal.SIGKILL


def test_the_pid_1_of_a_run_cannot_be_killed_from_inside(box: Sandbox) -> None:
    done = sh(box, "kill -9 1; sleep 0.05; echo alive")
    assert done.stdout == "alive\n"


def test_what_a_run_left_in_the_background_ends_with_it(box: Sandbox) -> None:
    sh(box, "setsid sleep 60 & (sleep 60 &) ; exit 0")
    watcher = in_its_own_pid_namespace(["sh", "-c", "cat /proc/[0-9]*/comm"])
    with watcher(box) as process:
        output, _ = process.communicate(timeout=10 * PATIENCE)
    assert "sleep" not in output


def test_the_proc_of_a_run_is_its_own_and_masked(box: Sandbox) -> None:
    script = "ls -d /proc/[0-9]* | wc -l; readlink /proc/self; cat /proc/kallsyms /proc/keys | wc -c"
    script += "; echo x > /proc/sys/kernel/hostname"
    done = sh(box, script)
    count, self, masked = done.stdout.split()
    assert int(count) < 6
    assert int(self) < 30
    assert masked == "0"
    assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr


def test_a_server_is_reachable_from_a_later_run(box: Sandbox) -> None:
    with box.process([PYTHON, "-I", "-S", "-c", SERVE], stdout=PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        assert box.run([PYTHON, "-I", "-S", "-c", FETCH]).stdout == "served\n"
    assert box.run([PYTHON, "-I", "-S", "-c", FETCH]).returncode == 1


def test_shared_memory_stays_like_the_files(box: Sandbox) -> None:
    sh(box, "echo kept > /dev/shm/word")
    assert sh(box, "cat /dev/shm/word").stdout == "kept\n"


# ---- the end -----------------------------------------------------------------------------------------------


def test_closing_ends_everything_in_it() -> None:
    box = Sandbox()
    one, two = box.process(["sleep", "60"]), box.process(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    pids = [box.pid, one.pid, two.pid]
    begin = time.monotonic()
    box.close()
    assert time.monotonic() - begin < 2 * PATIENCE
    assert all(is_gone(pid) for pid in pids)
    assert (one.returncode, two.returncode) == (-signal.SIGKILL, -signal.SIGKILL)
    one.close()
    two.close()


def test_closing_twice_is_fine_and_shows() -> None:
    box = Sandbox()
    assert repr(box) == f"<Sandbox pid={box.pid}>"
    box.close()
    box.close()
    assert repr(box) == "<Sandbox closed>"


@pytest.mark.parametrize("use", ["run", "process", "enforced"])
def test_after_closing_every_use_is_a_typed_error(use: str) -> None:
    with Sandbox() as box:
        pass
    with pytest.raises(ck.ClosedHandle, match="closed"):
        getattr(box, use)(*([] if use == "enforced" else [["true"]]))


def test_closing_ends_a_run_in_another_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        box = Sandbox()
        running = pool.submit(box.run, ["sleep", "60"])
        time.sleep(0.1 * PATIENCE)
        box.close()
        assert running.result(5 * PATIENCE).outcome is Outcome.SIGNALED


def test_a_sandbox_whose_pid_1_was_killed_is_a_typed_error() -> None:
    with Sandbox() as box:
        os.kill(box.pid, signal.SIGKILL)
        with pytest.raises(ck.ContainerkitError):
            wait_until(lambda: not box.run(["true"]))


_OWNER = """
box = ck.Sandbox()
children = [box.process(["sleep", "60"]) for _ in range(2)]
print(box.pid, *(child.pid for child in children), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_its_owner_ends_everything_in_it(sig: signal.Signals) -> None:
    with host(_OWNER) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 3
        assert not any(is_gone(pid) for pid in pids)
        owner.send_signal(sig)
        owner.wait()
        wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_a_sandbox_that_is_forgotten_says_so_and_ends() -> None:
    box = Sandbox()
    pid = box.pid
    with pytest.warns(ResourceWarning, match="never waited for or closed"):
        del box
    wait_until(lambda: is_gone(pid))


# ---- defaults and exceptions from them ---------------------------------------------------------------------


def test_environment_and_directory_are_defaults_that_a_run_may_change() -> None:
    with Sandbox(env={"ONE": "1", "TWO": "2"}, cwd="/tmp") as box:
        show = "echo $ONE,$TWO,$THREE; pwd"
        assert sh(box, show).stdout == "1,2,\n/tmp\n"
        assert sh(box, show, env={"TWO": None, "THREE": "3"}, cwd="/usr").stdout == "1,,3\n/usr\n"
        assert sh(box, show).stdout == "1,2,\n/tmp\n"


def test_by_default_a_run_starts_in_the_private_home(box: Sandbox) -> None:
    assert sh(box, "pwd; echo $HOME; echo x > file").stdout == "/root\n/root\n"
    assert sh(box, "cat file").stdout == "x\n"


def test_user_is_a_default_that_a_run_may_change(caller: str) -> None:
    if caller == "user":
        pytest.skip("a user's sandbox has one id")
    with Sandbox(user=1000) as box:
        assert sh(box, "id -u; id -g").stdout == "1000\n1000\n"
        assert sh(box, "id -u", user="65534:7").stdout == "65534\n"
        assert sh(box, "id -u", user="nobody").stdout == "65534\n"
        assert sh(box, "id -u", user=0).stdout == "0\n"


def test_an_id_without_a_place_is_an_error_that_names_the_map(caller: str) -> None:
    with Sandbox() as box, pytest.raises((ck.InvalidValue, ck.SpawnError), match=r"id|place|map"):
        box.run(["true"], user=70000 if caller == "root" else 1)


def test_limits_are_a_default_that_a_run_may_change() -> None:
    with Sandbox(limits=Limits(nofile=77, output_max=10)) as box:
        done = sh(box, "ulimit -n; seq 10")
        assert done.stdout.startswith("77\n")
        assert done.outcome is Outcome.OUTPUT_LIMIT
        assert sh(box, "ulimit -n; seq 10", limits=Limits(nofile=88)).stdout.startswith("88\n1\n2\n")


def test_processor_time_is_limited_for_each_run(box: Sandbox) -> None:
    done = sh(box, "while :; do :; done", limits=Limits(cpu_seconds=0.1), timeout=20)
    assert (done.outcome, done.returncode) == (Outcome.CPU_LIMIT, -signal.SIGKILL)
    assert sh(box, "echo next").ok


def test_a_run_that_times_out_leaves_the_others_alone(box: Sandbox) -> None:
    with box.process(["sleep", "60"]) as other:
        assert (
            sh(box, "trap '' TERM; while :; do sleep 0.01; done", timeout=0.05, grace=0.05).outcome is Outcome.TIMEOUT
        )
        assert other.poll() is None


def test_runs_of_many_threads_get_their_own_answers(box: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: sh(box, f"echo {n}; exit {n}"), range(60)))
    assert [(done.stdout, done.returncode) for done in answers] == [(f"{n}\n", n) for n in range(60)]


def test_input_output_and_checks_work_as_with_run(box: Sandbox) -> None:
    assert box.run(["cat"], input=bytes(1 << 18), text=False).stdout == bytes(1 << 18)
    with pytest.raises(ck.ProcessFailed):
        box.run(["false"], check=True)
    with pytest.raises(ck.ProgramNotFound):
        box.run(["no-such-program"])
    with pytest.raises(TypeError, match="one string"):
        box.run("true")


def terminal_said(fd: int) -> str:
    """All that a terminal holds: a read gives what one write brought, and the end is an error."""
    said = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(fd, 1000):
            said += chunk
    return said.decode()


def test_an_interactive_program_gets_a_terminal(box: Sandbox) -> None:
    with box.process(["sh", "-c", "tty; stty size"], tty=(10, 40)) as process:
        assert process.wait(5) == 0
        shown = terminal_said(process.terminal).split()
    assert shown[0].startswith("/dev/pts/")
    assert shown[1:] == ["10", "40"]


# ---- privileges --------------------------------------------------------------------------------------------


def test_a_run_has_no_capability_and_can_get_none(box: Sandbox) -> None:
    status = fields(sh(box, "cat /proc/self/status").stdout)
    sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert {name: int(status[name], 16) for name in sets} == dict.fromkeys(sets, 0)
    assert status["NoNewPrivs"] == "1"
    assert set(status["Groups"].split()) <= {"0", "65534"}


def test_a_run_has_three_descriptors(box: Sandbox) -> None:
    held = os.open("/usr", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        assert sh(box, "ls /proc/self/fd | wc -l").stdout == "4\n"  # and that of ls itself
    finally:
        os.close(held)


@contextmanager
def _closing(process: Process) -> Iterator[Process]:
    with process:
        yield process


def in_its_own_pid_namespace(args: list[str]) -> Any:
    """Starts a program in the pid namespace of a sandbox itself: it sees every run, as no run can."""

    def start(box: Sandbox) -> Any:
        launch = Launch(
            args,
            join=box._join_fds(),
            namespaces=Namespaces(),
            security=box._security,
            cwd="/",
            user=0,
        )
        process = Process._from_launch(launch, stdin=DEVNULL, stdout=PIPE, stderr=None)
        process._wrap_streams(True, None, None)
        return _closing(process)

    return start


# Tries to look into every process that is still ck-init: a joiner on its way, or a PID 1. B02, CVE-2016-9962.
_WATCH = """
import os, signal, sys
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
own, seen, opened = str(os.getpid()), set(), set()
print("watching", flush=True)

def name(pid):
    with open(f"/proc/{pid}/comm") as file: return file.read()

def look(pid):
    before = name(pid)
    if not before.endswith("ck-init\\n"): return
    seen.add(pid)
    for what, reach in TRIES.items():
        try: reach(f"/proc/{pid}")
        except OSError: continue
        if name(pid) == before: opened.add((what, pid))

def content(path):
    # The maps of a process that has just ended can be opened, and are empty.
    with open(path, "rb") as file:
        if not file.read(1): raise OSError

def beyond(names):
    # In the moment of its exec the program still has the name; it has 0 to 2, and its loader opens 3.
    if max(map(int, names), default=0) <= 3: raise OSError

TRIES = {
    "exe": lambda p: os.readlink(p + "/exe"),
    "cwd": lambda p: os.readlink(p + "/cwd"),
    "root": lambda p: os.listdir(p + "/root/"),
    "fd": lambda p: beyond(os.listdir(p + "/fd")),
    "environ": lambda p: content(p + "/environ"),
    "maps": lambda p: content(p + "/maps"),
    "mem": lambda p: open(p + "/mem", "rb").close(),
}
while not stop:
    for pid in os.listdir("/proc"):
        if pid.isdecimal() and pid != own:
            try: look(pid)
            except OSError: pass
print(len(seen), sorted(opened))
"""


_DISGUISE = "import time; open('/proc/self/comm', 'w').write('ck-init'); time.sleep(0.2)"


def watched(box: Sandbox, runs: int, disguise: bool = False) -> tuple[int, str]:
    """How many processes of ck-init the watcher saw during so many runs, and into which it could look."""
    with in_its_own_pid_namespace([PYTHON, "-I", "-S", "-c", _WATCH])(box) as watcher:
        assert watcher.stdout.readline() == "watching\n"
        for _ in range(runs):
            assert box.run([PYTHON, "-I", "-S", "-c", _DISGUISE] if disguise else ["true"]).ok
        watcher.terminate()
        seen, _, opened = watcher.communicate(timeout=20 * PATIENCE)[0].partition(" ")
    return int(seen), opened.strip()


@pytest.fixture
def box_without_landlock() -> Iterator[Sandbox]:
    """Under Landlock no program of a sandbox looks into another; what is to be seen here is the wall before it."""
    with Sandbox(mounts=PYTHON_MOUNTS, security=attrs.evolve(Security.strict(), landlock=None)) as made:
        yield made


def test_nobody_inside_can_look_into_a_joiner_on_its_way(box_without_landlock: Sandbox) -> None:
    seen, opened = watched(box_without_landlock, 60)
    assert seen > 5
    assert opened == "[]"


def test_the_watcher_finds_a_process_that_may_be_looked_into(box_without_landlock: Sandbox) -> None:
    """The positive control: a program of the sandbox that merely calls itself ck-init."""
    _, opened = watched(box_without_landlock, 1, disguise=True)
    assert "'maps'" in opened
    assert "'exe'" in opened


# ---- the walls ---------------------------------------------------------------------------------------------


def test_enforced_reads_the_walls_back_from_the_kernel(box: Sandbox, caller: str) -> None:
    walls = box.enforced()
    assert {f"{kind} namespace" for kind in KINDS} <= walls.keys()
    inside = dict(
        zip(
            KINDS,
            sh(box, f"for k in {' '.join(KINDS)}; do readlink /proc/self/ns/$k; done").stdout.split(),
            strict=True,
        )
    )
    assert {kind: walls[f"{kind} namespace"] for kind in KINDS if kind not in ("pid", "mnt")} == {
        kind: inode for kind, inode in inside.items() if kind not in ("pid", "mnt")
    }
    assert walls["capabilities"] == "none, and none to be had"
    assert walls["no_new_privs"] == "set"
    assert walls["user ids"].split()[0] == "0"
    assert walls["user ids"].split()[2] == ("65536" if caller == "root" else "1")


def test_a_wall_that_is_not_there_is_not_claimed() -> None:
    with Sandbox(network="host", security=Security.unconfined_as_the_caller()) as box:
        walls = box.enforced()
    assert not {"net namespace", "capabilities", "no_new_privs"} & walls.keys()
    assert {"user namespace", "mnt namespace"} <= walls.keys()


# ---- a network namespace of the caller's -------------------------------------------------------------------


def test_two_sandboxes_in_one_network_namespace_reach_each_other(caller: str) -> None:
    if caller == "user":
        pytest.skip("owned by a user namespace that only the first sandbox could enter")
    with ck.Namespace.create("net") as net, Sandbox(network=net, mounts=PYTHON_MOUNTS) as one:
        with one.process([PYTHON, "-I", "-S", "-c", SERVE], stdout=PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
            done = ck.run([PYTHON, "-I", "-S", "-c", FETCH], network=net, mounts=PYTHON_MOUNTS)
        assert done.stdout == "served\n"
        inside = sh(one, "readlink /proc/self/ns/net").stdout.strip()
        assert inside == f"net:[{net.inode}]"


def test_a_network_namespace_that_may_not_be_entered_is_a_typed_error(caller: str) -> None:
    if caller == "root":
        pytest.skip("root may enter any")
    with ck.Namespace.create("net") as net, pytest.raises(ck.SpawnError, match="join net namespace") as caught:
        ck.run(["true"], network=net)
    assert caught.value.hint
