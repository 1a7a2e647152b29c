"""G: programs that take all they can get, of every kind that the kernel has. The limit holds, the outcome says so."""

from __future__ import annotations

import os
import subprocess
import textwrap
from contextlib import suppress

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
    "processes": "import os\nwhile True: os.fork()",
    "threads": "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
    "orphans": "import os\nwhile True:\n    if os.fork() == 0: os.fork() or os.setsid()",
    "zombies": "import os\nwhile True: os.fork() or os._exit(0)",
}


@pytest.mark.both
@pytest.mark.attack("G01", "G10", control="`signals_to_what_was_listed_once_do_not_end_a_fork_bomb`")
@pytest.mark.parametrize("kind", SPAWNERS)
def test_a_program_that_multiplies_is_held_at_its_limit_and_ends_whole(kind: str) -> None:
    """Its own cgroup or its own user's count: the machine has room all the while."""
    token = f"bomb-{os.getpid()}-{kind}"
    code = f"try:\n    exec({SPAWNERS[kind]!r})\nexcept (OSError, RuntimeError): print('refused', flush=True)\n"
    with ck.Sandbox(limits=Limits(pids_max=48)) as box:
        last = f"import time; time.sleep(60)  # {token}"
        process = box.process(["python3", "-c", code + last], stdout=ck.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(7) == b"refused"
        running = tasks(token)
        breach_if(running > 48, f"{running} tasks where 48 are the limit")
        assert running >= (1 if kind == "zombies" else 8)
        subprocess.run(["true"], check=True)  # the machine still has room
    assert not tasks(token)


def tasks(token: str) -> int:
    """Threads of the processes that have a word in their command line. A dead one has none any more."""
    found = 0
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{entry}/cmdline") as command:
            if token in command.read():
                found += len(os.listdir(f"/proc/{entry}/task"))
    return found


OUTPUT = "while True: print('x' * 8000)"


@pytest.mark.both
@pytest.mark.attack("G03", control="the counter of the program itself")
def test_output_without_end_is_cut_and_the_program_ends() -> None:
    done = ck.run(["python3", "-c", OUTPUT], limits=Limits(output_max="1M"), timeout=60)
    assert done.outcome is Outcome.OUTPUT_LIMIT
    breach_if(len(done.stdout) > (1 << 20) + 4096, f"{len(done.stdout)} bytes of output were kept")


FILL = """
import os
n = 0
try:
    while True:
        os.write(os.open(f'/tmp/{n}', os.O_RDWR | os.O_CREAT), b''); os.closerange(3, 10); n += 1
        if n > 500_000: break
except OSError as error:
    print(error.strerror, n)
"""


@pytest.mark.both
@pytest.mark.attack("G03", control="the names that the program made until then")
def test_names_without_end_meet_the_end_of_the_table() -> None:
    done = ck.run(["python3", "-c", FILL], timeout=60)
    breach_if("No space left" not in done.stdout, f"half a million files in /tmp: {done}")
    assert int(done.stdout.split()[-1]) > 1000


@pytest.mark.both
@pytest.mark.attack("G09", control="the descriptors that it got until then")
def test_descriptors_without_end_meet_the_limit_of_the_process() -> None:
    code = (
        "import os\nn = 0\ntry:\n    while True: os.dup(0); n += 1\nexcept OSError as error: print(error.strerror, n)"
    )
    done = ck.run(["python3", "-c", code], timeout=60)
    assert done.stdout.startswith("Too many open files")
    breach_if(int(done.stdout.split()[-1]) > 1 << 16, f"{done.stdout} descriptors")


@pytest.mark.both
@pytest.mark.attack("G09", control="the terminals that it got until then")
def test_terminals_without_end_leave_those_of_the_host() -> None:
    code = "import os\nn = 0\ntry:\n    while True: os.openpty(); n += 1\nexcept OSError: print(n, flush=True)"
    with ck.Sandbox() as box:
        process = box.process(["python3", "-c", code + "\nimport time; time.sleep(60)"], stdout=ck.PIPE)
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= 1
        for fd in os.openpty():
            os.close(fd)
