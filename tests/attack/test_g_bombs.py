"""G: programs that take all they can get, of every kind that the kernel has. The limit holds, the outcome says so."""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory

import pytest
from attack.subjects import breach_if

import containerkit as ck
from containerkit import Limits, Outcome

LIMIT, WANTED = 24 << 20, 56 << 20
TIGHT = Limits(memory_max=LIMIT, memory_swap_max=0)

HELD = {
    "private memory": "held = [bytearray(1 << 20) for _ in range(WANTED >> 20)]; n = WANTED",
    "shared memory": "held = mmap.mmap(-1, WANTED); n = sum(held.write(MIB) for _ in range(WANTED >> 20))",
    "a memory file": "file = os.memfd_create('x'); n = sum(os.write(file, MIB) for _ in range(WANTED >> 20))",
    "/dev/shm": "file = os.open('/dev/shm/x', CREATE); n = sum(os.write(file, MIB) for _ in range(WANTED >> 20))",
    "/tmp": "file = os.open('/tmp/x', CREATE); n = sum(os.write(file, MIB) for _ in range(WANTED >> 20))",
    "empty files": """
        n = 0
        while n < WANTED:
            os.close(os.open(f'/tmp/{n}', CREATE)); n += 1024
        """,
    "segments of System V": """
        libc.shmat.restype = ctypes.c_void_p
        n = 0
        while n < WANTED:
            number = libc.shmget(0, 1 << 20, 0o1600)
            assert number >= 0
            ctypes.memset(libc.shmat(number, 0, 0), 1, 1 << 20); n += 1 << 20
        """,
    "messages of System V": """
        message, n = ctypes.create_string_buffer(b'\\1', 8208), 0
        while n < WANTED:
            queue = libc.msgget(0, 0o1600)
            assert queue >= 0
            for _ in range(2):
                assert libc.msgsnd(queue, message, 8000, os.O_NONBLOCK) == 0
                n += 8000
        """,
    "pipes": """
        n, held = 0, []
        while n < WANTED:
            held.append(os.pipe())
            end = held[-1][1]
            os.set_blocking(end, False)
            with suppress(OSError):
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
            with suppress(BlockingIOError):
                while True: n += os.write(end, bytes(65536))
        """,
    "local sockets": """
        n, held = 0, []
        while n < WANTED:
            held.append(socket.socketpair())
            held[-1][0].setblocking(False)
            with suppress(BlockingIOError):
                while True: n += held[-1][0].send(bytes(65536))
        """,
    "small datagrams": """
        n, held = 0, []
        while n < WANTED:
            held.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
            held[-1][0].setblocking(False)
            with suppress(BlockingIOError):
                while held[-1][0].send(b'x'): n += 768
        """,
    "connections": """
        server, n, held = socket.create_server(('127.0.0.1', 0)), 0, []
        while n < WANTED:
            held.append((socket.create_connection(server.getsockname()), server.accept()[0]))
            held[-1][0].setblocking(False)
            with suppress(BlockingIOError):
                while True: n += held[-1][0].send(bytes(65536))
        """,
    "packets": """
        sender, n, held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0, []
        while n < WANTED:
            held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            held[-1].bind(('127.0.0.1', 0))
            for _ in range(14): sender.sendto(bytes(32 << 10), held[-1].getsockname())
            n += int.from_bytes(held[-1].getsockopt(socket.SOL_SOCKET, 55, 36)[:4], sys.byteorder)  # SO_MEMINFO
        """,
}
"""What a program can hold: each ends with the bytes in ``n``."""

BEFORE = """
import ctypes, fcntl, mmap, os, socket, sys
from contextlib import suppress
MIB, CREATE, libc = bytes(1 << 20), os.O_RDWR | os.O_CREAT, ctypes.CDLL(None)
"""


def held(kind: str, limits: Limits) -> ck.Completed[str]:
    code = f"{BEFORE}WANTED = {WANTED}\n{textwrap.dedent(HELD[kind])}\nprint('held', n)\n"
    return ck.run(["python3", "-c", code], limits=limits, timeout=60)


@pytest.mark.root
@pytest.mark.attack("G02", "G09", control="the same program without the limit")
@pytest.mark.parametrize("kind", HELD)
def test_no_kind_of_memory_is_held_beyond_the_limit(kind: str) -> None:
    done = held(kind, TIGHT)
    breach_if("held" in done.stdout, f"{WANTED} bytes of {kind} were held within a limit of {LIMIT}")
    assert done.outcome is Outcome.OOM or "Error" in done.stderr, done
    assert done.usage.memory_peak <= LIMIT
    control = held(kind, Limits())
    assert control.stdout.startswith("held"), control


SPAWNERS = {
    "processes": "while True: os.fork()",
    "threads": "while True: threading.Thread(target=threading.Event().wait).start()",
    "orphans": "while True:\n        if os.fork() == 0: os.fork() or os.setsid()",
    "zombies": "while os.fork(): dead += 1",
}
REFUSED = """
import os, threading, time  # {token}
dead = 0
try:
    {spawner}
except (OSError, RuntimeError):
    print('refused', dead, flush=True)
    time.sleep(60)
"""


def most_tasks(kind: str, limit: int) -> int:
    """How many a program comes to until it is refused more. All are gone then."""
    token = f"bomb-{os.getpid()}-{kind}"
    with ck.Sandbox(limits=Limits(pids_max=limit)) as box:
        code = REFUSED.format(token=token, spawner=SPAWNERS[kind])
        process = box.process(["python3", "-c", code], stdout=ck.PIPE)
        assert process.stdout is not None
        said = process.stdout.readline().split()
        assert said[:1] == [b"refused"]
        found = int(said[1]) if kind == "zombies" else tasks(token)
        subprocess.run(["true"], check=True)  # the machine still has room
    assert not tasks(token)
    return found


@pytest.mark.both
@pytest.mark.attack("G01", "G10", control="the same with twice the limit")
@pytest.mark.parametrize("kind", SPAWNERS)
def test_a_program_that_multiplies_is_held_at_its_limit_and_ends_whole(kind: str) -> None:
    """Its own cgroup or its own user's count: the machine has room all the while."""
    found = most_tasks(kind, 48)
    breach_if(found > 48, f"{found} tasks where 48 are the limit")
    assert 48 < most_tasks(kind, 96) <= 96


def tasks(token: str) -> int:
    """Threads of the processes that have a word in their command line. A dead one has none any more."""
    found = 0
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{entry}/cmdline") as command:
            if token in command.read():
                found += len(os.listdir(f"/proc/{entry}/task"))
    return found


@pytest.mark.both
@pytest.mark.attack("G03", control="the same with a wider limit")
def test_output_without_end_is_cut_and_the_program_ends() -> None:
    def kept(limit: str) -> int:
        done = ck.run(["python3", "-c", "while True: print('x' * 8000)"], limits=Limits(output_max=limit), timeout=60)
        assert done.outcome is Outcome.OUTPUT_LIMIT
        return len(done.stdout)

    breach_if(kept("1M") > (1 << 20) + 4096, "more output was kept than the limit")
    assert kept("4M") > (1 << 20) + 4096


NAMES = 66_000
"""More than a file system in memory has room for by default, of those that a sandbox makes."""

FILL = f"""
import os
for number in range({NAMES}):
    os.close(os.open(os.path.join(os.environ['PLACE'], str(number)), os.O_WRONLY | os.O_CREAT))
print('made')
"""


@pytest.mark.both
@pytest.mark.attack("G03", control="the same in a directory of the host")
def test_names_without_end_meet_the_end_of_the_table() -> None:
    done = ck.run(["python3", "-c", FILL], env={"PLACE": "/tmp"}, timeout=60)
    breach_if("made" in done.stdout, f"{NAMES} files were made in /tmp")
    assert "No space left" in done.stderr
    with TemporaryDirectory(dir="/dev/shm") as place:
        made = subprocess.run(
            ["python3", "-c", FILL], env={"PLACE": place}, capture_output=True, text=True, check=False
        )
    assert made.stdout == "made\n", made.stderr


OPEN = """
import os
try:
    for number in range(1500): {open}
    print('opened', flush=True)
except OSError as error:
    print(error.strerror, flush=True)
{then}
"""


@pytest.mark.both
@pytest.mark.attack("G09", control="the same with a wider limit")
def test_descriptors_without_end_meet_the_limit_of_the_process() -> None:
    code = OPEN.format(open="os.dup(0)", then="")
    done = ck.run(["python3", "-c", code])
    breach_if("opened" in done.stdout, "1,500 descriptors within a limit of 1,024")
    assert done.stdout == "Too many open files\n"
    assert ck.run(["python3", "-c", code], limits=Limits(nofile=2048)).stdout == "opened\n"


@pytest.mark.both
@pytest.mark.attack("G09", control="the same as a program of the host")
def test_terminals_of_a_sandbox_are_not_among_the_hosts() -> None:
    code = OPEN.format(open="os.openpty()", then="import sys; sys.stdin.read()")

    def more_here(start: Callable[[], ck.Process | subprocess.Popen[bytes]]) -> int:
        before = set(os.listdir("/dev/pts"))
        with start() as process:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdout.readline()
            found = set(os.listdir("/dev/pts")) - before
            process.stdin.close()
            process.wait()
        return len(found)

    command = ["python3", "-c", code]
    with ck.Sandbox() as box:
        mine = more_here(lambda: box.process(command, stdin=ck.PIPE, stdout=ck.PIPE))
    # Other tests open a terminal now and then.
    breach_if(mine > 100, f"{mine} terminals of a sandbox are the host's")
    assert more_here(lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) > 100
