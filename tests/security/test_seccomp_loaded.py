"""The presets in the kernel: a process that has loaded one, and what ordinary programs can still do then.

The filter is loaded by a small program of the tests, with prctl, so that nothing but the bytes is on trial.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from containerkit.security import syscalls
from containerkit.security.seccomp import Action, Seccomp

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no table for this machine")

LOADER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
program = bytes.fromhex(sys.argv[1])
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
def load():
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    if libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program))) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg) for arg in args))
    return ctypes.get_errno() if result == -1 else 0
"""


def python(policy: Seccomp, code: str, *args: str) -> str:
    """The output of code that runs after the filter was loaded. ``call`` makes a system call: 0, or the errno."""
    command = [sys.executable, "-I", "-c", LOADER + "load()\n" + code, policy.program().hex(), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def under(policy: Seccomp, command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """A program that is executed under the filter."""
    code = LOADER + "load()\nos.execvp(sys.argv[2], sys.argv[2:])"
    full = [sys.executable, "-I", "-c", code, policy.program().hex(), *command]
    return subprocess.run(full, capture_output=True, text=True, timeout=50, **options)  # type: ignore[call-overload, no-any-return]


def errors(policy: Seccomp, *calls: tuple[str | int, Sequence[int]]) -> list[str]:
    """How each call ends: "ok" or the name of its errno. They are made one after the other, in one process."""
    numbers = syscalls.numbers(platform.machine())
    wanted = [(numbers[call] if isinstance(call, str) else call, *args) for call, args in calls]
    output = python(policy, f"print([call(*one) for one in {wanted!r}])")
    return [errno.errorcode[number] if number else "ok" for number in eval(output)]  # noqa: S307


PRESETS = pytest.mark.parametrize("policy", [Seccomp.strict(), Seccomp.service()], ids=["strict", "service"])


# ---- the kernel's answers --------------------------------------------------------------------------------------------


@PRESETS
def test_the_kernel_takes_the_filter_and_ordinary_calls_work(policy: Seccomp) -> None:
    assert errors(policy, ("getppid", []), ("getuid", []), ("sched_yield", [])) == ["ok"] * 3


@PRESETS
def test_sockets_of_other_kinds_are_refused(policy: Seccomp) -> None:
    kinds = {"alg": (38, 5, 0), "vsock": (40, 1, 0), "packet": (17, 3, 0), "bluetooth": (31, 3, 0), "tipc": (30, 1, 0)}
    assert errors(policy, *(("socket", args) for args in kinds.values())) == ["EAFNOSUPPORT"] * len(kinds)
    ordinary = [("socket", args) for args in ((1, 1, 0), (2, 1, 0), (2, 2, 0), (16, 3, 0))]
    assert errors(policy, *ordinary) == ["ok"] * 4


@PRESETS
def test_the_dangerous_fails_with_eperm(policy: Seccomp) -> None:
    calls: list[tuple[str, Sequence[int]]] = [
        ("unshare", (0x10000000,)), ("setns", (0, 0)), ("mount", ()), ("fsopen", ()), ("open_tree", (0, 0, 1)),
        ("bpf", (0,)), ("perf_event_open", ()), ("ptrace", (0,)), ("keyctl", (0,)), ("io_uring_setup", (1, 0)),
        ("userfaultfd", (0,)), ("init_module", ()), ("kexec_load", ()), ("swapon", ()), ("open_by_handle_at", ()),
        ("process_vm_readv", ()), ("pidfd_getfd", ()), ("quotactl", ()), ("clone", (0x10000011,)),
        ("personality", (0x0040000,)),
    ]  # fmt: skip
    assert dict(zip([name for name, _ in calls], errors(policy, *calls), strict=True)) == {
        name: "EPERM" for name, _ in calls
    }


@PRESETS
def test_the_unknown_fails_with_enosys(policy: Seccomp) -> None:
    assert errors(policy, ("clone3", (0, 0)), (9999, ()), (600, ()), ("listns", ())) == ["ENOSYS"] * 4


def test_without_the_filter_those_calls_are_answered_by_the_kernel() -> None:
    """The control: the answers above come from the filter."""
    policy = Seccomp(Action.ALLOW)
    answers = errors(
        policy, ("clone3", (0, 0)), ("io_uring_setup", (1, 0)), ("bpf", (0,)), ("personality", (0x0040000,))
    )
    assert answers[0] == "EINVAL"
    assert answers[1] != "EPERM"
    assert answers[3] == "ok"


@PRESETS
@pytest.mark.parametrize("high", [0, 0xDEADBEEF << 32])
def test_a_terminal_cannot_be_typed_into(policy: Seccomp, high: int) -> None:
    requests = [("ioctl", (0, high | number, 0)) for number in (0x5412, 0x541C, 0x5423)]
    assert errors(policy, *requests) == ["EPERM"] * 3
    assert errors(policy, ("ioctl", (0, high | 0x5413, 0))) != ["EPERM"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86")
def test_calls_of_x32_do_not_exist() -> None:
    assert errors(Seccomp.strict(), (0x40000000 | 39, ()), (0xFFFFFFFF, ())) == ["ENOSYS"] * 2


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86's")
@pytest.mark.parametrize("multiarch", [False, True])
def test_a_32_bit_call_in_a_64_bit_program_is_answered_by_the_32_bit_rules(multiarch: bool) -> None:
    """socketcall by int 0x80 was the way around docker's ban of AF_ALG."""
    code = """
import mmap
# mov eax, edi; mov ebx, esi; int 0x80; ret -- with rbx, which is the caller's, kept
machine_code = mmap.mmap(-1, 4096, prot=7)
machine_code.write(bytes.fromhex("53 89f8 89f3 31c9 31d2 cd80 5b c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(machine_code))
int80 = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint)(address)
print([int80(20, 0), int80(102, 1), int80(359, 38)], os.getpid())
"""
    policy = Seccomp(Seccomp.strict().default, Seccomp.strict().rules, multiarch=multiarch)
    answers, _, pid = python(policy, code).strip().rpartition(" ")
    getpid = int(pid) if multiarch else -errno.ENOSYS
    socket = -errno.EAFNOSUPPORT if multiarch else -errno.ENOSYS
    if "-14" in answers:
        pytest.skip("this kernel has no 32-bit emulation")
    assert eval(answers) == [getpid, -errno.ENOSYS, socket]  # noqa: S307


def test_a_call_to_kill_for_ends_the_process() -> None:
    done = under(Seccomp(Action.ALLOW).kill("getppid"), [sys.executable, "-I", "-c", "import os; os.getppid()"])
    assert done.returncode == -31  # SIGSYS


# ---- ordinary programs -----------------------------------------------------------------------------------------------

THREADS = """
import asyncio, concurrent.futures, hashlib, multiprocessing, os, select, socket, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(lambda n: n * n, range(50))) == 40425
assert subprocess.run(["echo", "hello"], capture_output=True, text=True, check=True).stdout == "hello\\n"
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"over tcp")).start()
assert socket.create_connection(server.getsockname()).recv(99) == b"over tcp"
assert socket.getaddrinfo("127.0.0.1", 80)
one, other = socket.socketpair()
one.send(b"x"); assert other.recv(1) == b"x"
async def main():
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    assert (await process.communicate(b"async"))[0] == b"async"
asyncio.run(main())
with tempfile.TemporaryDirectory() as directory:
    os.mkfifo(directory + "/fifo"); os.symlink("fifo", directory + "/link")
    os.chown(directory + "/fifo", os.getuid(), os.getgid()); os.utime(directory + "/fifo")
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
print("all of it")
"""


def test_python_with_threads_processes_sockets_and_asyncio_works() -> None:
    done = under(Seccomp.strict(), [sys.executable, "-W", "ignore", "-c", THREADS])
    assert (done.stdout, done.stderr) == ("all of it\n", "")


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def test_a_compiler_works(tmp_path: Path) -> None:
    (tmp_path / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    script = f"{needs('gcc')} -O1 -pipe -o hello hello.c && ./hello"
    done = under(Seccomp.strict(), ["sh", "-c", script], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_git_works(tmp_path: Path) -> None:
    script = """
        set -e
        git init -q one && cd one && git config user.name T && git config user.email t@example.org
        echo text >file && git add file && git commit -qm first && git gc -q
        cd .. && git clone -q one two && git -C two log --format=%s
    """
    needs("git")
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    done = under(Seccomp.strict(), ["sh", "-c", script], cwd=tmp_path, env=environment)
    assert (done.stdout, done.stderr) == ("first\n", "")


def test_node_works() -> None:
    script = """
        const { Worker, isMainThread } = require('worker_threads'), { execSync } = require('child_process');
        new Worker('require("fs").readFileSync("/proc/self/stat")', { eval: true }).on('exit', () => {
            const server = require('net').createServer(s => s.end('over tcp')).listen(0, '127.0.0.1', () =>
                require('net').connect(server.address().port, '127.0.0.1').on('data', data => {
                    console.log(execSync('echo sub').toString().trim(), data.toString());
                    server.close();
                }));
        });
    """
    done = under(Seccomp.strict(), [needs("node"), "-e", script])
    assert (done.stdout, done.stderr) == ("sub over tcp\n", "")


def test_busybox_works(tmp_path: Path) -> None:
    script = "ls / >l; sort l | head -n 1 >h; tar cf t l h; mkfifo f; id -u; ps >p; find . -type p; date >d; rm -r ./*"
    done = under(Seccomp.strict(), [needs("busybox"), "sh", "-c", script], cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"{os.getuid()}\n./f\n", "")


TOOLS = (
    "cp -a a b", "tar cf t a", "find . -newer a", "dd if=/dev/zero of=z count=9 status=none", "touch -d yesterday a",
    "ln a c", "install -m 600 a i", "mktemp -p .", "nice true", "timeout 5 true", "xargs -P 4 echo </dev/null",
    "sort --parallel=2 a", "du -s .",
)  # fmt: skip


@pytest.mark.parametrize("script", TOOLS)
def test_everyday_tools_work(script: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text\n")
    done = under(Seccomp.strict(), ["sh", "-c", script], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.root
def test_service_lets_root_change_its_root_and_make_devices(tmp_path: Path) -> None:
    script = "mknod zero c 1 5 && mkdir r && cp {} r/ && chroot r /busybox echo inside".format(needs("busybox"))
    assert under(Seccomp.service(), ["sh", "-c", script], cwd=tmp_path).stdout == "inside\n"
    assert "not permitted" in under(Seccomp.strict(), ["sh", "-c", "mknod one c 1 5"], cwd=tmp_path).stderr
